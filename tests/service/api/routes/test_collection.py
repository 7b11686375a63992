"""GET /notes, POST /notes/get, POST /notes/delete and GET /changes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from service.collection.change_feed import ChangeFeed
from tests.service.api.conftest import Serve, eventually_true


@pytest.fixture(scope="module")
def own_url(serve: Serve) -> Iterator[str]:
    with serve(filter_attributes=("language",)) as address:
        yield address


@pytest.fixture
def notes(own_url: str) -> Iterator[httpx2.Client]:
    """A client of a service that has no notes at the beginning of each test."""
    with httpx2.Client(base_url=own_url, timeout=60) as client:
        for note in list_all(client):
            client.delete(f"/notes/{note['id']}")
        yield client


def add(client: httpx2.Client, *ids: str, **fields: Any) -> list[str]:
    """Add notes, and return their log positions."""
    answer = client.post("/notes", json=[{"id": note_id, "title": note_id} | fields for note_id in ids])
    assert answer.status_code == 207, answer.text
    return [result["log_position"] for result in answer.json()["results"]]


def list_all(client: httpx2.Client, **query: Any) -> list[dict[str, Any]]:
    """Return the notes of all pages."""
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = client.get("/notes", params=query | cursor)
        assert answer.status_code == 200, answer.text
        found += answer.json()["notes"]
        if answer.json()["next_cursor"] is None:
            return found
        cursor = {"cursor": answer.json()["next_cursor"]}


def ids_of(notes: list[dict[str, Any]]) -> list[str]:
    return [note["id"] for note in notes]


# POST /notes/get


def test_notes_by_ids_come_in_the_order_of_the_ids(notes: httpx2.Client) -> None:
    add(notes, "a", "b", "c")
    answer = notes.post("/notes/get", json={"ids": ["c", "nobody", "a", "c"]}).json()
    assert (ids_of(answer["notes"]), answer["missing"], answer["unreadable"]) == (["c", "a", "c"], ["nobody"], [])
    assert answer["notes"][1] == notes.get("/notes/a").json() | {"space": None, "vector": None}


def test_vectors_of_notes_are_the_same_in_both_forms(notes: httpx2.Client) -> None:
    add(notes, "a")
    (numbers,) = notes.post("/notes/get", json={"ids": ["a"], "vectors": "float"}).json()["notes"]
    (text,) = notes.post("/notes/get", json={"ids": ["a"], "vectors": "base64"}).json()["notes"]
    vector = np.frombuffer(base64.b64decode(text["vector"]), "<f4")
    assert numbers["vector"] == vector.tolist()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert numbers["space"] == text["space"] == notes.get("/readyz").json()["space"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"ids": []}, "/ids"),
        ({"ids": ["a"] * 1001}, "/ids"),
        ({"ids": ["a b"]}, "/ids/0"),
        ({"ids": ["a"], "vectors": "int8"}, "/vectors"),
        ({"ids": ["a"], "vector": "float"}, "/vector"),
    ],
)
def test_get_that_is_not_valid_is_refused(notes: httpx2.Client, body: dict[str, Any], pointer: str) -> None:
    answer = notes.post("/notes/get", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


# Long notes

BYTES, LONG, COUNT = 20_000, 4000, 12


@pytest.fixture
def long_notes(notes: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of COUNT notes, of which four are read from the store at a time."""
    for module in ("collection.log_order", "collection.listing", "store.redis_store"):
        monkeypatch.setattr(f"service.{module}.MAX_READ_BYTES", BYTES)
    ids = [f"l{n:02}" for n in range(COUNT)]
    add(notes, *ids, content="x" * LONG, author="tom")
    return ids


