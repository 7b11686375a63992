"""Overload over HTTP, with an engine that the test holds: 429 in time, deadlines, priority, and lists in parts."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from service.admission import FIRST_ESTIMATE
from tests.service.api.conftest import Serve, eventually_true
from tests.service.conftest import WordEngine

WAITING = 3
QUEUE_SECONDS = (WAITING - 0.5) * FIRST_ESTIMATE
"""Room for WAITING notes: the next one is refused."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[WordEngine]:
    """The engine of a service that is started after this."""
    engine = WordEngine()
    monkeypatch.setattr("service.wiring.Engine.load", lambda *arguments, **options: engine)
    yield engine
    engine.gate.set()


class Callers:
    """Callers of a service whose engine is at a note that does not end before `release`."""

    def __init__(self, url: str, engine: WordEngine, threads: ThreadPoolExecutor) -> None:
        self.client = httpx2.Client(base_url=url, timeout=60)
        self.engine = engine
        self._threads = threads
        engine.gate.clear()
        self._plug = self.call("plug", timeout="60")
        eventually_true(lambda: bool(engine.batches))

    def call(self, note_id: str, **headers: str) -> Future[httpx2.Response]:
        return self._threads.submit(self.post, {"id": note_id, "title": note_id}, **headers)

    def queue(self, note_id: str, **headers: str) -> Future[httpx2.Response]:
        """Call; return once the note waits."""
        before = self.waiting()
        answer = self.call(note_id, **headers)
        eventually_true(lambda: self.waiting() > before)
        return answer

    def post(self, body: Any, **headers: str) -> httpx2.Response:
        named = {f"x-request-{name}": value for name, value in headers.items()}
        return self.client.post("/notes", json=body, headers=named)

    def leave(self, body: Any) -> None:
        """Call and close the connection while the note waits; return once the service has seen that."""
        before = self.waiting()
        text = json.dumps(body).encode()
        head = (
            f"POST /notes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
        )
        address = (self.client.base_url.host, self.client.base_url.port or 80)
        with socket.create_connection(address) as connection:
            connection.sendall(head.encode() + text)
            eventually_true(lambda: self.waiting() > before)
        eventually_true(lambda: 'code="499"' in self.client.get("/metrics").text)

    def waiting(self) -> float:
        """Notes that wait for the engine."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("notellm_queue_depth{"))

    def release(self) -> None:
        self.engine.gate.set()
        assert self._plug.result().status_code == 201


@contextmanager
def held(serve: Serve, engine: WordEngine, **settings: Any) -> Iterator[Callers]:
    with serve(**settings) as url, ThreadPoolExecutor(64) as threads:
        callers = Callers(url, engine, threads)
        try:
            yield callers
        finally:
            engine.gate.set()
            callers.client.close()


def test_queue_over_its_seconds_is_429_with_retry_after(serve: Serve, engine: WordEngine) -> None:
    with held(serve, engine, queue_seconds=QUEUE_SECONDS) as callers:
        waiting = [callers.queue(f"n{i}") for i in range(WAITING)]
        refused = callers.post({"title": "too many"})
        assert refused.status_code == 429
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["type"].endswith("/queue-full")
        callers.release()
        assert [answer.result().status_code for answer in waiting] == [201] * WAITING
        assert callers.post({"title": "afterwards"}).status_code == 201


@pytest.mark.parametrize(
    ("path", "body"), [("/notes", "{"), ("/generate", '{"unknown": 1}'), ("/generate/hashtags/stream", "{}")]
)
def test_full_queue_refuses_a_note_before_its_body_is_parsed(
    serve: Serve, engine: WordEngine, path: str, body: str
) -> None:
    with held(serve, engine, queue_seconds=QUEUE_SECONDS) as callers:
        for i in range(WAITING):
            callers.queue(f"n{i}")
        json_type = {"content-type": "application/json"}
        assert callers.client.post(path, content=body, headers=json_type).status_code == 429
        callers.release()
        assert callers.client.post(path, content=body, headers=json_type).status_code in (400, 422)


def test_full_queue_of_single_notes_takes_a_list(serve: Serve, engine: WordEngine) -> None:
    with held(serve, engine, queue_seconds=QUEUE_SECONDS) as callers:
        waiting = [callers.queue(f"n{i}") for i in range(WAITING)]
        assert callers.post({"title": "too many"}).status_code == 429
        listed = callers._threads.submit(callers.post, [{"id": "listed", "title": "a"}])
        eventually_true(lambda: callers.waiting() > WAITING)
        callers.release()
        assert [answer.result().status_code for answer in (*waiting, listed)] == [201] * WAITING + [207]


def test_deadline_of_the_caller_decides_who_waits(serve: Serve, engine: WordEngine) -> None:
    with held(serve, engine) as callers:
        waiting = [callers.queue(f"n{i}") for i in range(WAITING)]
        assert callers.post({"title": "a"}, timeout=f"{2 * QUEUE_SECONDS}").status_code == 429
        waiting.append(callers.queue("patient", timeout="30"))
        callers.release()
        assert [answer.result().status_code for answer in waiting] == [201] * (WAITING + 1)


def test_note_behind_its_deadline_never_reaches_the_model(serve: Serve, engine: WordEngine) -> None:
    with held(serve, engine) as callers:
        late = callers.post({"id": "late", "title": "late"}, timeout="0.3")
        assert (late.status_code, late.json()["type"].rpartition("/")[2]) == (504, "deadline-exceeded")
        callers.release()
        assert callers.post({"id": "next", "title": "next"}).status_code == 201
        assert callers.client.get("/notes/late").status_code == 404
    assert [note.id for note in engine.notes] == ["plug", "next"]


def test_note_of_a_caller_that_left_never_reaches_the_model(serve: Serve, engine: WordEngine) -> None:
    with held(serve, engine) as callers:
        callers.leave({"id": "left", "title": "left"})
        callers.release()
        assert callers.post({"id": "next", "title": "next"}).status_code == 201
        assert 'notellm_dropped_notes_total{reason="left"} 1.0' in callers.client.get("/metrics").text
    assert [note.id for note in engine.notes] == ["plug", "next"]


def test_route_has_a_deadline_where_the_caller_names_none(serve: Serve, engine: WordEngine) -> None:
    with held(serve, engine, interactive_seconds=0.3) as callers:
        assert callers.post({"title": "one"}).status_code == 504
        assert callers.client.post("/similar", json={"title": "one"}).status_code == 504
        several = callers._threads.submit(callers.post, [{"id": "several", "title": "one"}])
        eventually_true(lambda: callers.waiting() > 0)
        callers.release()
        assert several.result().status_code == 207


def test_priority_of_the_caller_is_honoured(serve: Serve, engine: WordEngine) -> None:
    with held(serve, engine, batch_notes=1) as callers:
        answers = [callers.queue("bulk", priority="bulk")]
        answers += [callers.queue("first"), callers.queue("second", priority="interactive")]
        callers.release()
        assert {answer.result().status_code for answer in answers} == {201}
    assert [note.id for note in engine.notes] == ["plug", "first", "second", "bulk"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("timeout", value) for value in ("0", "-1", "soon", "nan", "inf")],
        *[("priority", value) for value in ("high", "")],
    ],
)
@pytest.mark.parametrize("path", ["/notes", "/similar", "/generate", "/generate/hashtags/stream"])
def test_urgency_header_that_is_wrong_is_422(client: httpx2.Client, path: str, name: str, value: str) -> None:
    answer = client.post(path, json={"title": "a"}, headers={f"x-request-{name}": value})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [f"/header/x-request-{name}"]


def test_list_over_the_queue_is_admitted_in_parts(client: httpx2.Client) -> None:
    answer = client.post("/notes", json=[{"id": f"q{i}", "title": "queue"} for i in range(50)])  # queue_notes is 45
    assert answer.status_code == 207
    assert {result["status"] for result in answer.json()["results"]} == {"created"}


def test_list_beside_a_full_queue_is_429_and_stores_nothing(serve: Serve, engine: WordEngine) -> None:
    with held(serve, engine, queue_notes=2) as callers:
        waiting = [callers.queue("a"), callers.queue("b")]
        refused = callers.post([{"id": f"q{i}", "title": "queue"} for i in range(5)])
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        callers.release()
        assert [answer.result().status_code for answer in waiting] == [201, 201]
        assert callers.client.get("/notes/q0").status_code == 404


def test_stream_over_the_queue_is_admitted_in_parts(
    serve: Serve, engine: WordEngine, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    body = b"\n".join(b'{"id": "s%d", "title": "stream"}' % i for i in range(100))
    with serve(queue_notes=3) as url:
        answer = httpx2.post(f"{url}/notes", content=body, headers={"content-type": "application/x-ndjson"}, timeout=60)
    assert answer.text.count('"status":"created"') == 100
