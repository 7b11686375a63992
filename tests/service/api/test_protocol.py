"""Connections that are slow, endless, malformed or too many."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import structlog
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.api import connection_bounds, connection_watch, protocol, unsent_answers
from service.api.connection_bounds import (
    MAX_DISCARDED_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    MAX_QUERY_PARAMETERS,
    PIECE_BYTES,
)
from service.api.connection_watch import COLLECTED_CONNECTIONS
from service.api.early_refusal import EarlyRefusal
from service.api.head_with_body import HeadWithBody
from service.api.protocol import BoundedProtocol
from tests.service.api.conftest import Serve, eventually_true, gauge
from tests.service.api.connections import (
    GET,
    POST,
    SHORT,
    closed,
    connected,
    ended,
    problem_in,
    read_answer,
    readable,
)
from tests.service.api.requests import NDJSON

READ_SIZE = 2**18
"""Most bytes that the event loop reads from a connection at a time."""


def test_head_and_body_of_an_answer_come_together(url: str) -> None:
    with connected(url) as connection:
        for _ in range(3):
            connection.sendall(GET)
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
            assert b"content-length: %d\r\n" % len(body) in head + b"\r\n"
            assert body


@pytest.mark.parametrize(("has_body", "written"), [(False, [b"head"]), (True, [])])
@pytest.mark.anyio
async def test_head_of_an_answer_without_a_body_is_not_held(has_body: bool, written: list[bytes]) -> None:
    """Otherwise the answer to a later request could be sent before it within the same iteration of the event loop."""
    sent = list[bytes]()
    transport = SimpleNamespace(is_closing=lambda: False)
    connection: Any = SimpleNamespace(transport=transport, loop=asyncio.get_running_loop(), write=sent.append)
    answer = HeadWithBody(connection, has_body)
    answer.write(b"head")
    assert sent == written
    await asyncio.sleep(0)
    assert sent == [b"head"]
    answer.write(b"body")
    assert sent == [b"head", b"body"]


@pytest.mark.usefixtures("impatient")
def test_connection_without_a_request_is_closed(url: str) -> None:
    with connected(url) as connection:
        assert closed(connection)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("before", [b"", GET])
def test_head_without_an_end_is_408(url: str, before: bytes) -> None:
    with connected(url) as connection:
        if before:
            connection.sendall(before)
            assert read_answer(connection)[0] == 200
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost:")
        assert "head" in problem_in(connection, 408)


@pytest.mark.usefixtures("impatient")
def test_body_that_pauses_is_408(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(POST + b'Content-Length: 100\r\n\r\n{"title"')
        assert "body" in problem_in(connection, 408)


@pytest.mark.usefixtures("impatient")
def test_body_that_trickles_is_408(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MIN_BODY_RATE", 10_000)
    with connected(url) as connection:
        connection.sendall(POST + b"Content-Length: 100000\r\n\r\n")
        deadline = time.monotonic() + 20
        while not readable(connection, 0.01):
            connection.sendall(b" ")
            assert time.monotonic() < deadline
        assert "body" in problem_in(connection, 408)


@pytest.mark.usefixtures("impatient")
def test_body_in_time_is_taken_however_long_it_takes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now, taken, checks = [time.monotonic()], list[bytes](), list[float]()
    on_body, check_time = BoundedProtocol.on_body, BoundedProtocol.check_time

    def recorded(connection: BoundedProtocol, part: bytes) -> None:
        on_body(connection, part)
        taken.append(part)

    def checked(connection: BoundedProtocol) -> bool:
        kept = check_time(connection)
        if not connection._in_head:
            checks.append(now[0])
        return kept

    def has_taken(count: int) -> bool:
        return len(b"".join(taken)) == count

    monkeypatch.setattr(protocol, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(BoundedProtocol, "on_body", recorded)
    monkeypatch.setattr(BoundedProtocol, "check_time", checked)
    body = b'{"title": "slow and steady"}'
    with connected(url) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body))
        for end in range(1, len(body)):
            connection.sendall(body[end - 1 : end])
            eventually_true(partial(has_taken, end))
            now[0] += 2 * SHORT / len(body)
            eventually_true(lambda: now[0] in checks)  # the bound was checked at this time
        connection.sendall(body[-1:])
        assert read_answer(connection)[0] == 201


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * MAX_HEAD_BYTES * 2,
        b"GET /livez?" + b"x" * MAX_HEAD_BYTES * 2,
        b"GET /livez HTTP/1.1\r\n" + (b"X: %b\r\n" % (b"y" * 1000)) * (MAX_HEADERS - 50),
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: " + b"x" * MAX_HEAD_BYTES * 2,
    ],
    ids=["one header", "address", "many headers", "trailer"],
)
def test_head_over_its_bound_is_431(url: str, head: bytes) -> None:
    with connected(url) as connection:
        connection.sendall(head)
        assert "max_head_bytes" in problem_in(connection, 431)


@pytest.mark.parametrize("complete", [True, False])
def test_too_many_header_fields_are_431(url: str, complete: bool) -> None:
    fields = b"".join(b"a%d:b\r\n" % n for n in range(MAX_HEADERS if complete else 5000))  # Host is one more
    with connected(url) as connection:
        connection.sendall(GET.removesuffix(b"\r\n") + fields + (b"\r\n" if complete else b""))
        assert "max_headers" in problem_in(connection, 431)


@pytest.mark.parametrize("path", [b"/livez", b"/notes/sample-en-001/similar"])
def test_too_many_query_parameters_are_414(url: str, path: bytes) -> None:
    query = b"?" + b"&".join([b"a"] * (MAX_QUERY_PARAMETERS + 1))
    with connected(url) as connection:
        connection.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % (path + query))
        assert "max_query_parameters" in problem_in(connection, 414)


def test_as_many_headers_and_query_parameters_as_allowed_are_taken(url: str) -> None:
    fields = b"".join(b"a%d:b\r\n" % n for n in range(MAX_HEADERS - 1))
    target = b"/notes/sample-en-001/similar?" + b"&".join(b"exclude=n%d" % n for n in range(1000))
    with connected(url) as connection:
        connection.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (target, fields))
        assert read_answer(connection)[0] == 200


@pytest.mark.parametrize("pieces", [1, 2])
def test_connection_is_closed_when_idle_after_the_rest_of_a_refused_body(
    url: str, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    made = BoundedProtocol.connection_made

    def impatient(self: BoundedProtocol, transport: asyncio.Transport) -> None:
        made(self, transport)
        self.timeout_keep_alive = 1

    monkeypatch.setattr(BoundedProtocol, "connection_made", impatient)
    with connected(url) as connection:
        body = b"{}" * pieces
        head = b"Content-Encoding: br\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(POST + head)
        assert read_answer(connection)[0] == 415
        with contextlib.suppress(OSError):  # on a slow machine it is closed before the last piece
            for begin in range(0, len(body), 2):
                connection.sendall(body[begin : begin + 2])
        assert closed(connection)


def test_empty_line_before_a_request_is_ignored(url: str) -> None:
    with connected(url) as connection, connected(url) as other:
        connection.sendall(b"\r\n")
        other.sendall(GET)
        assert read_answer(other)[0] == 200
        connection.sendall(GET)
        assert read_answer(connection)[0] == 200


def test_head_within_its_bound_is_taken(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(
            b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * (MAX_HEAD_BYTES - 100) + b"\r\n\r\n"
        )
        assert read_answer(connection)[0] == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere\r\n\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
        POST + b"Content-Type: application/json\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}",
        *(
            b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n"
            for target in (b"http://a", b"http://a?x=1", b"http://h:70000/x", b"http://[::1]", b"HTTP://")
        ),
    ],
)
def test_malformed_request_is_a_problem(url: str, request_bytes: bytes) -> None:
    with connected(url) as connection:
        connection.sendall(request_bytes)
        assert problem_in(connection, 400)


@pytest.mark.parametrize(
    "head", [b"GET /livez HTTP/1.0\r\n", b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n"]
)
def test_host_may_be_missing_in_http_1_0_and_repeated_with_one_value(url: str, head: bytes) -> None:
    with connected(url) as connection:
        connection.sendall(head + b"\r\n")
        assert read_answer(connection)[0] == 200


def test_request_on_which_an_early_answer_fails_is_answered_by_the_app(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: EarlyRefusal, *request: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(EarlyRefusal, "decide", fail)
    with structlog.testing.capture_logs() as lines, connected(url) as connection:
        connection.sendall(GET)
        assert read_answer(connection)[0] == 200
    assert "early_answer_failed" in [line["event"] for line in lines]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the services of this process act as if they had the most connections allowed."""
    monkeypatch.setattr(BoundedProtocol, "full_logged_at", 0.0)
    monkeypatch.setattr(BoundedProtocol, "max_connections", 0)