def test_long_notes_end_a_page_early_and_none_is_lost(notes: httpx2.Client, long_notes: list[str]) -> None:
    pages, cursor = list[list[str]](), dict[str, str]()
    while cursor or not pages:
        page = notes.get("/notes", params={"limit": 10, "author": "tom"} | cursor).json()
        pages.append(ids_of(page["notes"]))
        cursor = {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
    assert [note_id for page in pages for note_id in page] == long_notes
    assert max(map(len, pages)) == BYTES // LONG - 1


def test_note_beyond_the_bound_comes_alone(notes: httpx2.Client, long_notes: list[str]) -> None:
    add(notes, "longest", content="x" * 2 * BYTES)
    assert ids_of(list_all(notes)) == [*long_notes, "longest"]
    answer = notes.post("/notes/get", json={"ids": ["longest", "l00"]}).json()
    assert (ids_of(answer["notes"]), answer["unread"]) == (["longest"], ["l00"])


def test_ids_that_did_not_fit_into_an_answer_are_named(notes: httpx2.Client, long_notes: list[str]) -> None:
    ids = ["nobody", *long_notes, "gone"]
    found, missing, unread = list[str](), list[str](), ids
    while unread:
        answer = notes.post("/notes/get", json={"ids": unread, "vectors": "base64"}).json()
        assert len(answer["notes"]) < BYTES / LONG
        found += ids_of(answer["notes"])
        missing += answer["missing"]
        assert unread[len(answer["notes"]) + len(answer["missing"]) :] == answer["unread"]
        unread = answer["unread"]
    assert (found, missing) == (long_notes, ["nobody", "gone"])


def test_removal_by_a_filter_reads_long_notes_in_parts(notes: httpx2.Client, long_notes: list[str]) -> None:
    receipt = notes.post("/notes/delete", json={"filter": {"author": "tom"}}).json()
    assert (receipt["ids"], list_all(notes)) == (long_notes, [])


# GET /notes


def test_list_is_in_the_order_of_the_last_writes(notes: httpx2.Client) -> None:
    add(notes, "a", "b", "c", "d")
    notes.patch("/notes/b", json={"author": "tom"})
    notes.delete("/notes/c")
    listed = list_all(notes, limit=1)
    assert ids_of(listed) == ["a", "d", "b"]
    assert listed == [notes.get(f"/notes/{note_id}").json() for note_id in ("a", "d", "b")]


def test_list_has_the_notes_that_pass_its_filters(notes: httpx2.Client) -> None:
    soup = {"hashtags": ["Soup", "Winter"], "attributes": {"language": "en"}}
    add(notes, "a", author="tom", category="Food", created_at="2026-01-01T00:00:00Z", **soup)
    add(notes, "b", author="tom", category="Travel", created_at="2026-02-01T00:00:00Z")
    add(notes, "c", author="ann", category="Food", created_at="2026-03-01T00:00:00Z")
    assert ids_of(list_all(notes, author="tom", limit=1)) == ["a", "b"]
    assert ids_of(list_all(notes, category="Food")) == ["a", "c"]
    assert ids_of(list_all(notes, hashtag="soup")) == ["a"]
    assert ids_of(list_all(notes, created_after="2026-01-15T00:00:00Z", category="Food")) == ["c"]
    assert ids_of(list_all(notes, created_before="2026-02-15T00:00:00Z")) == ["a", "b"]
    assert ids_of(list_all(notes, all_hashtag=["soup", "winter"])) == ["a"]
    assert list_all(notes, all_hashtag=["soup", "summer"]) == []
    assert ids_of(list_all(notes, attribute="language:en")) == ["a"]
    assert list_all(notes, author="nobody") == []


def test_list_names_an_attribute_that_is_not_filtered_by(notes: httpx2.Client) -> None:
    answer = notes.get("/notes", params={"attribute": ["language:en", "colour:red"]})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/attribute")


def test_list_by_the_time_of_the_last_write_begins_or_ends_there(notes: httpx2.Client) -> None:
    (first,) = add(notes, "a")
    after = int(first.partition("-")[0]) / 1000
    eventually_true(lambda: time.time() > after + 0.01)
    add(notes, "b")
    first_write, soon_after = (datetime.fromtimestamp(after + more, UTC).isoformat() for more in (0, 0.005))
    assert ids_of(list_all(notes, updated_after=first_write)) == ["b"]
    assert ids_of(list_all(notes, updated_before=soon_after)) == ["a"]
    assert list_all(notes, updated_before=first_write) == []


@pytest.mark.parametrize("updated_after", ["2026-01-01T00:00:00Z", "now", "2199-01-01T00:00:00Z"])
def test_log_position_of_a_list_is_one_that_other_requests_accept(notes: httpx2.Client, updated_after: str) -> None:
    (written,) = add(notes, "a")
    after = datetime.now(UTC).isoformat() if updated_after == "now" else updated_after
    listed = notes.get("/notes", params={"updated_after": after}).json()
    assert listed["log_position"] == written
    assert notes.get("/changes", params={"after": listed["log_position"]}).json()["changes"] == []
    waited = notes.get("/notes/a/similar", params={"min_log_position": listed["log_position"]})
    assert waited.status_code == 200


def test_cursor_of_other_filters_is_refused(notes: httpx2.Client) -> None:
    add(notes, "a", "b", author="tom")
    cursor = notes.get("/notes", params={"author": "tom", "limit": 1}).json()["next_cursor"]
    for query in ({"author": "ann"}, {}, {"author": "tom", "updated_after": "2026-01-01T00:00:00Z"}):
        answer = notes.get("/notes", params=query | {"cursor": cursor})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/cursor")
    assert notes.get("/notes", params={"author": "tom", "limit": 5, "cursor": cursor}).status_code == 200


@pytest.mark.parametrize("cursor", ["", "x", "%00", "é", "MTIz", "A" * 300])
def test_cursor_that_is_none_is_refused(notes: httpx2.Client, cursor: str) -> None:
    answer = notes.get("/notes", params={"cursor": cursor})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/cursor")


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 1001},
        {"authors": "tom"},
        {"updated_after": "yesterday"},
        {"updated_after": "2026-02-01T00:00:00Z", "updated_before": "2026-01-01T00:00:00Z"},
    ],
)
def test_list_that_is_not_valid_is_refused(notes: httpx2.Client, query: dict[str, Any]) -> None:
    assert notes.get("/notes", params=query).status_code == 422


