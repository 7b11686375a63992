"""Requests while the service starts: the port is open, probes name the step of the start, all else is 503."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from model.generation import GenerationOutput, GenerationRequest
from model.note import Note
from service.records import StoredNote, Unreadable
from service.store.redis_store import RedisNoteStore
from service.wiring import Engine
from tests.service.api.conftest import Serve, eventually_true

BOOTSTRAP_KEY = "the-bootstrap-key-of-these-tests"
REQUESTS = [
    ("GET", "/notes/a"),
    ("GET", "/notes/a/similar"),
    ("DELETE", "/notes/a"),
    ("GET", "/limits"),
    ("POST", "/verify"),
    ("POST", "/notes"),
    ("PUT", "/notes/a"),
    ("PATCH", "/notes/a"),
    ("POST", "/similar"),
    ("POST", "/generate"),
    ("POST", "/generate/hashtags/stream"),
]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Event that a start waits for."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def slow_model(gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the model only once the gate opens."""
    load: Callable[..., Engine] = Engine.load

    def load_behind_gate(*arguments: Any, **options: Any) -> Engine:
        assert gate.wait(60)
        return load(*arguments, **options)

    monkeypatch.setattr("service.wiring.Engine.load", load_behind_gate)


def starting(client: httpx2.Client, step: str) -> None:
    """Return once both probes name this step of the start."""
    eventually_true(lambda: client.get("/startupz").json()["detail"] == step)
    probes = client.get("/startupz"), client.get("/readyz")
    assert [probe.status_code for probe in probes] == [503, 503]
    assert probes[1].json()["ready"] is False
    assert probes[1].json()["checks"] == {"start": {"ok": False, "detail": step}}


@pytest.mark.usefixtures("slow_model")
def test_probes_are_answered_while_the_model_loads(serve: Serve, gate: threading.Event) -> None:
    with serve(wait=False) as url, httpx2.Client(base_url=url, timeout=30) as client:
        starting(client, "Loading the model")
        assert client.get("/livez").status_code == 200
        assert 'route="/livez"' in client.get("/metrics").text
        gate.set()
        eventually_true(lambda: client.get("/startupz").status_code == 200)
        assert client.get("/readyz").status_code == 200
        assert client.post("/notes", json={"title": "afterwards"}).status_code == 201


