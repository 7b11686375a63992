"""Idempotency-Key: a write that is repeated under its key takes place once."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import redis

from service.store.redis_keys import RECORD
from tests.service.api.conftest import Serve
from tests.service.api.requests import NDJSON
from tests.service.conftest import DebianRedis
from tests.service.process import Process, running

NOTE = {"title": "Lemon tart", "content": "Rest the dough for an hour."}
REPLAYED = "idempotent-replayed"
KEPT_SECONDS = 600.0


def fresh_key() -> dict[str, str]:
    return {"Idempotency-Key": uuid4().hex}


def lines(response: httpx2.Response) -> list[Any]:
    return [json.loads(line) for line in response.text.splitlines()]


def notes(client: httpx2.Client) -> int:
    return int(client.get("/readyz").json()["notes"])


@pytest.fixture
def redis_service(debian_redis: DebianRedis, serve: Serve) -> Iterator[tuple[httpx2.Client, redis.Redis]]:
    """Clients of a service that keeps idempotency keys for KEPT_SECONDS, and of its Redis."""
    with (
        serve(redis_url=debian_redis.url, idempotency_seconds=KEPT_SECONDS) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
        redis.Redis.from_url(debian_redis.url) as admin,
    ):
        yield client, admin


def test_repeated_post_is_answered_again_and_stores_once(client: httpx2.Client) -> None:
    before, key = notes(client), fresh_key()
    first, second = (client.post("/notes", json=NOTE, headers=key, params={"generate": "hashtags"}) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert (second.json(), second.headers["etag"]) == (first.json(), first.headers["etag"])
    assert REPLAYED not in first.headers
    assert second.headers[REPLAYED] == "true"
    assert notes(client) == before + 1


def test_repeated_post_without_a_key_stores_twice(client: httpx2.Client) -> None:
    first, second = (client.post("/notes", json=NOTE) for _ in range(2))
    assert first.json()["id"] != second.json()["id"]


def test_another_request_under_a_key_is_refused(client: httpx2.Client) -> None:
    key = fresh_key()
    note_id = client.post("/notes", json=NOTE, headers=key).json()["id"]
    others = (
        client.post("/notes", json={"title": "Another"}, headers=key),
        client.post("/notes", json=[NOTE], headers=key),
        client.post("/notes", json=NOTE, headers=key, params={"generate": "category"}),
        client.put(f"/notes/{note_id}", json=NOTE, headers=key),
        client.patch(f"/notes/{note_id}", json={"author": "ann"}, headers=key),
        client.delete(f"/notes/{note_id}", headers=key),
    )
    assert [answer.status_code for answer in others] == [422] * 6
    assert all("Idempotency-Key" in answer.json()["detail"] for answer in others)
    assert client.get(f"/notes/{note_id}").json()["revision"] == 1


@pytest.mark.parametrize("value", ["", "two words", "x" * 256, "ü"])
def test_malformed_key_is_400(client: httpx2.Client, value: str) -> None:
    answer = client.post("/notes", json=NOTE, headers={"Idempotency-Key": value.encode()})
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["detail"]


def test_key_of_a_write_that_cannot_honour_it_is_400(client: httpx2.Client) -> None:
    headers = {"Idempotency-Key": "k1"}
    event = {"event_id": "e1", "type": "click", "note_id": "none", "user": "u"}
    answers = (
        client.post("/events", json=event, headers=headers),
        client.post("/notes/import", json=[], headers=headers),
        client.post("/keys", json={"name": "a", "scopes": ["admin", "keys.manage"]}, headers=headers),
        client.delete("/users/u/events", headers=headers),
        client.post("/verify", headers=headers),
    )
    assert [answer.status_code for answer in answers] == [400] * 5
    assert all("Idempotency-Key" in answer.json()["detail"] for answer in answers)


def test_key_of_a_read_changes_nothing(client: httpx2.Client) -> None:
    answer = client.post("/similar", json=NOTE, headers={"Idempotency-Key": "k1"})
    assert answer.status_code == 200
    assert "Idempotent-Replayed" not in answer.headers


def test_repeated_change_does_not_undo_a_later_one(client: httpx2.Client) -> None:
    note_id = client.post("/notes", json=NOTE).json()["id"]
    path, put, patch = f"/notes/{note_id}", fresh_key(), fresh_key()
    changes: list[Callable[[], httpx2.Response]] = [
        lambda: client.put(path, json={"title": "By PUT"}, headers=put),
        lambda: client.patch(path, json={"title": "By PATCH"}, headers=patch),
    ]
    answers = [change() for change in changes]
    client.patch(path, json={"title": "The last"})
    for change, answer in zip(changes, answers, strict=True):
        again = change()
        assert (again.status_code, again.json(), again.headers[REPLAYED]) == (200, answer.json(), "true")
    assert client.get(path).json()["title"] == "The last"


def test_repeated_post_that_changed_nothing_stays_so(client: httpx2.Client) -> None:
    note, key = NOTE | {"id": "unchanged-then-changed"}, fresh_key()
    client.post("/notes", json=note)
    assert client.post("/notes", json=note, headers=key).status_code == 200
    client.patch("/notes/unchanged-then-changed", json={"title": "The last"})
    assert client.post("/notes", json=note, headers=key).headers[REPLAYED] == "true"
    assert client.get("/notes/unchanged-then-changed").json()["title"] == "The last"


def test_repeated_delete_spares_the_note_that_came_after(client: httpx2.Client) -> None:
    note, key = NOTE | {"id": "deleted-once"}, fresh_key()
    client.post("/notes", json=note)
    receipt = client.delete("/notes/deleted-once", headers=key)
    assert (receipt.status_code, receipt.headers.get(REPLAYED)) == (200, None)
    client.post("/notes", json=note)
    again = client.delete("/notes/deleted-once", headers=key)
    assert (again.status_code, again.json(), again.headers[REPLAYED]) == (200, receipt.json(), "true")
    assert client.get("/notes/deleted-once").status_code == 200


def test_refused_request_leaves_its_key_free(client: httpx2.Client) -> None:
    key = fresh_key()
    assert client.post("/notes", json={"title": ""}, headers=key).status_code == 422
    assert client.delete("/notes/never-there", headers=key).status_code == 404
    assert client.post("/notes", json=NOTE, headers=key).status_code == 201


def test_timed_out_request_leaves_its_key_free(client: httpx2.Client) -> None:
    key = fresh_key()
    late = client.post("/notes", json=NOTE, headers=key | {"X-Request-Timeout": "0.000001"})
    assert late.status_code in (429, 504)
    again = repeat(str(client.base_url), key)
    assert (again.status_code, again.headers.get(REPLAYED)) == (201, None)


def test_concurrent_repeats_store_once_and_others_get_409(client: httpx2.Client) -> None:
    before, key, answers = notes(client), fresh_key(), list[httpx2.Response]()
    start = threading.Barrier(6)

    def post() -> None:
        start.wait()
        answers.append(client.post("/notes", json=NOTE, headers=key))

    threads = [threading.Thread(target=post) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers if answer.status_code == 409)
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 201}) == 1
    assert notes(client) == before + 1


def test_list_repeated_under_its_key_is_answered_again(client: httpx2.Client) -> None:
    body, key = [NOTE, {"title": ""}, {"title": "Third"}], fresh_key()
    answers = [client.post("/notes", json=body, headers=key) for _ in range(2)]
    first, second = (answer.json()["results"] for answer in answers)
    assert [item["status"] for item in first] == ["created", "rejected", "created"]
    assert second == [first[0] | {"replayed": True}, first[1], first[2] | {"replayed": True}]
    assert answers[1].headers[REPLAYED] == "true"


def test_repeat_of_a_note_that_has_expired_since_is_answered_again(
    client: httpx2.Client, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    keys = [fresh_key() for _ in range(4)]
    stream = keys[3] | {"content-type": NDJSON}
    writes: list[Callable[[dict[str, str]], httpx2.Response]] = [
        lambda note: client.post("/notes", json=note, headers=keys[0]),
        lambda note: client.put("/notes/passing-2", json=note, headers=keys[1]),
        lambda note: client.post("/notes", json=[note, NOTE], headers=keys[2]),
        lambda note: client.post("/notes", content=json.dumps(note).encode(), headers=stream),
    ]
    sent, answers = list[dict[str, str]](), list[httpx2.Response]()
    for number, write in enumerate(writes, 1):
        expires_at = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
        sent.append(NOTE | {"id": f"passing-{number}", "expires_at": expires_at})
        answers.append(write(sent[-1]))
    assert [answer.status_code for answer in answers] == [201, 201, 207, 200]
    eventually(lambda: all(client.get(f"/notes/passing-{i}").status_code == 404 for i in (1, 2, 3, 4)))
    repeats = [write(note) for write, note in zip(writes, sent, strict=True)]
    assert [again.status_code for again in repeats] == [answer.status_code for answer in answers]
    assert [again.headers.get(REPLAYED) for again in repeats] == ["true", "true", "true", None]
    assert [again.json() for again in repeats[:2]] == [answer.json() for answer in answers[:2]]
    first, second = (answers[2].json()["results"], repeats[2].json()["results"])
    assert second == [item | {"replayed": True} for item in first]
    assert lines(repeats[3]) == [lines(answers[3])[0] | {"replayed": True}]


def test_note_that_has_expired_is_refused_and_leaves_its_key_free(client: httpx2.Client) -> None:
    key, listed = fresh_key(), fresh_key()
    past = NOTE | {"id": "past", "expires_at": (datetime.now(UTC) - timedelta(seconds=1)).isoformat()}
    for _ in range(2):
        alone = client.post("/notes", json=past, headers=key)
        assert (alone.status_code, alone.json()["errors"][0]["pointer"]) == (422, "/expires_at")
    first, second = (client.post("/notes", json=[NOTE, past], headers=listed) for _ in range(2))
    for answer in (first, second):
        refused = answer.json()["results"][1]
        assert (refused["status"], refused["id"]) == ("rejected", "past")
        assert refused["problem"]["errors"] == [{"pointer": "/1/expires_at", "detail": "must be in the future"}]
    assert second.json()["results"][0] == first.json()["results"][0] | {"replayed": True}
    assert second.headers[REPLAYED] == "true"


def test_stream_broken_off_goes_on_where_it_was(client: httpx2.Client) -> None:
    titles, key = ["One", "Two", "Three"], fresh_key() | {"content-type": NDJSON}
    bodies = [b"".join(b'{"title": "%s"}\n' % title.encode() for title in titles[:count]) for count in (2, 3)]
    first, second = (lines(client.post("/notes", content=body, headers=key)) for body in bodies)
    assert [line["id"] for line in second[:2]] == [line["id"] for line in first]
    assert [line.get("replayed") for line in second] == [True, True, None]
    other = lines(client.post("/notes", content=b'{"title": "Other"}\n', headers=key))
    assert [(list(line), line["problem"]["status"]) for line in other] == [(["problem"], 422)]


def test_key_is_forgotten_after_its_seconds(redis_service: tuple[httpx2.Client, redis.Redis]) -> None:
    client, admin = redis_service
    key = fresh_key()
    first = client.post("/notes", json=NOTE, headers=key)
    (record,) = admin.keys(f"{RECORD}*")
    assert 1000 * (KEPT_SECONDS - 60) < admin.pttl(record) <= 1000 * KEPT_SECONDS
    admin.pexpire(record, 0)
    assert client.post("/notes", json=NOTE, headers=key).json()["id"] != first.json()["id"]
    assert client.get("/limits").json()["idempotency_seconds"] == KEPT_SECONDS


def test_write_whose_claim_was_lost_stores_nothing(redis_service: tuple[httpx2.Client, redis.Redis]) -> None:
    client, admin = redis_service
    stop, before = threading.Event(), notes(client)

    def forget() -> None:
        while not stop.is_set():
            for record in admin.keys(f"{RECORD}*"):
                admin.delete(record)

    thread = threading.Thread(target=forget)
    thread.start()
    deadline = time.monotonic() + 30
    try:
        while (answer := client.post("/notes", json=NOTE, headers=fresh_key())).status_code == 201:
            before += 1
            assert time.monotonic() < deadline, "no claim was lost"
    finally:
        stop.set()
        thread.join()
    assert (answer.status_code, notes(client)) == (409, before)


@pytest.mark.slow
def test_post_repeated_after_a_kill_stores_once(tiny_checkpoint: Path) -> None:
    """The first answer is lost with the process, whenever that is killed."""
    with running(tiny_checkpoint) as process:
        for pause in (0.0, 0.005, 0.02, 0.1):
            key = fresh_key()
            lost = threading.Thread(target=post_and_lose, args=(process, key))
            lost.start()
            time.sleep(pause)  # any moment will do
            process.end(signal.SIGKILL)
            lost.join()
            process.start()
            answer = repeat(process.url, key)
            assert answer.status_code == 201
            assert repeat(process.url, key).json()["id"] == answer.json()["id"]
        assert httpx2.get(f"{process.url}/readyz").json()["notes"] == 4


def post_and_lose(process: Process, key: dict[str, str]) -> None:
    with contextlib.suppress(httpx2.TransportError):
        httpx2.post(f"{process.url}/notes", json=NOTE, headers=key | {"X-Request-Timeout": "2"})


def repeat(url: str, key: dict[str, str]) -> httpx2.Response:
    """Repeat a request as a caller should, who waits after each 409."""
    while (answer := httpx2.post(f"{url}/notes", json=NOTE, headers=key, timeout=60)).status_code == 409:
        time.sleep(float(answer.headers["retry-after"]))
    return answer
