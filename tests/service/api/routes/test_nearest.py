"""The short path of GET /notes/{id}/similar: answers from memory that are as fresh as the store, on three replicas."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx2
import pytest
import redis

from service.store.embedded_redis import EmbeddedRedis
from tests.service.api.conftest import Serve, eventually_true, gauge

ROUNDS = int(os.environ.get("NOTELLM_RACE_ROUNDS", "100"))
"""Notes that each of three writers puts and removes beside readers; `make race` uses more."""
REPLICAS = 3
NOTES = [
    {"id": "plain", "title": "soup with noodles"},
    {"id": "quoted", "title": 'a "title", \\ back', "hashtags": ["soup", "ünïcode 汤"], "author": 'a","score":0.0'},
    {"id": "lines", "title": "two\nlines", "content": "soup", "category": "Food \u2028 x"},
    {"id": "emoji", "title": "🍜", "attributes": {"language": "zh"}},
    *({"id": f"more{i}", "title": f"soup number {i}", "author": f"a{i % 3}", "category": "Food"} for i in range(20)),
]


@pytest.fixture(scope="module", params=["one-redis", "one-data-folder"])
def replicas(
    request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[httpx2.Client]]:
    """Three replicas on one store, given by its address, or by its data folder, where they share its log position."""
    folder = tmp_path_factory.mktemp("n") / "data"
    server = EmbeddedRedis(folder)
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        place: dict[str, Any] = {"redis_url": server.url} if request.param == "one-redis" else {"data_dir": folder}
        urls = [stack.enter_context(serve(**place, filter_attributes=("language",))) for _ in range(REPLICAS)]
        clients = [stack.enter_context(httpx2.Client(base_url=url, timeout=60)) for url in urls]
        assert clients[0].post("/notes", json=NOTES).status_code == 207
        yield clients


def read(client: httpx2.Client, note_id: str = "plain", **params: Any) -> httpx2.Response:
    answer = client.get(f"/notes/{note_id}/similar", params=params)
    assert answer.status_code == 200, answer.text
    return answer


def titles(client: httpx2.Client, note_id: str) -> list[str]:
    """Return the titles that an answer has for a note: one or none. A degraded answer may have removed notes: none."""
    answer = read(client, k=40).json()
    return [] if answer["degraded"] else [item["title"] for item in answer["items"] if item["id"] == note_id]


def answered_from(client: httpx2.Client, source: str) -> float:
    """Return the number of notes in answers of the short path that came from `source`, memory or store."""
    return gauge(client, f'notellm_items_total{{source="{source}"}}')


def kept_bytes(client: httpx2.Client) -> float:
    """Return the bytes of the notes that are cached in memory."""
    return gauge(client, "notellm_item_bytes")


def notes_read(admin: redis.Redis) -> int:
    """Return the number of notes that the server has read."""
    return int(admin.info("commandstats")["cmdstat_hmget"]["calls"])


@pytest.mark.parametrize(
    "params",
    [
        {"k": 1},
        {"k": 30},
        {"k": 5, "category": "Food"},
        {"k": 5, "author": "a1", "exclude": ["more1", "more4"]},
        {"k": 30, "min_score": 0.2},
        {"k": 5, "attribute": "language:zh"},
        {"k": 5, "exact": True},
        {"k": 5, "category": "of no note"},
    ],
    ids=["one", "all", "category", "exclude", "min-score", "attribute", "exact", "none"],
)
@pytest.mark.parametrize("note_id", ["plain", "quoted", "emoji"], ids=["plain", "quoted", "emoji"])
def test_answer_has_the_bytes_of_the_whole_search(
    replicas: list[httpx2.Client], note_id: str, params: dict[str, Any]
) -> None:
    for _ in range(2):  # the first answer puts its notes into memory
        short = read(replicas[0], note_id, **params)
    whole = read(replicas[0], note_id, **params, diversity=0)  # an option of the order leads to the whole search
    one, other = (answer.json()["recommendation_id"].encode() for answer in (short, whole))
    assert one != other
    assert short.content.replace(one, other) == whole.content
    assert short.headers["content-type"] == whole.headers["content-type"]


def test_repeated_request_reads_no_note_from_the_store(replicas: list[httpx2.Client]) -> None:
    read(replicas[0])
    before = answered_from(replicas[0], "store")
    read(replicas[0])
    assert answered_from(replicas[0], "store") == before


def test_whole_search_reads_notes_from_the_store_and_keeps_none(serve: Serve, embedded: EmbeddedRedis) -> None:
    with serve(redis_url=embedded.url) as url:
        assert httpx2.post(f"{url}/notes", json=NOTES, timeout=60).status_code == 207
    with (
        serve(redis_url=embedded.url) as url,  # a new service that has seen no note written caches none yet
        httpx2.Client(base_url=url, timeout=60) as client,
        redis.Redis.from_url(embedded.url) as admin,
    ):
        for _ in range(2):
            before = notes_read(admin)
            read(client, diversity=0.5)
            assert notes_read(admin) > before
            assert (kept_bytes(client), answered_from(client, "memory")) == (0, 0)
        read(client)
        assert kept_bytes(client) > 0


def test_unknown_note_is_404(replicas: list[httpx2.Client]) -> None:
    assert replicas[0].get("/notes/nobody/similar").status_code == 404


def test_note_changed_at_one_replica_is_new_at_every_other(replicas: list[httpx2.Client]) -> None:
    for n in range(60):
        title = f"soup of the day {n}"
        assert replicas[n % 3].put("/notes/more0", json={"title": title}).status_code == 200
        for client in replicas:
            items = {item["id"]: item["title"] for item in read(client, k=30).json()["items"]}
            assert items["more0"] == title


def test_example_removed_at_one_replica_is_404_at_every_other(replicas: list[httpx2.Client]) -> None:
    for n in range(20):
        assert replicas[n % 3].put("/notes/example", json={"title": "soup"}).status_code == 201
        for client in replicas:
            read(client, "example")
        assert replicas[n % 3].delete("/notes/example").status_code in (200, 204)
        for client in replicas:
            assert client.get("/notes/example/similar").status_code == 404


@pytest.mark.slow
@pytest.mark.timeout(120 + ROUNDS)
def test_removed_note_is_in_no_answer_to_a_later_request_of_any_replica(replicas: list[httpx2.Client]) -> None:
    """Each writer puts and removes its own note at random replicas, and searches at a random one after each answer.
    Meanwhile readers keep the notes in every replica's memory."""
    leaked: list[str] = []
    found: list[str] = []
    ended = threading.Event()

    def write(number: int) -> None:
        chance, note_id = random.Random(number), f"raced{number}"
        with ExitStack() as stack:
            clients = [stack.enter_context(httpx2.Client(base_url=one.base_url, timeout=60)) for one in replicas]
            for n in range(ROUNDS):
                title = f"soup {number} {n}"
                clients[chance.randrange(3)].put(f"/notes/{note_id}", json={"title": title}).raise_for_status()
                # A replica that is far behind may not find the note yet, but never answers with an earlier version.
                told = titles(chance.choice(clients), note_id)
                (found if told == [title] else leaked).extend(told)
                clients[chance.randrange(3)].delete(f"/notes/{note_id}").raise_for_status()
                leaked.extend(titles(chance.choice(clients), note_id))

    def ask(client: httpx2.Client) -> None:
        with httpx2.Client(base_url=client.base_url, timeout=60) as own:
            while not ended.is_set():
                read(own, k=40)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(REPLICAS)]
    readers = [threading.Thread(target=ask, args=(client,)) for client in replicas]
    for thread in (*writers, *readers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    for thread in readers:
        thread.join()
    assert leaked == []
    assert len(found) > REPLICAS * ROUNDS // 2


def is_told(client: httpx2.Client, title: str) -> bool:
    """Return whether a replica's answer has the note `brief` with this title."""
    return titles(client, "brief") == [title]


def is_gone(client: httpx2.Client) -> bool:
    """Return whether a replica has no note `brief`."""
    return client.get("/notes/brief").status_code == 404


def test_note_that_expires_leaves_all_answers_of_every_replica(replicas: list[httpx2.Client]) -> None:
    note = {"title": "soup for a moment"}
    assert replicas[0].put("/notes/brief", json=note).status_code == 201
    for client in replicas:
        eventually_true(partial(is_told, client, note["title"]))
        assert client.get("/notes/brief/similar").status_code == 200
    soon = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()
    assert replicas[0].patch("/notes/brief", json={"expires_at": soon}).status_code == 200
    for client in replicas:
        read(client, k=40)  # the note is in memory with its end, unless the machine was too slow
    for client in replicas:
        eventually_true(partial(is_gone, client))
        assert titles(client, "brief") == []
        assert client.get("/notes/brief/similar").status_code == 404
        body = {"positive": [{"note_id": "plain"}], "sources": "auto", "k": 40}
        assert "brief" not in {item["id"] for item in client.post("/similar", json=body).json()["items"]}
        assert "brief" not in {listed["id"] for listed in client.get("/notes", params={"limit": 100}).json()["notes"]}
        assert '"brief"' not in client.get("/notes/export").text
        assert client.post("/notes/get", json={"ids": ["brief"]}).json()["notes"] == []
        assert client.get("/readyz").json()["ready"]


def test_store_that_was_emptied_is_believed(serve: Serve, guarded_redis: Any) -> None:
    with serve(redis_url=guarded_redis.url) as url, httpx2.Client(base_url=url, timeout=60) as client:
        client.post("/notes", json=NOTES)
        assert len(read(client).json()["items"]) == 10
        with redis.Redis.from_url(guarded_redis.url) as admin:
            admin.flushall()
        assert client.get("/notes/plain/similar").status_code == 404


def test_memory_of_answers_has_a_bound_for_all_tenants_together(serve: Serve) -> None:
    with serve(item_cache_bytes=2000) as url, httpx2.Client(base_url=url, timeout=60) as client:
        client.post("/notes", json=NOTES)
        for _ in range(2):
            assert len(read(client, k=20).json()["items"]) == 20
        assert 0 < kept_bytes(client) <= 2000
