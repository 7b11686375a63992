"""Requests that are forwarded to another process, and their answers: nothing is lost, added or delayed."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest
import structlog
import uvicorn

from service.access.gate import Gate
from service.api.app import create_reader_process_app
from service.api.forwarding import _send_request
from service.api.http_server import http_config
from service.container import ReadService
from service.interfaces import Clock
from service.lifecycle import Lifecycle
from service.settings import Settings
from service.store.connection import CLOSED
from service.telemetry import Telemetry
from service.tenants import Tenants
from tests.service.api.conftest import Serve, eventually_true

LINES = 2000


@contextlib.contextmanager
def forwarding_process(path: Path) -> Iterator[str]:
    """Run a reader process that knows no tenant, and so forwards everything to a unix socket; yield its address."""
    settings, telemetry, lifecycle = Settings(), Telemetry(), Lifecycle()

    @contextlib.asynccontextmanager
    async def open_reader_process() -> AsyncIterator[Tenants[ReadService]]:
        yield Tenants(cast(Any, None), cast(Any, None), telemetry)

    gate = Gate(None, Clock(), telemetry)
    app = create_reader_process_app(settings, open_reader_process, gate, lifecycle, telemetry, str(path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(http_config(app, settings.shutdown_seconds))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            eventually_true(lambda: lifecycle.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def urls(serve: Serve) -> Iterator[tuple[str, str]]:
    """Addresses of a service, and of a process that forwards everything to it."""
    with tempfile.TemporaryDirectory(prefix="nl-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "service.sock"
        listener.bind(str(path))
        with serve(more_listeners=[listener], max_body_bytes=2**20) as url, forwarding_process(path) as forwarding:
            yield url, forwarding


@pytest.fixture
def clients(urls: tuple[str, str]) -> Iterator[tuple[httpx2.Client, httpx2.Client]]:
    """Clients of the service, and of the process that forwards."""
    with (
        httpx2.Client(base_url=urls[0], timeout=60) as direct,
        httpx2.Client(base_url=urls[1], timeout=60) as forwarded,
    ):
        yield direct, forwarded


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("GET", "/livez", {}),
        ("HEAD", "/livez", {}),
        ("GET", "/notes/a%2Fb%C3%A9?x=%00&y", {}),
        ("GET", "/notes/none/similar", {}),
        ("POST", "/notes", {"content": b"{broken", "headers": {"Content-Type": "application/json"}}),
        ("POST", "/notes", {"content": b"x" * 2**21, "headers": {"Content-Type": "application/json"}}),
        ("POST", "/similar", {"json": {"title": "soup", "k": 2}}),
        ("OPTIONS", "/notes", {}),
        ("DELETE", "/nothing", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_forwarded_answer_is_that_of_the_service(
    clients: tuple[httpx2.Client, httpx2.Client], method: str, path: str, options: dict[str, Any]
) -> None:
    headers = {**options.pop("headers", {}), "X-Request-Id": "mine"}
    direct, forwarded = (client.request(method, path, headers=headers, **options) for client in clients)
    again = clients[1].get("/livez")  # over the same connection, if it was kept open
    assert again.status_code == 200
    assert forwarded.status_code == direct.status_code
    assert [name for name, _ in forwarded.headers.multi_items()].count("date") == 1
    without_date = [
        sorted((name, value) for name, value in answer.headers.multi_items() if name != "date")
        for answer in (direct, forwarded)
    ]
    assert without_date[0] == without_date[1]
    if "recommendation_id" not in direct.text:
        assert forwarded.content == direct.content


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_change_of_a_foreign_page_is_refused_behind_a_reader_process_too(
    clients: tuple[httpx2.Client, httpx2.Client], headers: dict[str, str]
) -> None:
    assert [client.delete("/notes/none", headers=headers).status_code for client in clients] == [403, 403]
    assert [client.delete("/notes/none").status_code for client in clients] == [404, 404]


def begin_stream(connection: socket.socket) -> Callable[[int], None]:
    """Begin to POST a stream of notes; return a function that sends the line with a number."""
    head = "POST /notes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
    connection.sendall(f"{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode())

    def send(number: int) -> None:
        line = json.dumps({"id": f"s{number}", "title": f"line {number % 7}"}).encode() + b"\n"
        connection.sendall(b"%x\r\n%b\r\n" % (len(line), line))

    return send


def test_stream_is_forwarded_in_both_directions(urls: tuple[str, str]) -> None:
    """Results must be read while lines are sent, since together they exceed all buffers on the way."""
    address = httpx2.URL(urls[1])
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        send = begin_stream(connection)

        def send_all() -> None:
            for number in range(LINES):
                send(number)
            connection.sendall(b"0\r\n\r\n")

        sending = threading.Thread(target=send_all)
        sending.start()
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        sending.join()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"log_position") == LINES


def test_stream_of_events_is_forwarded_to_its_end(clients: tuple[httpx2.Client, httpx2.Client]) -> None:
    body = {"title": "noodle soup for two", "count": 2, "policy": "open"}
    with clients[1].stream("POST", "/generate/hashtags/stream", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "event: done" in "".join(answer.iter_text())


def test_body_that_waits_for_100_continue_is_forwarded(urls: tuple[str, str]) -> None:
    address = httpx2.URL(urls[1])
    body = json.dumps({"id": "expected", "title": "soup"}).encode()
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        head = "POST /notes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(1024).startswith(b"HTTP/1.1 201 ")


def test_caller_who_leaves_ends_the_work(
    urls: tuple[str, str], clients: tuple[httpx2.Client, httpx2.Client], eventually: Callable[..., None]
) -> None:
    def left() -> bool:
        lines = clients[0].get("/metrics").text.splitlines()
        return any('_count{code="499",method="POST",route="/notes"}' in line for line in lines)

    address = httpx2.URL(urls[1])
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        send = begin_stream(connection)
        for number in range(100):
            send(number)
        assert connection.recv(1024).startswith(b"HTTP/1.1 200 ")
        assert not left()
    eventually(left)


def test_service_that_does_not_answer_is_told_by_503(tmp_path: Path) -> None:
    with forwarding_process(tmp_path / "none.sock") as url:
        answer = httpx2.post(f"{url}/notes", json={"title": "soup"})
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["instance"] == answer.headers["x-request-id"]


def test_service_that_resets_the_connection_is_told_by_503(tmp_path: Path) -> None:
    path = tmp_path / "resets.sock"
    with socket.socket(socket.AF_UNIX) as listener, forwarding_process(path) as url:
        listener.bind(str(path))
        listener.listen()

        def reset() -> None:
            connection, _ = listener.accept()
            connection.recv(1)  # what was sent and not read makes the close a reset
            connection.close()

        thread = threading.Thread(target=reset)
        thread.start()
        answer = httpx2.post(f"{url}/notes", json={"title": "soup"})
        thread.join()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


@pytest.mark.anyio
async def test_write_to_a_connection_that_uvloop_has_closed_ends_the_sending() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": True}

    def write(data: bytes) -> None:
        raise RuntimeError(f"unable to perform operation on <TCPTransport>; {CLOSED}")

    scope = {"method": "POST", "raw_path": b"/notes", "query_string": b"", "headers": []}
    with structlog.contextvars.bound_contextvars(request_id="a"):
        assert await _send_request(scope, receive, cast(Any, SimpleNamespace(write=write))) is False