@pytest.mark.usefixtures("full")
def test_connections_over_the_bound_are_503_in_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SPARE_CONNECTIONS", 0)
    with structlog.testing.capture_logs() as lines:
        for _ in range(5):
            with connected(url) as connection:
                status, problem = read_answer(connection)
                assert (status, json.loads(problem)["retry_after"]) == (503, 1)
    assert [line["event"] for line in lines] == ["connections_full"]


@pytest.mark.usefixtures("full")
def test_probes_and_metrics_are_answered_over_the_bound_and_all_else_is_counted(
    url: str, client: httpx2.Client
) -> None:
    refused = gauge(client, "notellm_connections_refused_total")
    for path in ("/livez", "/startupz", "/readyz?", "/metrics"):
        assert client.get(path).status_code == 200
    with connected(url) as connection:
        connection.sendall(2 * (POST + b"Content-Length: 2\r\n\r\n{}") + GET)
        assert "too many open connections" in problem_in(connection, 503)
    assert gauge(client, "notellm_connections_refused_total") == refused + 1


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("path", [b"/livez", b"/metrics"])
def test_connection_over_the_bound_is_for_one_request(url: str, path: bytes) -> None:
    with connected(url) as connection:
        connection.sendall(GET.replace(b"/livez", path))
        assert read_answer(connection)[0] == 200
        assert closed(connection)


