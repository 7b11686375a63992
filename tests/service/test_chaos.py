"""Chaos tests: SIGKILL of the service, of its Redis, or of both, at random moments under mixed load, after which every
acknowledged operation is checked; and three replicas, one of which is stopped now and then. `make chaos` runs 1,000
rounds and prints what it did; here there are few.

Growing segments are small and snapshots frequent, so that segments are sealed, merged and written all the time.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
import pytest

from service import read_time, wiring
from service.api import search_list, waiting
from service.collection import log_order
from service.index import live
from service.index.segmented import SegmentedIndex
from tests.service.conftest import DebianRedis
from tests.service.process import START_PAUSE, START_SECONDS, Process, alive, serve, wait_until

ROUNDS = int(os.environ.get("NOTELLM_CHAOS_ROUNDS", "25"))
SEED = int(os.environ.get("NOTELLM_CHAOS_SEED", "0"))
WRITERS, NOTES_EACH = 3, 40
READ_ALONE = 3
"""Notes of a writer that are also read one by one after a kill."""
SCOPES = ["notes.read", "notes.write", "similar", "admin"]
TENANTS, BOOTSTRAP_KEY = 2, "the-bootstrap-key-of-these-tests"
WORDS = ("soup", "lemon", "hike", "kyoto", "yarn", "bread", "river", "lamp", "winter", "song", "cloud", "garden")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 30 * ROUNDS)]
GONE = None
State = str | None
"""A note's title, or GONE."""


def serve_fragile(environment: Mapping[str, str], log: Path) -> None:
    """Serve with growing segments of eight rows, and with time enough that a busy machine degrades no answer."""
    with contextlib.ExitStack() as changed:
        for module in (read_time, waiting, search_list, log_order, live):
            changed.enter_context(patch.object(module, "READ_SECONDS", 60.0))
        changed.enter_context(patch.object(wiring, "SegmentedIndex", partial(SegmentedIndex, growing_rows=8)))
        serve(environment, log)


class Fragile(Process):
    """A service with small growing segments and frequent snapshots."""

    serve = staticmethod(serve_fragile)

    def __init__(self, folder: Path, checkpoint: Path, **settings: str) -> None:
        super().__init__(folder, checkpoint)
        often = {"NOTELLM_SNAPSHOT_SECONDS": "0.1", "NOTELLM_LOG_FORMAT": "json"}
        self.environment |= often | {f"NOTELLM_{name.upper()}": value for name, value in settings.items()}

    def events(self, name: str) -> int:
        """Return the number of log lines with an event."""
        return (self.folder / "log").read_text().count(f'"event": "{name}"')


@dataclass
class Writer:
    """One client with its own notes. `known`: the acknowledged state of each; `open`: further states that it may have,
    after writes whose answers never came or are on their way."""

    name: str
    url: str
    chance: random.Random
    known: dict[str, State] = field(default_factory=dict)
    open: dict[str, set[State]] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    key: str = ""
    """API key of the client; "" for none."""

    def work(self, stop: threading.Event) -> None:
        with self.client() as client:
            while not stop.is_set():
                if not self.step(client):
                    stop.wait(0.05)

    def client(self) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx2.Client(base_url=self.url, timeout=60, headers=headers)

    def step(self, client: httpx2.Client) -> bool:
        """Send one random request, and return whether it was answered and not refused."""
        note_id = f"{self.name}-{self.chance.randrange(NOTES_EACH)}"
        kind = self.chance.choice(["put", "put", "put", "patch", "delete", "similar"])
        title = " ".join([note_id, *self.chance.choices(WORDS, k=6)])
        wanted: State = GONE if kind == "delete" else title
        try:
            if kind == "similar":
                found = client.get(f"/notes/{note_id}/similar", params={"k": 200})
                self.look(found)
                return found.status_code in (200, 404)
            method = {"put": "PUT", "patch": "PATCH", "delete": "DELETE"}[kind]
            before = {self.known.get(note_id), *self.open.get(note_id, ())}
            self.open[note_id] = before | {wanted}
            answer = client.request(method, f"/notes/{note_id}", json={"title": title} if wanted else None)
        except httpx2.HTTPError:
            self.done["unanswered"] += 1
            return False
        missing = answer.status_code == 404 and kind != "put"
        if answer.is_success or missing:
            del self.open[note_id]
            if missing and GONE not in before:
                self.wrong.append(f"{note_id} is not there")
            self.known[note_id] = GONE if missing else wanted
            self.done[kind] += 1
            return True
        self.done["refused"] += 1
        return False

    def look(self, answer: httpx2.Response) -> None:
        """Record each item of `answer` that is a removed note of this writer. The writer does not write meanwhile."""
        self.done["similar"] += answer.is_success
        if answer.is_success and not answer.json()["degraded"]:
            ids = {item["id"] for item in answer.json()["items"]} - self.open.keys()
            own = [i for i in ids if i.startswith(f"{self.name}-")]
            self.wrong += [f"{i} came back" for i in own if self.known.get(i) is GONE]

    def settle(self, client: httpx2.Client) -> Iterator[str]:
        """Yield a problem for each note that is not in an allowed state; then take the states found as known."""
        yield from self.wrong
        ids = sorted(self.known.keys() | self.open.keys())
        if not ids:
            return
        answer = answer_of(client.post("/notes/get", json={"ids": ids}))
        states: dict[str, State] = {note["id"]: note["title"] for note in answer["notes"]}
        states |= dict.fromkeys(answer["missing"], GONE)
        assert (sorted(states), answer["unreadable"]) == (ids, []), answer
        for note_id in self.chance.sample(ids, min(READ_ALONE, len(ids))):
            alone = client.get(f"/notes/{note_id}")
            assert alone.status_code in (200, 404), alone.text
            title: State = alone.json()["title"] if alone.status_code == 200 else GONE
            if title != states[note_id]:
                yield f"{note_id} is {title!r}, and among others {states[note_id]!r}"
        for note_id, found in states.items():
            allowed = {self.known.get(note_id), *self.open.get(note_id, ())}
            if found not in allowed:
                yield f"{note_id} is {found!r} and not one of {allowed}"
            self.known[note_id] = found
        self.open.clear()