def test_process_is_not_ready_before_the_model_has_run_once(
    serve: Serve, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate: Callable[..., list[GenerationOutput]] = Engine.generate
    requests: list[GenerationRequest] = []

    def generate_behind_gate(engine: Engine, notes: list[Note], request: GenerationRequest) -> list[GenerationOutput]:
        requests.append(request)
        assert gate.wait(60)
        return generate(engine, notes, request)

    monkeypatch.setattr("service.wiring.Engine.generate", generate_behind_gate)
    with serve(wait=False) as url, httpx2.Client(base_url=url, timeout=30) as client:
        starting(client, "Warming up the model")
        gate.set()
        eventually_true(lambda: client.get("/readyz").status_code == 200)
    assert [bool(request.hashtags) for request in requests] == [True, True]


def test_start_fails_where_the_model_does(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(engine: Engine, notes: list[Note], request: GenerationRequest) -> list[GenerationOutput]:
        raise RuntimeError("the graph has no such input")

    monkeypatch.setattr("service.wiring.Engine.generate", fail)
    with capture_logs() as lines, serve(wait=False) as url, httpx2.Client(base_url=url, timeout=30) as client:
        eventually_true(lambda: "start_failed" in [line["event"] for line in lines])
        assert client.get("/readyz").status_code == 503
    assert [line["detail"] for line in lines if line["event"] == "start_failed"] == ["the graph has no such input"]


@pytest.mark.usefixtures("slow_model")
def test_requests_during_a_start_are_503_with_retry_after(serve: Serve, gate: threading.Event) -> None:
    with serve(wait=False) as url, httpx2.Client(base_url=url, timeout=30) as client:
        for method, path in REQUESTS:
            body = {"json": {"title": "too early"}} if method.startswith("P") and path != "/verify" else {}
            answer = client.request(method, path, **body)
            assert answer.status_code == 503, path
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["type"].endswith("/starting")
        gate.set()


def test_requests_during_a_start_use_no_quota(
    serve: Serve, gate: threading.Event, guarded_redis: Any, request: pytest.FixtureRequest
) -> None:
    settings = {"redis_url": guarded_redis.url, "bootstrap_key": BOOTSTRAP_KEY}
    with serve(**settings) as url, httpx2.Client(base_url=url, timeout=30) as client:
        key = {"name": "few", "scopes": ["notes.read"], "quota": {"requests_per_minute": 2}}
        headers = {"authorization": f"Bearer {BOOTSTRAP_KEY}"}
        token = client.post("/keys", json=key, headers=headers).json()["key"]
    request.getfixturevalue("slow_model")
    headers = {"authorization": f"Bearer {token}"}
    with serve(wait=False, **settings) as url, httpx2.Client(base_url=url, timeout=30, headers=headers) as client:
        starting(client, "Loading the model")
        assert [client.get("/notes/a").status_code for _ in range(3)] == [503] * 3
        gate.set()
        eventually_true(lambda: client.get("/startupz").status_code == 200)
        assert [client.get("/notes/a").status_code for _ in range(3)] == [404, 404, 429]


@pytest.mark.usefixtures("slow_model")
def test_service_can_be_ended_while_it_starts(serve: Serve) -> None:
    with serve(wait=False) as url, httpx2.Client(base_url=url, timeout=30) as client:
        starting(client, "Loading the model")
    loading = [thread for thread in threading.enumerate() if thread.name.startswith("load-engine")]
    assert loading  # the end has not waited for the model
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/livez")


@pytest.fixture
def slowly_read_redis(serve: Serve, guarded_redis: Any, gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of a store with three notes, whose scan for the index ends once the gate opens."""
    with serve(redis_url=guarded_redis.url) as url:
        for i in range(3):
            assert httpx2.post(f"{url}/notes", json={"id": f"n{i}", "title": f"note {i}"}).status_code == 201
    scan = RedisNoteStore.scan

    async def scan_behind_gate(store: RedisNoteStore) -> AsyncIterator[list[StoredNote | Unreadable]]:
        async for notes in scan(store):
            yield notes
            await asyncio.to_thread(gate.wait, 60)

    monkeypatch.setattr(RedisNoteStore, "scan", scan_behind_gate)
    return guarded_redis.url


def test_readyz_counts_the_notes_that_the_index_reads(
    serve: Serve, slowly_read_redis: str, gate: threading.Event
) -> None:
    with serve(wait=False, redis_url=slowly_read_redis) as url, httpx2.Client(base_url=url, timeout=30) as client:
        eventually_true(lambda: "3 of about" in client.get("/startupz").json()["detail"])
        detail = client.get("/readyz").json()["checks"]["start"]["detail"]
        assert detail.startswith("Building the index from the store: 3 of about ")
        gate.set()
        eventually_true(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/readyz").json()["notes"] == 3


def test_caller_without_a_key_is_not_told_how_far_the_start_is(
    serve: Serve, slowly_read_redis: str, gate: threading.Event
) -> None:
    settings = {"redis_url": slowly_read_redis, "bootstrap_key": BOOTSTRAP_KEY}
    with serve(wait=False, **settings) as url, httpx2.Client(base_url=url, timeout=30) as client:
        root = {"Authorization": f"Bearer {BOOTSTRAP_KEY}"}
        eventually_true(lambda: "3 of about" in client.get("/startupz", headers=root).json()["detail"])
        starting(client, "Building the index from the store")
        assert "3 of about" not in client.get("/notes/a").json()["detail"]
        gate.set()
        eventually_true(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/readyz").json()["checks"]["index"]["detail"] == "follows the log"


def test_readyz_counts_the_sample_notes_of_a_first_start(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr("service.wiring.Lifecycle.report", lambda lifecycle, step, how_far=None: steps.append(step))
    with serve(sample_notes=20):
        pass
    assert [step for step in steps if "sample" in step] == [
        "Adding sample notes (first start only): 0 of 20",
        "Adding sample notes (first start only): 16 of 20",
    ]