def test_note_that_rests_is_in_exactly_one_page_while_others_are_written(notes: httpx2.Client) -> None:
    resting = [f"r{n}" for n in range(40)]
    moving = [f"m{n}" for n in range(20)]
    gone = [f"g{n}" for n in range(20)]
    for ids in zip(itertools.cycle(resting), moving + gone, strict=False):
        add(notes, *ids)
    with racing(notes, moving) as rounds:
        for note_id in gone[:10]:
            notes.delete(f"/notes/{note_id}")
        listed = ids_of(list_all(notes, limit=7))
    assert sorted(note_id for note_id in listed if note_id in resting) == sorted(resting)
    assert not set(listed) & set(gone[:10])
    assert set(gone[10:]) <= set(listed)
    assert len(rounds) > 5


@contextlib.contextmanager
def racing(client: httpx2.Client, ids: list[str]) -> Iterator[list[int]]:
    """Rewrite and remove these notes in a thread while the block lasts; yield a list that grows with each write."""
    ending, rounds = threading.Event(), list[int]()

    def write() -> None:
        with httpx2.Client(base_url=client.base_url, timeout=60) as writer:
            for number in itertools.count():
                if ending.is_set():
                    return
                note_id = ids[number % len(ids)]
                if number % 7 == 0:
                    writer.delete(f"/notes/{note_id}")
                else:
                    writer.put(f"/notes/{note_id}", json={"title": note_id, "author": f"a{number}"})
                rounds.append(number)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        eventually_true(lambda: bool(rounds))
        yield rounds
    finally:
        ending.set()
        thread.join()


# POST /notes/delete


def digest(ids: list[str]) -> str:
    return hashlib.sha256("".join(f"{note_id}\n" for note_id in ids).encode()).hexdigest()


def test_removal_by_ids_has_a_receipt(notes: httpx2.Client) -> None:
    add(notes, "a", "b", "c")
    answer = notes.post("/notes/delete", json={"ids": ["b", "nobody", "a", "b"]})
    receipt = answer.json()
    assert (answer.status_code, receipt["count"], receipt["ids"], receipt["missing"]) == (
        200,
        2,
        ["b", "a"],
        ["nobody"],
    )
    assert receipt["ids_sha256"] == digest(["b", "a"])
    assert receipt["log_position"] == notes.get("/readyz").json()["log_position"]
    assert ids_of(list_all(notes)) == ["c"]
    assert notes.post("/similar", json={"title": "a b c"}).json()["items"][0]["id"] == "c"
    changes = notes.get("/changes", params={"after": "0-0", "limit": 1000}).json()["changes"]
    assert [(change["id"], change["op"]) for change in changes[-2:]] == [("b", "delete"), ("a", "delete")]
    assert changes[-1]["log_position"] == receipt["log_position"]


def test_removal_takes_as_many_ids_as_the_limits_say(notes: httpx2.Client) -> None:
    add(notes, "a", "b")
    most = notes.get("/limits").json()["max_removed_ids"]
    ids = ["a", *(f"gone{number}" for number in range(most - 2)), "b"]
    receipt = notes.post("/notes/delete", json={"ids": ids}).json()
    assert (receipt["count"], receipt["ids"], len(receipt["missing"])) == (2, ["a", "b"], most - 2)


def test_removal_of_an_author_removes_all_that_is_theirs_and_nothing_else(notes: httpx2.Client) -> None:
    theirs = [f"t{n}" for n in range(30)]
    add(notes, *theirs, author="tom")
    add(notes, "other", author="ann")
    receipt = notes.post("/notes/delete", json={"filter": {"author": "tom"}}).json()
    assert (receipt["count"], receipt["ids"]) == (30, theirs)
    assert ids_of(list_all(notes)) == ["other"]
    again = notes.post("/notes/delete", json={"filter": {"author": "tom"}}).json()
    assert (again["count"], again["ids"], again["log_position"]) == (0, [], None)


