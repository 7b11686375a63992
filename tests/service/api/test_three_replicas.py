"""Three replicas on one store, over HTTP: searches with options, events, and removals by a filter."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from service.store.embedded_redis import EmbeddedRedis
from tests.service.api.conftest import Serve
from tests.service.api.routes.test_events import event, statuses

pytestmark = pytest.mark.slow
Eventually = Callable[[Callable[[], bool]], None]
REPLICAS, COUNT = 3, 40
WORDS = ("soup", "trains", "hills", "chess", "yarn")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "negative": {"negative": [{"note_id": "n3"}], "strategy": "best_score"},
    "order": {"diversity": 0.4, "max_per_author": 2, "max_per_category": 5, "collapse_above": 0.99},
    "boosts": {"boost": [{"weight": 0.3, "match": {"author": "a1"}}]},
    "filter": {"filter": {"any": [{"category": "c1"}, {"not": {"author": "a2"}}]}, "min_score": -0.5},
    "words": {"sources": {"words": 1}, "explain": True},
    "behaviour": {"sources": {"behaviour": 1}, "explain": True},
    "auto": {"sources": "auto"},
}


@pytest.fixture(scope="module")
def replicas(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[httpx2.Client]]:
    server = EmbeddedRedis(tmp_path_factory.mktemp("r") / "data")
    server.start()
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(serve(redis_url=server.url)) for _ in range(REPLICAS)]
        yield [stack.enter_context(httpx2.Client(base_url=url, timeout=60)) for url in urls]
    server.stop()


@pytest.fixture
def written(replicas: list[httpx2.Client]) -> str:
    """Write COUNT notes, a third by each replica, and return the log position of the last one."""
    positions = []
    for number, client in enumerate(replicas):
        notes = [
            {"id": f"n{i}", "title": f"{WORDS[i % 5]} {WORDS[i % 3]}", "author": f"a{i % 4}", "category": f"c{i % 3}"}
            for i in range(number, COUNT, REPLICAS)
        ]
        positions += [result["log_position"] for result in client.post("/notes", json=notes).json()["results"]]
    return max(positions, key=lambda position: tuple(map(int, position.split("-"))))


def reads(client: httpx2.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("notellm_behaviour_reads "))


def test_answers_and_behaviour_are_the_same_on_each_replica(
    replicas: list[httpx2.Client], written: str, eventually: Eventually
) -> None:
    rng, accepted, expected = random.Random(1), 0, set[tuple[str, str]]()
    for number, client in enumerate(replicas):
        read = [(f"n{rng.randrange(COUNT)}", f"u{rng.randrange(9)}") for _ in range(40)]
        events = [event(note, user) for note, user in read]
        expected |= set(read)
        accepted += statuses(client.post("/events", json=events)).count("accepted")
        assert statuses(replicas[number - 1].post("/events", json=events)) == ["duplicate"] * 40
    assert accepted == 40 * REPLICAS
    eventually(lambda: [reads(client) for client in replicas] == [len(expected)] * REPLICAS)
    for name, options in OPTIONS.items():
        body = {"positive": [{"note_id": "n0"}, {"note_id": "n7"}], "k": 15, "min_log_position": written} | options
        answers = [client.post("/similar", json=body) for client in replicas]
        assert [answer.status_code for answer in answers] == [200] * REPLICAS, answers[0].text
        items = [answer.json()["items"] for answer in answers]
        assert items[0], name
        assert items == [items[0]] * REPLICAS, name
    assert replicas[2].delete("/users/u1/events").status_code == 200
    left = sum(user != "u1" for _, user in expected)
    eventually(lambda: [reads(client) for client in replicas] == [left] * REPLICAS)


def test_each_replica_goes_on_with_the_cursors_of_the_others(replicas: list[httpx2.Client], written: str) -> None:
    lists = {"/notes": {"limit": 7}, "/notes/n0/similar": {"k": 7, "sources": "auto", "cursor": "*"}}
    for path, query in lists.items():
        ids, cursor = list[str](), {"min_log_position": written} if "similar" in path else {}
        for number in itertools.count():
            answer = replicas[number % REPLICAS].get(path, params=query | cursor).json()
            ids += [item["id"] for item in answer.get("notes") or answer["items"]]
            if answer["next_cursor"] is None:
                break
            cursor = {"cursor": answer["next_cursor"]}
        expected = {f"n{number}" for number in range(COUNT)} - ({"n0"} if "similar" in path else set())
        assert (set(ids), len(ids)) == (expected, len(expected)), path


def test_no_replica_has_a_removed_note_from_the_receipt_on(replicas: list[httpx2.Client], written: str) -> None:
    before = replicas[0].post("/notes/delete", json={"filter": {"author": "a1"}, "dry_run": True}).json()
    key = {"Idempotency-Key": "removal-of-a1"}
    receipt = replicas[1].post("/notes/delete", json={"filter": {"author": "a1"}}, headers=key).json()
    assert (receipt["count"], sorted(receipt["ids"])) == (COUNT // 4, sorted(before["ids"]))
    for client in replicas:
        body = {"title": "soup", "k": COUNT, "min_log_position": receipt["log_position"]}
        answer = client.post("/similar", json=body).json()
        assert answer["complete"]
        assert len(answer["items"]) == COUNT - receipt["count"]
        assert {item["author"] for item in answer["items"]} == {"a0", "a2", "a3"}
        assert client.get("/notes", params={"author": "a1"}).json()["notes"] == []
        assert client.post("/notes/get", json={"ids": receipt["ids"]}).json()["missing"] == receipt["ids"]
        repeated = client.post("/notes/delete", json={"filter": {"author": "a1"}}, headers=key)
        assert (repeated.json(), repeated.headers["idempotent-replayed"]) == (receipt, "true")
        again = client.post("/notes/delete", json={"filter": {"author": "a1"}}).json()
        assert (again["count"], again["log_position"]) == (0, None)
