"""SIGKILL of the service during POST /notes/import and POST /notes/delete: no acknowledged change is lost, and a
repeated call does the rest."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
import pytest

from tests.service.process import Process, running

pytestmark = pytest.mark.slow
BATCH_SIZE, BATCHES = 1000, 2
NOTES = BATCH_SIZE * BATCHES


@pytest.fixture(scope="module")
def process(tiny_checkpoint: Path) -> Iterator[Process]:
    with running(tiny_checkpoint, NOTELLM_MAX_BATCH_NOTES=str(BATCH_SIZE)) as started:
        yield started


def client_of(process: Process) -> httpx2.Client:
    return httpx2.Client(base_url=process.url, timeout=60)


def batches(client: httpx2.Client, author: str) -> list[list[dict[str, Any]]]:
    """Return batches of an author's notes to import, with vectors of the service's space."""
    head = orjson.loads(client.get("/notes/export").text.splitlines()[0])
    vectors = np.random.default_rng(0).normal(size=(NOTES, head["dimension"]))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    notes = [
        {"id": f"{author}{number}", "title": f"title {number}", "author": author, "space": head["space"], "vector": row}
        for number, row in enumerate(vectors.tolist())
    ]
    return [notes[begin : begin + BATCH_SIZE] for begin in range(0, NOTES, BATCH_SIZE)]


def kill_within(process: Process, path: str, body: Any) -> None:
    """Send a request, kill the service once the request's first change is in the log, and start it again."""

    def send() -> None:
        with contextlib.suppress(httpx2.TransportError), client_of(process) as own:
            own.post(path, json=body)

    with client_of(process) as client:
        end = client.get("/changes").json()["log_position"]
        sender = threading.Thread(target=send)
        sender.start()
        changes = client.get("/changes", params={"after": end, "wait": 30}).json()["changes"]
        process.end(signal.SIGKILL)
        sender.join()
    assert changes
    process.start()


def count(client: httpx2.Client, author: str) -> int:
    """Return the number of an author's notes that a removal would remove."""
    body = {"filter": {"author": author}, "dry_run": True}
    found: int = client.post("/notes/delete", json=body).json()["count"]
    return found


def missing(client: httpx2.Client, ids: list[str]) -> list[str]:
    found: list[str] = client.post("/notes/get", json={"ids": ids}).json()["missing"]
    return found


def test_kill_within_an_import_loses_nothing_and_a_repeated_one_does_the_rest(process: Process) -> None:
    with client_of(process) as client:
        first, second = batches(client, "ann")
        results = client.post("/notes/import", json=first).json()["results"]
        assert {result["status"] for result in results} == {"created"}
    kill_within(process, "/notes/import", second)
    with client_of(process) as client:
        assert missing(client, [note["id"] for note in first]) == []
        imported = count(client, "ann") - BATCH_SIZE
        assert 0 < imported <= BATCH_SIZE
        statuses = [result["status"] for result in client.post("/notes/import", json=second).json()["results"]]
        assert (statuses.count("exists"), statuses.count("created")) == (imported, BATCH_SIZE - imported)
        assert count(client, "ann") == NOTES


@pytest.mark.parametrize("by", ["filter", "ids"])
def test_kill_within_a_removal_brings_nothing_back_and_a_repeated_one_does_the_rest(process: Process, by: str) -> None:
    author = f"by-{by}-"
    with client_of(process) as client:
        for batch in batches(client, author):
            assert client.post("/notes/import", json=batch).status_code == 207
        client.post("/notes", json={"id": f"stays-{by}", "title": "of another author", "author": "tom"})
        removed = [f"{author}{number}" for number in range(2)]
        assert client.post("/notes/delete", json={"ids": removed}).json()["count"] == len(removed)
    what: Any = {"filter": {"author": author}}
    stay = 0
    if by == "ids":
        what = {"ids": [f"{author}{number}" for number in range(BATCH_SIZE)]}
        stay = NOTES - BATCH_SIZE
    kill_within(process, "/notes/delete", what)
    with client_of(process) as client:
        left = count(client, author) - stay
        assert 0 <= left < NOTES - stay - len(removed)
        assert client.post("/notes/delete", json=what).json()["count"] == left
        assert count(client, author) == stay
        assert missing(client, [f"stays-{by}", *removed]) == removed