def hurt(service: Fragile, what: str, loading: float) -> None:
    """Kill `what`, and return once the service is ready again. `loading`: seconds into its start after which it is
    killed once more; 0 for never."""
    redis = service.redis_pid()
    if what in ("redis", "both"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(redis, signal.SIGKILL)
    if what in ("service", "both"):
        service.end(signal.SIGKILL)
        wait_until(lambda: not alive(redis))
        if loading:
            service.begin()
            time.sleep(loading)  # a random moment
            service.end(signal.SIGKILL)
        service.start()
    wait_until(service.ready)


def answer_of(response: httpx2.Response) -> Any:
    """Return the body of a response, which must have status 200."""
    assert response.status_code == 200, response.text
    return response.json()


def check(client: httpx2.Client, writers: list[Writer], chance: random.Random) -> list[str]:
    """Return all problems of the service. Nobody may write meanwhile."""
    problems = [problem for writer in writers for problem in writer.settle(client)]
    there = {note_id: title for writer in writers for note_id, title in writer.known.items() if title is not GONE}
    report = answer_of(client.post("/verify"))
    if not report["well"] or report["rows"] != len(there):
        problems.append(f"verify: {json.dumps(report)} with {len(there)} notes")
    for note_id in chance.sample(sorted(there), min(3, len(there))):
        found = answer_of(client.get(f"/notes/{note_id}/similar", params={"k": 200}))
        if {item["id"] for item in found["items"]} != there.keys() - {note_id}:
            problems.append(f"similar to {note_id}: {found}")
        best = answer_of(client.post("/similar", json={"title": there[note_id], "k": 1}))["items"][0]
        if best["id"] != note_id or best["score"] < 0.9999:
            problems.append(f"the vector of {note_id} is not that of its title: {best}")
    return problems


def test_acknowledged_changes_survive_kills_of_service_and_redis(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)
    began, hurts, problems = time.monotonic(), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory(prefix="nl-", dir="/tmp") as folder:
        service = Fragile(Path(folder), tiny_checkpoint)
        writers = [Writer(f"w{n}", service.url, random.Random(SEED + n)) for n in range(WRITERS)]
        try:
            service.start()
            for _ in range(ROUNDS):
                stop = threading.Event()
                threads = [threading.Thread(target=writer.work, args=(stop,)) for writer in writers]
                for thread in threads:
                    thread.start()
                time.sleep(chance.uniform(0.02, 1.0))  # a random moment
                what = chance.choice(["service", "redis", "both"])
                hurts[what] += 1
                loading = chance.choice([0, 0, chance.uniform(0.1, 3.0)])
                hurts["while loading"] += bool(loading) and what != "redis"
                hurt(service, what, loading)
                stop.set()
                for thread in threads:
                    thread.join()
                with httpx2.Client(base_url=service.url, timeout=60) as client:
                    problems += check(client, writers, chance)
                assert not problems, problems
        finally:
            service.end(signal.SIGTERM)
        events = {name: service.events(name) for name in ("snapshot_loaded", "snapshot_refused", "index_built")}
    done: Counter[str] = sum((writer.done for writer in writers), Counter())
    with capsys.disabled():
        print(json.dumps(summary(done, hurts, events, began)))
    assert done["put"] > ROUNDS
    assert events["snapshot_loaded"] > 0
    assert events["snapshot_refused"] == 0


def test_acknowledged_changes_of_each_tenant_survive_kills(tiny_checkpoint: Path) -> None:
    chance = random.Random(SEED)
    root = {"Authorization": f"Bearer {BOOTSTRAP_KEY}"}
    with tempfile.TemporaryDirectory(prefix="nl-", dir="/tmp") as folder:
        service = Fragile(Path(folder), tiny_checkpoint, bootstrap_key=BOOTSTRAP_KEY)
        writers = [Writer("w", service.url, random.Random(SEED + n)) for n in range(TENANTS)]  # all use the same ids
        try:
            service.start()
            with httpx2.Client(base_url=service.url, timeout=60, headers=root) as admin:
                for n, writer in enumerate(writers):
                    body = {"name": "all", "tenant": f"t{n}", "scopes": SCOPES}
                    writer.key = admin.post("/keys", json=body).json()["key"]
                for _ in range(max(3, ROUNDS // 5)):
                    stop = threading.Event()
                    threads = [threading.Thread(target=writer.work, args=(stop,)) for writer in writers]
                    for thread in threads:
                        thread.start()
                    time.sleep(chance.uniform(0.1, 1.0))  # a random moment
                    hurt(service, chance.choice(["service", "redis", "both"]), 0)
                    wait_until(lambda: all_tenants_ready(admin))
                    stop.set()
                    for thread in threads:
                        thread.join()
                    for writer in writers:
                        with writer.client() as client:
                            assert check(client, [writer], chance) == []
        finally:
            service.end(signal.SIGTERM)
    assert all(writer.done["put"] > 1 for writer in writers)


def all_tenants_ready(admin: httpx2.Client) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        listed = admin.get("/tenants")
        return listed.status_code == 200 and all(one["state"] == "ready" for one in listed.json()["tenants"])
    return False


def summary(done: Counter[str], hurts: Counter[str], events: dict[str, int], began: float) -> dict[str, Any]:
    return {
        "rounds": ROUNDS,
        "killed": dict(hurts),
        "acknowledged and others": dict(done),
        "starts": events,
        "seconds": round(time.monotonic() - began),
    }


@pytest.fixture
def replicas(tiny_checkpoint: Path, debian_redis: DebianRedis) -> Iterator[list[Fragile]]:
    """Three replicas on one Redis."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(3):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nl-", dir="/tmp"))
            made.append(Fragile(Path(folder), tiny_checkpoint, redis_url=debian_redis.url))
            made[-1].begin()
            stack.callback(made[-1].end, signal.SIGKILL)  # SIGKILL also ends a stopped process
            wait_until(made[-1].ready, START_SECONDS, START_PAUSE)
        yield made


def test_replica_asked_for_a_position_never_answers_with_older(
    replicas: list[Fragile], capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)
    there, done = set[str](), Counter[str]()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx2.Client(base_url=r.url, timeout=30)) for r in replicas]
        assert clients[0].put("/notes/anchor", json={"title": "anchor"}).status_code == 201
        for _ in range(4 * ROUNDS):
            stopped = chance.choice([None, 1, 2])
            if stopped is not None:
                replicas[stopped].send(signal.SIGSTOP)
            note_id, position = f"n{chance.randrange(12)}", ""
            for _ in range(chance.randint(1, 4)):
                position = write(clients[0], note_id, there)
            if stopped is not None:
                replicas[stopped].send(signal.SIGCONT)
            reader = clients[chance.choice([1, 2]) if stopped is None else stopped]
            at_position = {"k": 200, "min_log_position": position}
            answer = reader.get("/notes/anchor/similar", params=at_position, headers={"X-Request-Timeout": "10"})
            done["from one that was stopped" if stopped else "from one that was not"] += 1
            assert answer.status_code == 200
            assert {item["id"] for item in answer.json()["items"]} == there
        last = {"k": 200, "min_log_position": position}
        items = [client.get("/notes/anchor/similar", params=last).json()["items"] for client in clients]
    for item in (item for answer_items in items for item in answer_items):
        item["score"] = round(item["score"], 5)  # the last bits depend on how rows are spread over segments
    by_id = [sorted(answer_items, key=lambda item: item["id"]) for answer_items in items]
    assert by_id[0] == by_id[1] == by_id[2]
    with capsys.disabled():
        print(json.dumps({"reads behind a write on another replica": dict(done)}))


def write(client: httpx2.Client, note_id: str, there: set[str]) -> str:
    """Put a note, or delete it if it exists; return a log position that is not before this change."""
    if note_id not in there:
        there.add(note_id)
        written = client.put(f"/notes/{note_id}", json={"title": f"{note_id} soup"})
    else:
        there.remove(note_id)
        assert client.delete(f"/notes/{note_id}").status_code == 200
        written = client.put("/notes/anchor", json={"title": f"anchor {time.monotonic()}"})
    assert written.is_success
    position: str = written.json()["log_position"]
    return position