def test_removal_takes_as_large_a_filter_as_a_search(notes: httpx2.Client) -> None:
    add(notes, "a", author="tom")
    add(notes, "b", author="ann")
    conditions = notes.get("/limits").json()["max_filter_conditions"]
    by_author = {"any": [{"author": [f"nobody{number}", "tom"]} for number in range(conditions)]}
    assert notes.post("/similar", json={"title": "a", "filter": by_author}).status_code == 200
    assert notes.post("/notes/delete", json={"filter": by_author}).json()["ids"] == ["a"]


@pytest.mark.parametrize("body", [{"ids": ["a", "nobody"]}, {"filter": {"author": "tom"}}])
def test_dry_run_removes_nothing(notes: httpx2.Client, body: dict[str, Any]) -> None:
    add(notes, "a", author="tom")
    add(notes, "b", author="ann")
    tried = notes.post("/notes/delete", json=body | {"dry_run": True}).json()
    assert ids_of(list_all(notes)) == ["a", "b"]
    done = notes.post("/notes/delete", json=body).json()
    same = ("count", "ids", "ids_sha256", "missing", "unreadable")
    assert [tried[name] for name in same] == [done[name] for name in same]
    assert (tried["dry_run"], tried["log_position"], done["dry_run"]) == (True, None, False)


@pytest.mark.parametrize("body", [{"ids": ["a", "b"]}, {"filter": {"author": "tom"}}])
def test_removal_repeated_under_its_key_has_the_same_receipt(notes: httpx2.Client, body: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": f"removal {body}".replace(" ", "")}
    add(notes, "a", author="tom")
    first = notes.post("/notes/delete", json=body, headers=headers)
    add(notes, "a", author="tom")
    again = notes.post("/notes/delete", json=body, headers=headers)
    assert first.json() == again.json()
    assert ("Idempotent-Replayed" in first.headers, again.headers["Idempotent-Replayed"]) == (False, "true")
    assert notes.get("/notes/a").status_code == 200
    other = notes.post("/notes/delete", json={"ids": ["a"]}, headers=headers)
    assert other.status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ids": []},
        {"ids": ["a"], "filter": {"author": "tom"}},
        {"filter": {}},
        {"filter": {"author": ""}},
        {"filter": {"authors": "tom"}},
        {"filter": {"exclude": ["b"]}},
        {"filter": {"attribute": {"undeclared": "en"}}},
        {"ids": ["a"], "dry": True},
        {"ids": ["a"] * 10_001},
    ],
)
def test_removal_that_is_not_valid_is_refused_and_removes_nothing(notes: httpx2.Client, body: dict[str, Any]) -> None:
    add(notes, "a", author="tom")
    assert notes.post("/notes/delete", json=body).status_code == 422
    assert ids_of(list_all(notes)) == ["a"]


def test_removal_by_filter_spares_a_note_that_was_rewritten_so_that_it_does_not_pass(notes: httpx2.Client) -> None:
    ids = [f"n{n}" for n in range(200)]
    add(notes, *ids, author="tom")
    spared: list[str] = []

    def rewrite() -> None:
        with httpx2.Client(base_url=notes.base_url, timeout=60) as writer:
            for note_id in reversed(ids):
                body = {"title": note_id, "author": "ann"}
                if writer.put(f"/notes/{note_id}", json=body, headers={"If-Match": "*"}).status_code == 200:
                    spared.append(note_id)

    thread = threading.Thread(target=rewrite)
    thread.start()
    eventually_true(lambda: bool(spared))
    receipt = notes.post("/notes/delete", json={"filter": {"author": "tom"}}).json()
    thread.join()
    assert sorted(ids_of(list_all(notes, author="ann"))) == sorted(spared)
    assert sorted(receipt["ids"] + spared) == sorted(ids)
    assert list_all(notes, author="tom") == []


# GET /changes


def test_changes_are_in_the_order_of_the_log(notes: httpx2.Client) -> None:
    start = notes.get("/changes").json()
    assert (start["changes"], start["more"]) == ([], False)
    positions = add(notes, "a", "b")
    notes.delete("/notes/a")
    first = notes.get("/changes", params={"after": start["log_position"], "limit": 2}).json()
    assert [(change["id"], change["op"]) for change in first["changes"]] == [("a", "put"), ("b", "put")]
    assert [change["log_position"] for change in first["changes"]] == positions
    assert (first["log_position"], first["more"]) == (positions[-1], True)
    second = notes.get("/changes", params={"after": first["log_position"]}).json()
    assert [(change["id"], change["op"]) for change in second["changes"]] == [("a", "delete")]
    assert second["more"] is False


