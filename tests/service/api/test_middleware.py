"""Middleware: every request has an id, and no body exceeds its bound, whatever its headers say of type and length."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from starlette.types import Message, Receive, Scope, Send

from service.access.meter import Meter
from service.api.middleware import AnswerFailures, RequestContext
from service.api.request_log import RequestLog
from service.lifecycle import Lifecycle
from service.telemetry import Telemetry
from tests.service.api.conftest import Serve, eventually_true
from tests.service.api.requests import NDJSON, WITH_BODY, send


def test_request_id_is_echoed_if_valid_else_generated(client: httpx2.Client) -> None:
    assert client.get("/livez", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert len(client.get("/livez", headers={"x-request-id": "bad id"}).headers["x-request-id"]) == 32
    answer = client.get("/notes/nobody", headers={"x-request-id": "mine-2"})
    assert answer.json()["instance"] == "mine-2"


@pytest.mark.parametrize(
    "path",
    ["/notes/sample-en-001", "/notes/sample-en-001/similar", "/notes", "/notes/nobody", "/nothing", "/openapi.json"],
)
def test_head_is_answered_as_get_without_a_body(client: httpx2.Client, path: str) -> None:
    got, answer = client.get(path), client.head(path)
    assert (answer.status_code, answer.content) == (got.status_code, b"")
    for name in "content-type", "etag":
        assert answer.headers.get(name) == got.headers.get(name)
    assert client.get("/livez").json() == {"status": "alive"}, "the connection goes on"


def test_head_where_no_get_is_answered_is_refused_and_counted_as_head(client: httpx2.Client) -> None:
    answer = client.head("/similar")
    assert (answer.status_code, answer.headers["allow"], answer.content) == (405, "POST", b"")
    client.head("/notes/sample-en-001")
    labels = '{code="200",method="HEAD",route="/notes/{note_id}"}'
    assert f"notellm_http_request_duration_seconds_count{labels}" in client.get("/metrics").text


@pytest.mark.parametrize("kind", ["application/x-ndjson-but-not", "application/x-ndjson+json", NDJSON])
@pytest.mark.parametrize(("method", "path"), WITH_BODY[1:])
def test_endless_body_of_any_media_type_is_refused(client: httpx2.Client, method: str, path: str, kind: str) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(2**12):  # 256 MiB, of which 1 MiB is accepted, besides what the socket buffers hold
            sent += 1
            yield b" " * 2**16

    body: Any = endless()
    with contextlib.suppress(httpx2.TransportError):  # the service may close while the body is sent
        assert send(client, method, path, body, kind).status_code in (413, 415)
    assert sent < 2**10


@pytest.mark.parametrize("path", ["/similar", "/generate"])
def test_text_of_unknown_length_over_the_bound_is_413(client: httpx2.Client, path: str) -> None:
    chunks: Any = (b" " * 65536 for _ in range(20))
    assert send(client, "POST", path, chunks, "application/json").status_code == 413


def test_note_of_unknown_length_over_the_bound_is_413(client: httpx2.Client) -> None:
    chunks = (b" " * 65536 for _ in range(20))
    answer = client.post("/notes", content=chunks, headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_bodies_that_are_held_back_are_bounded_together(serve: Serve) -> None:
    """A large body is refused while others use up the bound; small ones are never refused."""
    large = b'[{"title": "large", "content": "%s"}]' % (b"a" * 200_000)
    head = b"POST /notes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with (
        serve(max_note_bytes=2**18, max_body_bytes=2**18, max_bodies_bytes=2**18) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
        contextlib.ExitStack() as held,
    ):

        def post_large() -> httpx2.Response:
            return client.post("/notes", content=large, headers={"content-type": "application/json"})

        def refused_beside_one_more() -> bool:
            caller = held.enter_context(socket.create_connection((client.base_url.host, client.base_url.port or 80)))
            caller.sendall(head + b"Content-Length: 260000\r\n\r\n" + b" " * 250_000)
            return post_large().status_code == 429

        eventually_true(refused_beside_one_more)
        answer = post_large()
        assert (answer.headers["retry-after"], answer.json()["type"].rpartition("/")[2]) == ("1", "bodies-full")
        assert client.post("/notes", json={"title": "small"}).status_code == 201
        assert client.get("/limits").json()["max_bodies_bytes"] == 2**18
        assert 'notellm_rejected_total{reason="bodies-full"}' in client.get("/metrics").text
        held.close()
        eventually_true(lambda: post_large().status_code == 207)


def test_unfinished_lines_of_streams_count_as_bodies(serve: Serve) -> None:
    head = b"POST /notes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
    with (
        serve(max_body_bytes=2**20, max_bodies_bytes=2**20) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
        contextlib.ExitStack() as held,
    ):
        bound = client.get("/limits").json()["max_note_bytes"]

        def post(content: bytes) -> Any:
            answer = client.post("/notes", content=content, headers={"content-type": NDJSON})
            assert answer.status_code == 200
            return [json.loads(line) for line in answer.text.splitlines()]

        def refused_beside_one_more() -> bool:
            caller = held.enter_context(socket.create_connection((client.base_url.host, client.base_url.port or 80)))
            caller.sendall(head + b"Content-Length: 9000000\r\n\r\n" + b'{"title": "' + b"x" * (bound // 2))
            return bool(post(b'{"title": "first"}\n{"title": "%s"}' % (b"y" * (bound - 100)))[-1].get("problem"))

        eventually_true(refused_beside_one_more)
        problem = post(b'{"title": "%s"}' % (b"y" * (bound - 100)))[-1]["problem"]
        assert (problem["status"], problem["type"].rpartition("/")[2]) == (429, "bodies-full")
        assert [result["status"] for result in post(b"\n" * 200_000 + b'{"title": "small"}')] == ["created"]
        held.close()
        eventually_true(lambda: "problem" not in post(b'{"title": "%s"}' % (b"y" * (bound - 100)))[-1])


async def break_off(draining: bool) -> list[Message]:
    """Cancel a request as uvicorn does at the end of its shutdown time-out; return what was sent."""

    async def hang(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    sent: list[Message] = []
    lifecycle, telemetry = Lifecycle(), Telemetry()
    lifecycle.draining = draining
    scope = {"type": "http", "method": "POST", "path": "/notes", "headers": []}
    app = AnswerFailures(hang, lifecycle)
    request = asyncio.create_task(
        RequestContext(app, lifecycle, RequestLog(telemetry, Meter(telemetry)))(scope, receive, send)
    )
    await asyncio.sleep(0)
    request.cancel()
    await asyncio.wait({request})
    assert request.cancelled() is not draining
    return sent


def test_request_that_is_broken_off_by_the_end_of_the_process_is_503() -> None:
    head, body = asyncio.run(break_off(draining=True))
    assert head["status"] == 503
    assert {(b"retry-after", b"1"), (b"content-type", b"application/problem+json")} <= set(head["headers"])
    assert b"shutting down" in body["body"]


def test_request_that_is_cancelled_otherwise_stays_so() -> None:
    assert asyncio.run(break_off(draining=False)) == []