@pytest.mark.usefixtures("full")
def test_connection_over_the_bound_waits_for_its_head_for_a_shorter_time(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_watch, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 3600.0)
    monkeypatch.setattr(protocol, "SPARE_HEAD_SECONDS", SHORT)
    with connected(url) as connection:
        connection.sendall(GET[:10])
        assert "arrived too slowly" in problem_in(connection, 408)


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("admin_port", [None, 1])
def test_all_is_answered_on_the_socket_of_reader_processes_over_the_bound(serve: Serve, admin_port: int | None) -> None:
    with tempfile.TemporaryDirectory(prefix="nl-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "service.sock"
        listener.bind(str(path))
        with (
            serve(admin_port=admin_port, more_listeners=[listener]),
            httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://localhost") as reader,
        ):
            assert [reader.get("/limits").status_code for _ in range(2)] == [200, 200]


@pytest.mark.usefixtures("full")
def test_all_is_answered_on_the_admin_port_over_the_bound(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as admin:
        port = admin.getsockname()[1]
        with serve(admin_port=port, more_listeners=[admin]) as url:
            assert httpx2.get(f"{url}/limits").status_code == 503
            assert httpx2.get(f"http://127.0.0.1:{port}/limits").status_code == 200


@pytest.mark.parametrize("protocol_name", [b"websocket", b"h2c"])
def test_upgrade_is_ignored_and_its_body_is_read(url: str, protocol_name: bytes) -> None:
    upgrade = b"Connection: keep-alive, Upgrade\r\nUpgrade: " + protocol_name + b"\r\nSec-WebSocket-Key: eA==\r\n"
    body = b'{"title": "upgraded"}'
    with connected(url) as connection:
        for cut in (0, 60, 150, 175):
            request = POST + upgrade + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            connection.sendall(request[:cut])
            connection.sendall(request[cut:])
            assert read_answer(connection)[0] == 201
        connection.sendall(GET)
        assert read_answer(connection)[0] == 200


@pytest.mark.parametrize("path", ["/notes", "/similar", "/generate", "/notes/some-note"])
def test_chunked_body_over_its_bound_is_413(url: str, client: httpx2.Client, path: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 2**17

    method = "PUT" if path == "/notes/some-note" else "POST"
    answer = client.request(method, path, content=chunks(), headers={"content-type": "application/json"})
    assert (answer.status_code, "max_body_bytes" in answer.json()["detail"]) == (413, True)


def test_foreign_host_is_in_no_answer(client: httpx2.Client) -> None:
    for path in ("/notes/", "/docs/", "/", "/livez/", "//elsewhere.example/"):
        answer = client.get(path, headers={"Host": "evil.example"})
        assert "evil.example" not in f"{answer.headers}{answer.text}"


def test_many_waiting_connections_leave_others_alone(url: str, client: httpx2.Client) -> None:
    address = httpx2.URL(url)
    waiting = [socket.create_connection((address.host, address.port or 80)) for _ in range(200)]
    try:
        for connection in waiting:
            connection.sendall(b"GET /livez HTTP/1.1\r\n")
        assert client.get("/notes/sample-en-001/similar").status_code == 200
    finally:
        for connection in waiting:
            connection.close()


def test_limits_name_every_bound_of_a_connection(client: httpx2.Client) -> None:
    limits: dict[str, Any] = client.get("/limits").json()
    seconds = ("head_seconds", "body_seconds", "idle_seconds", "answer_seconds")
    heads = ("max_head_bytes", "max_headers", "max_query_parameters")
    names = (*heads, "min_body_rate", "min_answer_rate", "max_unsent_bytes", *seconds)
    bounds = vars(connection_bounds) | vars(protocol) | vars(unsent_answers)
    assert {name: limits[name] for name in names} == {name: bounds[name.upper()] for name in names}
    assert limits["max_connections"] == BoundedProtocol.max_connections


@pytest.mark.usefixtures("impatient")
def test_connections_that_ended_are_forgotten(url: str, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "max_connections", 50)
    with connected(url), connected(url):
        eventually_true(lambda: client.get("/livez").status_code == 200)
    for _ in range(60):
        with connected(url) as connection:
            connection.sendall(GET)
            assert read_answer(connection)[0] == 200


@pytest.mark.parametrize("body", [b"", b"x" * 2**16])
def test_connections_that_ended_leave_memory_without_a_full_collection(url: str, body: bytes) -> None:
    fields = b"Host: localhost\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
    gc.collect()
    for _ in range(3 * COLLECTED_CONNECTIONS):
        with connected(url) as connection:
            connection.sendall(b"POST /notes HTTP/1.1\r\n" + fields + body)
            assert read_answer(connection)[0] == 415

    def alive() -> int:
        gc.collect(1)
        return sum(type(each) in (BoundedProtocol, RequestResponseCycle) for each in gc.get_objects())

    eventually_true(lambda: alive() < COLLECTED_CONNECTIONS / 4)


@pytest.fixture
def protocols(monkeypatch: pytest.MonkeyPatch) -> list[BoundedProtocol]:
    """Records the service's side of each connection, in order."""
    recorded, made = list[BoundedProtocol](), BoundedProtocol.connection_made

    def record(connection: BoundedProtocol, transport: asyncio.Transport) -> None:
        made(connection, transport)
        recorded.append(connection)

    monkeypatch.setattr(BoundedProtocol, "connection_made", record)
    return recorded


def test_connection_that_is_reset_leaves_no_timer(url: str, protocols: list[BoundedProtocol]) -> None:
    with connected(url) as connection:
        connection.sendall(GET)
        assert read_answer(connection)[0] == 200
        eventually_true(lambda: protocols[0].timeout_keep_alive_task is not None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its close is a reset
    eventually_true(lambda: protocols[0].timeout_keep_alive_task is None)


@pytest.mark.parametrize(("version", "header"), [(b"1.1", b"Connection: close\r\n"), (b"1.0", b"")])
def test_answer_reaches_a_caller_who_sends_the_whole_body_first_on_a_connection_that_is_closed(
    url: str, version: bytes, header: bytes
) -> None:
    body = b"x" * 8_000_000
    head = POST.replace(b"1.1", version) + header + b"Content-Length: %d\r\n\r\n" % len(body)
    for _ in range(3):
        with connected(url) as connection:
            connection.sendall(head + body)
            assert read_answer(connection)[0] == 413
            assert closed(connection)


@pytest.mark.parametrize(("beyond", "said"), [(0, []), (1, [b"connection: close"])])
def test_answer_to_a_body_that_is_not_read_whole_says_that_the_connection_is_closed(
    url: str, beyond: int, said: list[bytes]
) -> None:
    """A caller that kept the connection would send its next request into one that is reset."""
    with connected(url) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % (MAX_DISCARDED_BYTES + beyond))
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
    status, *fields = head.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert status.split()[1] == b"413"
    assert [field for field in fields if field.startswith(b"connection")] == said


@pytest.mark.usefixtures("impatient")
def test_body_that_never_comes_does_not_hold_a_connection_that_is_closed(url: str, client: httpx2.Client) -> None:
    before = ended(client, "slow_body")
    with connected(url) as connection:
        connection.sendall(POST + b"Connection: close\r\nContent-Encoding: br\r\nContent-Length: 9\r\n\r\n")
        assert read_answer(connection)[0] == 415
        assert closed(connection)
        eventually_true(lambda: ended(client, "slow_body") > before)


@pytest.mark.parametrize(
    ("complete", "more_body", "fields", "done"),
    [
        (True, True, {}, "write_eof"),
        (True, False, {}, "close"),
        (False, True, {}, "close"),  # the answer was broken off
        (True, True, {"_is_spare": True}, "close"),
        (True, True, {"_shuts_down": True}, "close"),
    ],
)
def test_only_a_complete_answer_before_the_end_of_a_body_keeps_its_connection_open_for_the_body(
    complete: bool, more_body: bool, fields: dict[str, bool], done: str
) -> None:
    called: list[str] = []
    transport = SimpleNamespace(
        is_closing=lambda: False,
        can_write_eof=lambda: True,
        write_eof=lambda: called.append("write_eof"),
        close=lambda: called.append("close"),
    )
    answer: Any = object()
    cycle = SimpleNamespace(transport=answer, response_complete=complete, more_body=more_body)
    connection: Any = SimpleNamespace(
        cycle=cycle, transport=transport, **{"_is_spare": False, "_shuts_down": False} | fields
    )
    BoundedProtocol.end_after_answer(connection, answer)
    assert called == [done]


def test_stream_that_is_broken_off_closes_its_connection(
    url: str, protocols: list[BoundedProtocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("as a mistake in the code would")

    line = b'{"title": "a note of a stream"}\n'
    with connected(url) as connection, structlog.testing.capture_logs():
        head = POST.replace(b"application/json", NDJSON.encode()) + b"Transfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + (b"%x\r\n%b\r\n" % (len(line), line)) * 100)
        assert b" 200 " in connection.recv(1024)
        monkeypatch.setattr("service.recommender.Recommender.add", fail)
        with contextlib.suppress(OSError):  # it may be closed already
            connection.sendall((b"%x\r\n%b\r\n" % (len(line), line)) * 100)
        eventually_true(lambda: protocols[0] not in protocols[0].connections)


def test_request_that_is_answered_gets_no_second_answer(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(POST + b"Content-Encoding: br\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert read_answer(connection)[0] == 415
        connection.sendall(b"zz\r\n")
        assert closed(connection)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the length of a connection's pipeline after each of its requests is handed to the app or queued."""
    counts: list[int] = []
    call_app = BoundedProtocol._call_app

    def recorded(self: BoundedProtocol) -> None:
        call_app(self)
        counts.append(len(self.pipeline))

    monkeypatch.setattr(BoundedProtocol, "_call_app", recorded)
    return counts


def send_and_receive(connection: socket.socket, requests: bytes) -> bytes:
    """Send requests in another thread, and return all bytes received until the service ends the connection."""
    sending = threading.Thread(target=connection.sendall, args=(requests,))
    sending.start()
    received = bytearray()
    while part := connection.recv(2**20):
        received += part
    sending.join()
    return bytes(received)


def test_pipelined_requests_wait_unparsed_and_all_are_answered(url: str, waiting: list[int]) -> None:
    request = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    count = READ_SIZE // len(request) + 1000  # more than the event loop reads at a time
    body = b'{"title": "behind them all"}'
    last = POST + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    with connected(url) as connection:
        received = send_and_receive(connection, request * count + last)
    assert received.count(b"HTTP/1.1 200 OK") == count
    assert received.count(b"HTTP/1.1 201 Created") == 1
    assert MAX_PIPELINED <= max(waiting) <= MAX_PIPELINED + PIECE_BYTES // len(request)


@pytest.mark.parametrize("headers", [b"", b"Upgrade:a\r\nConnection:upgrade\r\n"], ids=["plain", "upgrades"])
def test_requests_in_one_piece_with_a_body_wait_unparsed(url: str, waiting: list[int], headers: bytes) -> None:
    count, request = 1300, b"GET /livez HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n"
    body = b'{"title": "before them all%s"}' % (b" " * PIECE_BYTES)  # the body ends in another piece than its head
    first = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with connected(url) as connection:
        received = send_and_receive(connection, first + request * count + last)
    assert received.count(b"HTTP/1.1 201 Created") == 1
    assert received.count(b"HTTP/1.1 200 OK") == count + 1
    assert max(waiting) <= MAX_PIPELINED + PIECE_BYTES // len(request)


def test_pipelined_bodies_over_what_is_read_ahead_are_all_answered(url: str) -> None:
    body = b'{"title": "%s"}' % (b"x" * 5000)
    head = POST + b"Content-Length: %d\r\n" % len(body)
    count = 300
    with connected(url) as connection:
        requests = (head + b"\r\n" + body) * (count - 1) + head + b"Connection: close\r\n\r\n" + body
        received = send_and_receive(connection, requests)
    assert received.count(b"HTTP/1.1 201 Created") == count


def test_body_behind_an_answer_that_looks_for_its_caller_is_not_read_ahead(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export asks after each batch whether its caller is still there, with which uvicorn resumes reading."""
    sizes, on_body = list[int](), BoundedProtocol.on_body

    def recorded(self: BoundedProtocol, body: bytes) -> None:
        on_body(self, body)
        sizes.append(len(self.cycle.body) if self.pipeline else 0)

    monkeypatch.setattr("service.collection.export.BATCH_SIZE", 1)
    monkeypatch.setattr(BoundedProtocol, "on_body", recorded)
    body = (b'{"nobody": 1%s}\n' % (b" " * 200_000)) * 40
    export = b"GET /notes/export HTTP/1.1\r\nHost: localhost\r\n\r\n"
    post = POST.replace(b"application/json", b"application/x-ndjson")
    with connected(url) as connection:
        received = send_and_receive(
            connection, export + post + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
    assert received.count(b'"rejected"') >= 40
    assert 0 < max(sizes) < HIGH_WATER_LIMIT + 2 * READ_SIZE


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("last", ["head", "body"])
def test_time_of_requests_that_wait_unparsed_stands_still(url: str, waiting: list[int], last: str) -> None:
    live = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    body = b'{"title": "%s"}' % (b"x" * 3000)
    post = POST + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    with connected(url) as connection:
        connection.sendall(b"GET /changes?wait=2 HTTP/1.1\r\nHost: localhost\r\n\r\n" + live * (2 * MAX_PIPELINED))
        eventually_true(lambda: max(waiting, default=0) >= MAX_PIPELINED)
        # The first answer takes longer than the bounds on heads and bodies.
        received = send_and_receive(connection, live * 5 + post if last == "head" else post)
    assert received.count(b"HTTP/1.1 200 OK") == 1 + 2 * MAX_PIPELINED + (5 if last == "head" else 0)
    assert received.count(b"HTTP/1.1 201 Created") == 1