def test_request_that_waits_gets_the_next_change(notes: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    after = notes.get("/changes").json()["log_position"]
    answers: list[dict[str, Any]] = []
    waiting, wait_beyond = threading.Semaphore(0), ChangeFeed._wait_beyond

    async def recorded(feed: ChangeFeed, *arguments: Any) -> None:
        waiting.release()
        await wait_beyond(feed, *arguments)

    monkeypatch.setattr(ChangeFeed, "_wait_beyond", recorded)

    def wait() -> None:
        with httpx2.Client(base_url=notes.base_url, timeout=60) as waiter:
            answers.append(waiter.get("/changes", params={"after": after, "wait": 30}).json())

    threads = [threading.Thread(target=wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=60)
    add(notes, "a")
    for thread in threads:
        thread.join(20)
    assert [[change["id"] for change in answer["changes"]] for answer in answers] == [["a"]] * 5


def test_request_that_waits_in_vain_is_answered_without_changes(notes: httpx2.Client) -> None:
    answer = notes.get("/changes", params={"wait": 0.05})
    assert (answer.status_code, answer.json()["changes"], answer.json()["more"]) == (200, [], False)


def test_request_that_waits_is_answered_before_its_own_deadline(notes: httpx2.Client) -> None:
    (position,) = add(notes, "a")
    answer = notes.get("/changes", params={"after": position, "wait": 30}, headers={"x-request-timeout": "2"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["changes"], answer.json()["log_position"]) == ([], position)


@pytest.mark.parametrize(
    "query",
    [{"after": "now"}, {"after": "١-١"}, {"limit": 0}, {"limit": 1001}, {"wait": 31}, {"wait": "nan"}],
)
def test_request_for_changes_that_is_not_valid_is_refused(notes: httpx2.Client, query: dict[str, Any]) -> None:
    assert notes.get("/changes", params=query).status_code == 422


def test_changes_behind_a_position_that_the_log_has_not_come_to_are_410(notes: httpx2.Client) -> None:
    problem = notes.get("/changes", params={"after": "9" * 15 + "-0", "wait": 30})
    assert (problem.status_code, problem.json()["type"].rpartition("/")[2]) == (410, "log-cut")
    assert "/notes/export" in problem.json()["detail"]


def test_changes_that_the_log_has_no_more_are_410(serve: Serve) -> None:
    with serve(log_seconds=0, snapshot_seconds=0.05) as url, httpx2.Client(base_url=url, timeout=60) as client:
        (first,) = add(client, "a")

        def is_cut() -> bool:
            client.patch("/notes/a", json={"author": f"{time.monotonic()}"})
            return client.get("/changes", params={"after": "0-0"}).status_code == 410

        eventually_true(is_cut)
        problem = client.get("/changes", params={"after": first})
        assert (problem.status_code, problem.json()["type"].rpartition("/")[2]) == (410, "log-cut")
        assert "/notes/export" in problem.json()["detail"]


def test_changes_are_kept_as_long_as_the_setting_says(serve: Serve) -> None:
    with serve(log_seconds=3600, snapshot_seconds=0.05) as url, httpx2.Client(base_url=url, timeout=60) as client:
        (first,) = add(client, "a")
        for number in range(3):  # the log may be cut after each snapshot
            last = snapshot_time(client)
            client.patch("/notes/a", json={"author": f"{number}"})
            eventually_true(lambda last=last: snapshot_time(client) > last)
        changes = client.get("/changes", params={"after": "0-0"})
        assert (changes.status_code, changes.json()["changes"][0]["log_position"]) == (200, first)


def snapshot_time(client: httpx2.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("notellm_snapshot_timestamp_seconds "))


def test_page_of_any_replica_has_all_that_was_acknowledged_before(serve: Serve, short_folder: Path) -> None:
    with (
        serve(data_dir=short_folder / "data") as first,
        serve(data_dir=short_folder / "data") as second,
        httpx2.Client(base_url=first, timeout=60) as writer,
        httpx2.Client(base_url=second, timeout=60) as reader,
    ):
        for number in range(20):
            add(writer, f"n{number}", author="tom")
            assert ids_of(list_all(reader, author="tom"))[-1] == f"n{number}"
        receipt = reader.post("/notes/delete", json={"filter": {"author": "tom"}}).json()
        assert receipt["count"] == 20
        assert list_all(writer) == []
