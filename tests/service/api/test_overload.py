"""Overload over HTTP, with an engine that the test stops: early 429, deadlines, priority, and lists in parts."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog

from service.admission import FIRST_ESTIMATE
from service.api.ingest_stream import STREAM_BATCH_SIZE
from service.api.protocol import BoundedProtocol
from tests.service.api.conftest import Serve, eventually_true
from tests.service.api.connections import SHORT, connected, readable
from tests.service.api.test_forwarding import forwarding_process
from tests.service.conftest import WordEngine

WAITING = 3
QUEUE_SECONDS = (WAITING - 0.5) * FIRST_ESTIMATE
"""Room for WAITING notes: the next one is refused."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[WordEngine]:
    """Engine that services started after this use."""
    engine = WordEngine()
    monkeypatch.setattr("service.wiring.Engine.load", lambda *arguments, **options: engine)
    monkeypatch.setattr("service.wiring.first_estimate", lambda *arguments: FIRST_ESTIMATE)
    yield engine
    engine.gate.set()


class Callers:
    """Callers of a service whose engine is busy with one note until `release`."""

    def __init__(
        self, url: str, engine: WordEngine, threads: ThreadPoolExecutor, headers: dict[str, str] | None = None
    ) -> None:
        self.client = httpx2.Client(base_url=url, timeout=60, headers=headers)
        self.engine = engine
        self._threads = threads
        engine.gate.clear()
        self._plug = self.call("plug", timeout="60")
        eventually_true(lambda: bool(engine.batches))

    def call(self, note_id: str, **headers: str) -> Future[httpx2.Response]:
        return self._threads.submit(self.post, {"id": note_id, "title": note_id}, **headers)

    def queue(self, note_id: str, **headers: str) -> Future[httpx2.Response]:
        """Start a call; return once its note is queued."""
        before = self.waiting()
        answer = self.call(note_id, **headers)
        eventually_true(lambda: self.waiting() > before)
        return answer

    def post(self, body: Any, **headers: str) -> httpx2.Response:
        named = {f"x-request-{name}": value for name, value in headers.items()}
        return self.client.post("/notes", json=body, headers=named)

    def leave(self, body: Any) -> None:
        """Call, and close the connection while the note is queued; return once the service has noticed."""
        before = self.waiting()
        text = json.dumps(body).encode()
        head = (
            "POST /notes HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(text)}\r\n\r\n"
        )
        address = (self.client.base_url.host, self.client.base_url.port or 80)
        with socket.create_connection(address) as connection:
            connection.sendall(head.encode() + text)
            eventually_true(lambda: self.waiting() > before)
        eventually_true(lambda: 'code="499"' in self.client.get("/metrics").text)

    def waiting(self) -> float:
        """Return the number of notes that wait for the engine."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("notellm_queue_depth{"))

    def release(self) -> None:
        self.engine.gate.set()
        assert self._plug.result().status_code == 201


@contextmanager
def held(serve: Serve, engine: WordEngine, headers: dict[str, str] | None = None, **settings: Any) -> Iterator[Callers]:
    with serve(**settings) as url, ThreadPoolExecutor(64) as threads:
        callers = Callers(url, engine, threads, headers)
        try:
            yield callers
        finally:
            engine.gate.set()
            threads.shutdown()  # lets the callers get their answers before their client is closed
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


@contextmanager
def full(serve: Serve, engine: WordEngine, headers: dict[str, str] | None = None, **settings: Any) -> Iterator[Callers]:
    """Callers of a service whose queue has no room for another note."""
    with held(serve, engine, headers, queue_seconds=QUEUE_SECONDS, **settings) as callers:
        for i in range(WAITING):
            callers.queue(f"n{i}")
        yield callers


def exchange(callers: Callers, *requests: bytes) -> bytes:
    """Send raw requests on one connection, one at a time; return all bytes received until the service closes it, or
    until each request has an answer."""
    received = b""
    address = (callers.client.base_url.host, callers.client.base_url.port or 80)
    with socket.create_connection(address, timeout=30) as connection:
        for count, request in enumerate(requests, 1):
            connection.sendall(request)
            while received.count(b"HTTP/1.1 ") < count or not received.endswith(b"}"):
                part = connection.recv(65536)
                received += part
                if not part:
                    return received
        return received


def note_request(version: str = "1.1", body: bytes = b'{"title": "a"}', **headers: str) -> bytes:
    lines = [
        f"POST /notes HTTP/{version}",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join((*lines, "", "")).encode() + body


def test_stream_of_hashtags_is_refused_before_it_begins(serve: Serve, engine: WordEngine) -> None:
    with full(serve, engine) as callers:
        headers = {
            "Origin": "https://a.example"
        }  # from a web page, for which the app answers instead of the early refusal
        refused = callers.client.post("/generate/hashtags/stream", json={"title": "a"}, headers=headers)
    assert (refused.status_code, refused.json()["type"].rpartition("/")[2]) == (429, "queue-full")
    assert int(refused.headers["retry-after"]) >= 1


def test_refusal_has_the_request_s_id_and_counts(serve: Serve, engine: WordEngine) -> None:
    with full(serve, engine) as callers:
        headers = {"x-request-id": "mine", "content-type": "application/json"}
        refused = callers.client.post("/notes", content=b"{", headers=headers)
        assert (refused.headers["x-request-id"], refused.json()["instance"]) == ("mine", "mine")
        metrics = callers.client.get("/metrics").text
    assert 'request_duration_seconds_count{code="429",method="POST",route="/notes"} 1.0' in metrics
    assert 'notellm_rejected_total{reason="queue-full"} 1.0' in metrics


def test_refusals_that_no_line_has_counted_are_logged_at_the_end(serve: Serve, engine: WordEngine) -> None:
    with structlog.testing.capture_logs() as lines:
        with full(serve, engine) as callers:
            for _ in range(5):
                assert callers.post({"title": "a"}).status_code == 429
        counts = [line["requests"] for line in lines if line["event"] == "requests_refused"]
    assert counts == [1, 4]


def test_refusals_are_logged_once_and_counted_at_intervals(
    serve: Serve, engine: WordEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.early_refusal.REFUSED_LINE_SECONDS", 0.2)
    with structlog.testing.capture_logs() as lines, full(serve, engine) as callers:
        for _ in range(20):
            assert callers.post({"title": "a"}).status_code == 429

        def counts() -> list[int]:
            return [line["requests"] for line in list(lines) if line["event"] == "requests_refused"]

        eventually_true(lambda: sum(counts()) == 20)
        assert counts()[0] == 1
        assert not [line for line in lines if line["event"] == "request" and line["status"] == 429]


def test_refused_connection_is_kept(serve: Serve, engine: WordEngine) -> None:
    with full(serve, engine) as callers:
        answers = exchange(callers, note_request(), note_request(), b"GET /limits HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"429", b"429", b"200"]


def test_refused_connection_is_closed_where_the_caller_wants_that(serve: Serve, engine: WordEngine) -> None:
    with full(serve, engine) as callers:
        answers = [
            exchange(callers, request, b"") for request in (note_request("1.0"), note_request(connection="close"))
        ]
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 429"] * 2
    assert all(b"\r\nconnection: close\r\n" in answer for answer in answers)


def test_head_behind_a_refusal_has_its_bound_in_time(
    serve: Serve, engine: WordEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full(serve, engine) as callers:
        monkeypatch.setattr("service.api.protocol.HEAD_SECONDS", 1.0)
        monkeypatch.setattr("service.api.connection_watch.CHECK_SECONDS", 0.02)
        answers = exchange(callers, note_request(), b"GET /livez HTTP/1.1\r\n")
    assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"429", b"408"]


def test_request_that_is_wrong_anyway_is_told_so_by_a_full_queue(serve: Serve, engine: WordEngine) -> None:
    with full(serve, engine) as callers:
        for header, value, status in (
            ("x-request-timeout", "soon", 422),
            ("x-request-priority", "high", 422),
            ("if-match", "no-etag", 400),
            ("content-type", "text/plain", 415),
            ("content-encoding", "gzip", 415),
        ):
            headers = {"content-type": "application/json", header: value}
            answer = callers.client.post("/notes", content=b'{"title": "a"}', headers=headers)
            assert (header, answer.status_code) == (header, status)


def test_note_over_its_bound_is_413_by_a_full_queue(serve: Serve, engine: WordEngine) -> None:
    with full(serve, engine, max_note_bytes=2**12) as callers:
        assert callers.post({"title": "a" * 2**13}).status_code == 413


def test_full_queue_tells_nothing_to_a_caller_without_a_key(serve: Serve, engine: WordEngine) -> None:
    bootstrap = {"authorization": "Bearer " + "k" * 32}
    with full(serve, engine, bootstrap, bootstrap_key="k" * 32) as callers:
        keys = [
            callers.client.post("/keys", json={"name": "one", "scopes": [scope]}).json()["key"]
            for scope in ("notes.read", "notes.write")
        ]
        refused = [
            callers.client.post("/notes", json={"title": "a"}, headers={"authorization": f"Bearer {key}"})
            for key in ("x" * 32, *keys, "k" * 32)
        ]
    assert [answer.status_code for answer in refused] == [401, 403, 429, 429]


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


@pytest.mark.parametrize("path", ["/similar", "/notes/plug/similar"])
def test_search_of_several_texts_waits_behind_single_notes(serve: Serve, engine: WordEngine, path: str) -> None:
    body = {"positive": [{"title": "several"}, {"title": "texts"}], "negative": [{"title": "others"}]}
    with held(serve, engine, batch_notes=1) as callers:
        search = callers._threads.submit(callers.client.post, path, json=body)
        eventually_true(lambda: callers.waiting() == 3)
        single = callers.queue("single")
        callers.release()
        assert (search.result().status_code, single.result().status_code) == (200, 201)
    assert [note.title for note in engine.notes] == ["plug", "single", "several", "texts", "others"]


@pytest.mark.parametrize("fails", ["queue", "model"])
def test_batch_that_the_model_cannot_read_answers_its_searches_without_texts(
    serve: Serve, engine: WordEngine, fails: str
) -> None:
    by_text, by_id, bad = {"title": "several"}, {"positive": [{"note_id": "first"}]}, {"k": 0}
    mixed = {"positive": [{"note_id": "first"}], "negative": [{"title": "others"}]}
    status, name = (429, "queue-full") if fails == "queue" else (503, "engine-failed")
    with serve(queue_notes=1) as url, ThreadPoolExecutor(4) as threads:
        for note_id in ("first", "second"):
            assert httpx2.post(f"{url}/notes", json={"id": note_id, "title": note_id}).status_code == 201
        engine.batches.clear()
        callers = Callers(url, engine, threads)
        if fails == "queue":
            waiting = callers.queue("waits")
        else:
            callers.release()
            engine.failure = RuntimeError("out of memory")
        answer = callers.client.post("/similar/batch", json=[by_text, by_id, bad, mixed, by_id])
        only_texts = callers.client.post("/similar/batch", json=[by_text, bad, mixed])
        if fails == "queue":
            callers.release()
            assert waiting.result().status_code == 201
        callers.client.close()
    assert answer.status_code == 207, answer.text
    results = answer.json()["results"]
    assert [result["status"] for result in results] == [status, 200, 422, status, 200]
    for place in (0, 3):
        assert results[place]["problem"]["type"].endswith(f"/{name}")
        assert results[place]["problem"]["retry_after"] >= 1
    assert results[1]["answer"]["items"][0]["id"] == "second"
    assert only_texts.status_code == status
    assert int(only_texts.headers["retry-after"]) >= 1


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


def test_repeats_of_a_write_that_waits_are_409_and_one_note_is_stored(serve: Serve, engine: WordEngine) -> None:
    with held(serve, engine) as callers, ThreadPoolExecutor(1) as threads:

        def post() -> httpx2.Response:
            return callers.client.post("/notes", json={"title": "once"}, headers={"Idempotency-Key": "once"})

        first = threads.submit(post)
        eventually_true(lambda: callers.waiting() > 0)
        repeats = [post() for _ in range(5)]
        assert [answer.status_code for answer in repeats] == [409] * 5
        assert all(int(answer.headers["retry-after"]) > 0 for answer in repeats)
        callers.release()
        stored = first.result()
        assert stored.status_code == 201
        assert post().json() == stored.json()


def test_first_hashtag_is_streamed_while_the_engine_is_at_the_next(
    serve: Serve, engine: WordEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = engine.step, 0

    def held_after_two() -> Any:
        nonlocal steps
        ended = step()
        steps += 1
        if steps == 2:  # the first one gives no hashtag
            engine.gate.clear()
        return ended

    monkeypatch.setattr(engine, "step", held_after_two)
    body = {"title": "noodle soup for two", "count": 3, "policy": "open"}
    with serve() as url, httpx2.stream("POST", f"{url}/generate/hashtags/stream", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: hashtag"
        assert not engine.gate.is_set()
        engine.gate.set()
        assert "event: done" in list(lines)


STREAM = (
    b"POST /notes HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk_of(count: int) -> bytes:
    """Return a chunk of a body with `count` notes, one a line."""
    lines = b"".join(b'{"id":"s%d","title":"streamed"}\n' % number for number in range(count))
    return b"%x\r\n%b\r\n" % (len(lines), lines)


@contextmanager
def reached(serve: Serve, forwarded: bool) -> Iterator[tuple[str, str]]:
    """Run a service; yield its address, and the one to call: the same, or that of a process that forwards
    everything."""
    with tempfile.TemporaryDirectory(prefix="nl-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "service.sock"
        listener.bind(str(path))
        with serve(more_listeners=[listener]) as url, forwarding_process(path) as forwarding:
            yield url, forwarding if forwarded else url


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("forwarded", [False, True])
def test_stream_that_the_engine_keeps_waiting_is_not_timed_out(
    serve: Serve, engine: WordEngine, forwarded: bool
) -> None:
    """The caller sends a line, and waits for its result before it sends more."""
    with reached(serve, forwarded) as (_, url), connected(url) as connection:
        engine.batches.clear()  # of the start
        engine.gate.clear()
        connection.sendall(STREAM + chunk_of(1))
        eventually_true(lambda: bool(engine.batches))
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        closed_early = readable(connection, 4 * SHORT)
        engine.gate.set()
        assert not closed_early
        while b'"status":"created"' not in received:
            part = connection.recv(65536)
            assert part, received
            received += part
        connection.sendall(b"0\r\n\r\n")


@pytest.mark.parametrize("forwarded", [False, True])
def test_stream_whose_caller_leaves_ends_with_the_batch_in_progress(
    serve: Serve, engine: WordEngine, forwarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, leave = set[BoundedProtocol](), BoundedProtocol._leave

    def recorded(protocol: BoundedProtocol) -> None:
        left.update([protocol] if protocol._pending else [])
        leave(protocol)

    monkeypatch.setattr(BoundedProtocol, "_leave", recorded)
    with reached(serve, forwarded) as (direct, url), httpx2.Client(base_url=direct) as client:
        engine.batches.clear()  # of the start
        engine.gate.clear()
        with connected(url) as connection:
            connection.sendall(STREAM + chunk_of(3 * STREAM_BATCH_SIZE))
            eventually_true(lambda: bool(engine.batches))
        try:
            eventually_true(lambda: len(left) == (2 if forwarded else 1))
        finally:
            engine.gate.set()
        eventually_true(lambda: '_count{code="499",method="POST",route="/notes"}' in client.get("/metrics").text)
        assert client.get("/readyz").json()["notes"] == STREAM_BATCH_SIZE
