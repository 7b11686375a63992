"""GET /notes/export and POST /notes/import, on a service with concurrent writers."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import pytest
from fastapi import Request

from service.api.problems import MAX_ANSWER_ERRORS
from service.collection.export import MAX_EXPORTS
from service.store.redis_store import RedisNoteStore
from tests.service.api.conftest import Serve, eventually_true, sizes_written
from tests.service.conftest import DebianRedis

Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def own_url(serve: Serve) -> Iterator[str]:
    with serve() as address:
        yield address


@pytest.fixture
def client(own_url: str) -> Iterator[httpx2.Client]:
    """A client of a service that has no notes at the beginning of each test; its log has the earlier tests' changes."""
    with httpx2.Client(base_url=own_url, timeout=60) as opened:
        while ids := [note["id"] for note in opened.get("/notes").json()["notes"]]:
            assert opened.post("/notes/delete", json={"ids": ids}).json()["count"] == len(ids)
        yield opened


def add(client: httpx2.Client, *ids: str, **fields: Any) -> None:
    answer = client.post("/notes", json=[{"id": note_id, "title": note_id} | fields for note_id in ids])
    assert {result["status"] for result in answer.json()["results"]} <= {"created", "updated"}, answer.text


def export(client: httpx2.Client, **query: Any) -> Lines:
    answer = client.get("/notes/export", params=query)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def applied(lines: Lines, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the notes by id after an export is applied to the notes `before`."""
    notes = dict(before or {})
    for line in lines[1:-1]:
        if "removed" in line:
            notes.pop(line["removed"], None)
        else:
            notes[line["id"]] = line
    return notes


def stored(client: httpx2.Client, ids: list[str]) -> dict[str, str]:
    """Return the positions of the notes that the store has, by id."""
    notes = client.post("/notes/get", json={"ids": ids}).json()["notes"]
    return {note["id"]: note["log_position"] for note in notes}


def key(position: str) -> tuple[int, ...]:
    return tuple(map(int, position.split("-")))


def test_export_has_every_note_as_its_author_gave_it(client: httpx2.Client) -> None:
    note = {"title": "Soup", "author": "tom", "created_at": "2026-05-01T09:30:00Z", "attributes": {"seats": 2}}
    add(client, "a", hashtags=["soup"], **note)
    client.post("/notes", params={"generate": "hashtags,category"}, json={"id": "b", "title": "Bread and soup"})
    head, first, second, end = export(client)
    assert (head["export"], head["after"], head["notes_about"]) == (1, None, 2)
    assert head["space"] == first["space"] == client.get("/readyz").json()["space"]
    got = client.get("/notes/a").json()
    assert {name: first[name] for name in got} == got
    assert (second["hashtags"], second["category"]) == ([], None)
    generated = client.get("/notes/b").json()["generated"]
    assert second["generated"]["category"] == {name: generated["category"][name] for name in ("name", "probability")}
    assert "vector" not in first
    assert end == {"end": client.get("/readyz").json()["log_position"], "notes": 2, "removed": 0, "unreadable": 0}


def test_export_is_written_in_small_pieces(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    add(client, *map(str, range(30)), content="soup " * 200)
    monkeypatch.setattr("service.api.ndjson.SENT_TOGETHER_BYTES", 3000)
    client.headers["accept-encoding"] = "identity"
    sizes, lines = sizes_written(monkeypatch), export(client)
    assert len(lines) == 32
    assert 30_000 < sum(sizes) < 60_000
    assert max(sizes) < 6000


def test_head_of_an_export_does_not_read_the_notes(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    get = RedisNoteStore.get

    async def record(store: RedisNoteStore, ids: Sequence[str], **options: Any) -> Any:
        read.extend(ids)
        return await get(store, ids, **options)

    monkeypatch.setattr(RedisNoteStore, "get", record)
    add(client, *(f"n{number}" for number in range(20)))
    read.clear()
    for _ in range(2 * MAX_EXPORTS):  # each frees its place at once
        answer = client.head("/notes/export")
        assert (answer.status_code, answer.text) == (200, "")
    assert read == []
    export(client)
    assert len(read) == 20


def test_export_of_nothing_has_two_lines(serve: Serve) -> None:
    with serve() as url, httpx2.Client(base_url=url, timeout=60) as client:
        head, end = export(client)
    assert (head["begin"], end["end"], end["notes"]) == ("0-0", "0-0", 0)


def test_export_of_long_notes_is_read_in_parts(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.collection.log_order.MAX_READ_BYTES", 20_000)
    ids = [f"n{n}" for n in range(12)]
    add(client, *ids, content="x" * 4000)
    client.delete("/notes/n3")
    lines = export(client, vectors="base64")
    assert sorted(applied(lines)) == sorted(set(ids) - {"n3"})
    assert lines[-1]["notes"] == 11


def test_vectors_are_exported_in_the_form_that_is_named(client: httpx2.Client) -> None:
    add(client, "a")
    for form in ("float", "base64"):
        (note,) = client.post("/notes/get", json={"ids": ["a"], "vectors": form}).json()["notes"]
        assert export(client, vectors=form)[1]["vector"] == note["vector"]


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("br;q=1, gzip;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("", False),
        ("*, gzip;q=0", False),
        ("*;q=0, gzip", True),
    ],
)
def test_export_is_packed_where_the_caller_takes_it(client: httpx2.Client, accepted: str, packed: bool) -> None:
    add(client, *[f"n{n}" for n in range(30)])
    with client.stream("GET", "/notes/export", headers={"Accept-Encoding": accepted}) as answer:
        raw = b"".join(answer.iter_raw())
    assert (answer.headers.get("content-encoding") == "gzip") is packed
    assert answer.headers["vary"] == "Accept-Encoding"
    lines = (gzip.decompress(raw) if packed else raw).splitlines()
    assert len(lines) == 32


@pytest.mark.parametrize(
    "query",
    [{"after": "x"}, {"begin": "1-0"}, {"vectors": "int8"}, {"since": "1-0"}],
)
def test_export_that_is_not_valid_is_refused(client: httpx2.Client, query: dict[str, str]) -> None:
    add(client, "a")
    assert client.get("/notes/export", params=query).status_code == 422


def test_changes_behind_an_export_are_what_a_later_one_exports(client: httpx2.Client) -> None:
    add(client, "a", "b", "c")
    full = export(client)
    add(client, "d")
    client.patch("/notes/a", json={"author": "tom"})
    client.delete("/notes/b")
    changes = export(client, after=full[-1]["end"])
    assert [line.get("id") or line["removed"] for line in changes[1:-1]] == ["d", "a", "b"]
    assert (changes[-1]["notes"], changes[-1]["removed"]) == (2, 1)
    both = applied(changes, applied(full))
    assert {note_id: line["log_position"] for note_id, line in both.items()} == stored(client, list("abcd"))
    assert len(export(client, after=changes[-1]["end"])) == 2


def test_export_that_was_broken_off_is_gone_on_with(client: httpx2.Client) -> None:
    add(client, *[f"n{n}" for n in range(10)])
    full = export(client)
    begin, seen = full[0]["begin"], full[:6]  # the first line and five notes
    client.delete("/notes/n1")  # one of the notes already seen
    client.patch("/notes/n2", json={"author": "tom"})
    client.delete("/notes/n9")
    rest = export(client, after=seen[-1]["log_position"], begin=begin)
    notes = applied([*seen, *rest[1:]])
    ids = [f"n{n}" for n in range(10)]
    assert {note_id: line["log_position"] for note_id, line in notes.items()} == stored(client, ids)


def test_export_of_changes_that_the_log_has_no_more_is_410_and_one_of_all_notes_is_not(serve: Serve) -> None:
    with serve(log_seconds=0, snapshot_seconds=0.05) as url, httpx2.Client(base_url=url, timeout=60) as client:
        add(client, "a", "b")
        first = client.get("/notes/a").json()["log_position"]

        def is_cut() -> bool:
            client.patch("/notes/b", json={"author": client.get("/notes/b").json()["log_position"]})
            return client.get("/notes/export", params={"after": first}).status_code == 410

        eventually_true(is_cut)
        assert client.get("/notes/export", params={"after": first}).json()["type"].endswith("/log-cut")
        full = export(client)
        assert set(applied(full)) == {"a", "b"}
        rest = export(client, after=first, begin=full[0]["begin"])
        assert set(applied([*full[:2], *rest[1:]])) == {"a", "b"}


def test_export_whose_store_becomes_unavailable_ends_with_a_problem_and_is_gone_on_with(
    serve: Serve, debian_redis: DebianRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stop_store(request: Request) -> None:
        await asyncio.to_thread(debian_redis.stop)

    with serve(redis_url=debian_redis.url) as url, httpx2.Client(base_url=url, timeout=60) as client:
        add(client, "a", "b")
        whole = export(client)
        with monkeypatch.context() as patch:
            patch.setattr("service.collection.export.BATCH_SIZE", 1)
            patch.setattr("service.api.routes.export.reauthorise", stop_store)
            *seen, last = export(client)
        assert seen == whole[:2]
        assert last["problem"]["type"].endswith("/store-unavailable")
        debian_redis.start()
        eventually_true(lambda: client.get("/readyz").status_code == 200)
        within = 'notellm_answers_with_problems_total{method="GET",route="/notes/export",status="503"}'
        eventually_true(lambda: f"{within} 1.0" in client.get("/metrics").text)
        _, *rest = export(client, after=seen[-1]["log_position"], begin=seen[0]["begin"])
        assert rest[:-1] == whole[2:-1]


@contextlib.contextmanager
def writers(client: httpx2.Client, count: int = 2) -> Iterator[dict[str, list[tuple[str, str | None]]]]:
    """Write and remove notes while the block lasts. Yield the acknowledged changes by id: log position and new author,
    None for a removal."""
    ending, history = threading.Event(), dict[str, list[tuple[str, str | None]]]()

    def write(name: int) -> None:
        with httpx2.Client(base_url=client.base_url, timeout=60) as writer:
            for number in itertools.count():
                if ending.is_set():
                    return
                note_id = f"w{name}-{number * 7 % 12}"
                if number % 5 == 4:
                    answer = writer.delete(f"/notes/{note_id}")
                    if answer.status_code == 404:
                        continue
                    author = None
                else:
                    author = f"a{number}"
                    answer = writer.put(f"/notes/{note_id}", json={"title": note_id, "author": author})
                history.setdefault(note_id, []).append((answer.json()["log_position"], author))

    threads = [threading.Thread(target=write, args=(name,)) for name in range(count)]
    for thread in threads:
        thread.start()
    try:
        eventually_true(lambda: len(history) > 5)
        yield history
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def expected_at(history: dict[str, list[tuple[str, str | None]]], end: str) -> dict[str, tuple[str, str]]:
    """Return position and author, by id, of the notes that existed at a log position."""
    state = {}
    for note_id, changes in history.items():
        before = [change for change in changes if key(change[0]) <= key(end)]
        if before and before[-1][1] is not None:
            state[note_id] = before[-1]
    return state


def test_export_beside_writers_gives_exactly_what_the_store_had_at_its_end(client: httpx2.Client) -> None:
    resting = [f"r{n}" for n in range(30)]
    add(client, *resting)
    exports: list[Lines] = []
    with writers(client) as history:
        exports.append(export(client))
        for _ in range(15):
            exports.append(export(client, after=exports[-1][-1]["end"]))
    state: dict[str, Any] = {}
    for number, lines in enumerate(exports):
        state = applied(lines, state)
        positions = [line["log_position"] for line in lines[1:-1]]
        assert positions == sorted(positions, key=key)
        assert not positions or key(positions[-1]) <= key(lines[-1]["end"])
        moving = {i: (line["log_position"], line["author"]) for i, line in state.items() if i not in resting}
        assert moving == expected_at(history, lines[-1]["end"]), f"export {number}"
        assert set(resting) <= set(state)


# POST /notes/import


def strip(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in ("revision", "log_position")}


def bring(client: httpx2.Client, lines: Lines, **query: Any) -> list[dict[str, Any]]:
    answer = client.post("/notes/import", json=lines, params=query)
    assert answer.status_code == 207, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def test_import_restores_notes_and_vectors_without_the_model(client: httpx2.Client, serve: Serve) -> None:
    add(client, "a", hashtags=["soup"], author="tom", attributes={"seats": 2}, expires_at="2199-01-01T00:00:00Z")
    client.post("/notes", params={"generate": "hashtags,category"}, json={"id": "b", "title": "Bread and soup"})
    lines = export(client, vectors="base64")[1:-1]
    with serve() as url, httpx2.Client(base_url=url, timeout=60) as other:
        results = bring(other, lines)
        assert [(result["status"], result["vector"]) for result in results] == [("created", "kept")] * 2
        assert list(map(strip, export(other, vectors="base64")[1:-1])) == list(map(strip, lines))
        assert "notellm_prompt_tokens_total 0" in other.get("/metrics").text
        assert other.post("/similar", json={"title": "Bread and soup"}).json()["items"][0]["id"] == "b"


def test_import_leaves_notes_that_there_are_unless_told_to_replace_them(client: httpx2.Client) -> None:
    add(client, "a", author="tom")
    (line,) = export(client, vectors="float")[1:-1]
    assert [(r["status"], r["vector"]) for r in bring(client, [line], replace=True)] == [("unchanged", "kept")]
    client.patch("/notes/a", json={"author": "ann"})
    assert [(r["status"], r["vector"]) for r in bring(client, [line])] == [("exists", None)]
    assert client.get("/notes/a").json()["author"] == "ann"
    assert [(r["status"], r["vector"]) for r in bring(client, [line], replace=True)] == [("updated", "kept")]
    assert client.get("/notes/a").json()["author"] == "tom"


def test_import_compares_with_long_notes_in_parts(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"n{n}" for n in range(12)]
    add(client, *ids, content="x" * 4000)
    lines = export(client, vectors="base64")[1:-1]
    client.delete("/notes/n7")
    client.patch("/notes/n9", json={"author": "ann"})
    monkeypatch.setattr("service.store.redis_store.MAX_READ_BYTES", 20_000)
    expected = {note_id: "unchanged" for note_id in ids} | {"n7": "created", "n9": "updated"}
    results = bring(client, lines, replace=True)
    assert {result["id"]: result["status"] for result in results} == expected
    assert {result["status"] for result in bring(client, lines)} == {"exists"}


@pytest.mark.parametrize("change", [{"space": "another"}, {"vector": None}, {"space": None}])
def test_note_whose_vector_is_not_of_this_model_is_read_by_it(client: httpx2.Client, change: dict[str, Any]) -> None:
    add(client, "a")
    (line,) = export(client, vectors="float")[1:-1]
    wrong = line | {"id": "b", "vector": [1.0] + [0.0] * (len(line["vector"]) - 1)} | change
    assert [(r["status"], r["vector"]) for r in bring(client, [wrong])] == [("created", "read")]
    read = client.post("/notes/get", json={"ids": ["b"], "vectors": "float"}).json()["notes"][0]
    assert read["vector"] == pytest.approx(line["vector"], abs=1e-4)


@pytest.mark.parametrize("vector", [[1.0, 0.0], [0.5], [], "AAAA", "not base64!", "zero", "nan"])
def test_vector_that_is_not_valid_is_rejected_alone(client: httpx2.Client, vector: Any) -> None:
    add(client, "a", "b")
    good, bad = export(client, vectors="float")[1:-1]
    size = len(bad["vector"])
    bad["vector"] = [0.0] * size if vector == "zero" else "AADAfw==" * size if vector == "nan" else vector
    client.post("/notes/delete", json={"ids": ["a", "b"]})
    results = bring(client, [good, bad])
    assert [result["status"] for result in results] == ["created", "rejected"]
    assert results[1]["problem"]["errors"][0]["pointer"].startswith("/vector")
    assert results[1]["problem"].keys() == {"type", "title", "status", "detail", "errors"}
    assert client.get("/notes/b").status_code == 404


def test_note_without_a_vector_that_is_stored_with_the_same_text_is_not_read_again(client: httpx2.Client) -> None:
    add(client, "a")
    (line,) = export(client, vectors="float")[1:-1]
    bare = line | {"vector": None, "space": None}
    assert [(r["status"], r["vector"]) for r in bring(client, [bare], replace=True)] == [("unchanged", "kept")]
    (moved,) = bring(client, [bare | {"author": "ann"}], replace=True)
    assert (moved["status"], moved["vector"]) == ("updated", "kept")
    (other,) = bring(client, [bare | {"title": "another text"}], replace=True)
    assert (other["status"], other["vector"]) == ("updated", "read")


def bring_text(client: httpx2.Client, text: str, **query: Any) -> httpx2.Response:
    headers = {"Content-Type": "application/x-ndjson"}
    return client.post("/notes/import", content=text, params=query, headers=headers)


def test_import_takes_the_lines_of_an_export_as_they_are(client: httpx2.Client, serve: Serve) -> None:
    add(client, "a", "b", author="tom")
    whole = client.get("/notes/export", params={"vectors": "base64"}).text
    with serve() as url, httpx2.Client(base_url=url, timeout=60) as other:
        answer = bring_text(other, whole)
        assert answer.status_code == 207
        results = [(r["id"], r["status"], r["vector"]) for r in answer.json()["results"]]
        assert results == [("a", "created", "kept"), ("b", "created", "kept")]
        imported, original = (export(one, vectors="base64")[1:-1] for one in (other, client))
        assert list(map(strip, imported)) == list(map(strip, original))
        assert {result["status"] for result in bring_text(other, whole).json()["results"]} == {"exists"}
        compressed = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
        assert other.post("/notes/import", content=gzip.compress(whole.encode()), headers=compressed).status_code == 415


def test_imported_lines_are_applied_in_their_order(client: httpx2.Client) -> None:
    lines = [
        {"id": "twice", "title": "first"},
        {"id": "gone", "title": "gone"},
        {"id": "twice", "title": "second"},
        {"removed": "gone", "log_position": "1-0"},
        {"removed": "unknown", "log_position": "2-0"},
        {"end": "2-0", "notes": 3, "removed": 2, "unreadable": 0},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\n{nope\n\n" + json.dumps({"id": "bad", "title": 7})
    results = bring_text(client, text).json()["results"]
    assert [(result["id"], result["status"]) for result in results] == [
        ("twice", "created"),
        ("unknown", "rejected"),
        (None, "rejected"),
        ("bad", "rejected"),
    ]
    assert [result["problem"] and result["problem"]["status"] for result in results] == [None, 422, 400, 422]
    assert [error["pointer"] for result in results[1::2] for error in result["problem"]["errors"]] == [
        "/removed",
        "/title",
    ]
    assert client.get("/notes/twice").json()["title"] == "second"
    assert client.get("/notes/gone").status_code == 404


def test_imported_lines_are_bounded_and_of_a_version_that_is_read(serve: Serve) -> None:
    with serve(max_batch_notes=2) as url, httpx2.Client(base_url=url, timeout=60) as client:
        lines = [json.dumps({"id": f"n{number}", "title": "a"}) for number in range(3)]
        many = bring_text(client, "\n".join(lines))
        assert (many.status_code, "max_batch_notes" in many.json()["detail"]) == (413, True)
        assert bring_text(client, "\n".join([lines[0], *lines[:2]])).status_code == 207
        other = bring_text(client, '{"export": 2}\n' + lines[2])
        assert (other.status_code, "version" in other.json()["errors"][0]["detail"]) == (422, True)
        assert client.get("/notes/n2").status_code == 404


def test_import_names_no_id_twice(client: httpx2.Client) -> None:
    refused = client.post("/notes/import", json=[{"id": id, "title": "a"} for id in ("a", "b", "a")])
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/2/id")


def test_imported_note_that_has_expired_is_left_out(client: httpx2.Client) -> None:
    notes = [{"id": "over", "title": "sale", "expires_at": "2020-01-01T00:00:00Z"}, {"id": "on", "title": "sale"}]
    results = client.post("/notes/import", json=notes).json()["results"]
    assert [(result["id"], result["status"], result["problem"]) for result in results] == [
        ("over", "expired", None),
        ("on", "created", None),
    ]
    assert client.get("/notes/over").status_code == 404


def test_imported_number_that_is_refused_anew_stays_through_changes_of_other_fields(client: httpx2.Client) -> None:
    attributes = {"n": 1e25, "place": "Kyoto"}
    assert bring(client, [{"id": "vast", "title": "a", "attributes": attributes}])[0]["status"] == "created"
    changed = client.patch("/notes/vast", json={"title": "b"})
    assert changed.status_code == 200, changed.text
    assert client.get("/notes/vast").json()["attributes"] == attributes
    refused = client.patch("/notes/vast", json={"attributes": attributes})
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/attributes/n"]


def test_import_needs_the_scope_of_an_operator(serve: Serve) -> None:
    bootstrap = {"Authorization": "Bearer the-bootstrap-key-of-these-tests"}
    with serve(bootstrap_key="the-bootstrap-key-of-these-tests") as url, httpx2.Client(base_url=url) as client:
        scopes = ["notes.read", "notes.write", "similar", "generate"]
        made = client.post("/keys", json={"name": "all", "scopes": scopes}, headers=bootstrap).json()
        writer = {"Authorization": f"Bearer {made['key']}"}
        assert client.post("/notes/import", json=[], headers=writer).status_code == 403
        assert client.post("/notes/import", json=[], headers=bootstrap).status_code == 207


def test_import_of_a_note_that_is_too_large_rejects_it_alone(serve: Serve) -> None:
    with serve(max_note_bytes=1000) as url, httpx2.Client(base_url=url, timeout=60) as client:
        limit = client.get("/limits").json()["max_import_bytes"]
        notes = [{"id": "large", "title": "x" * limit}, {"id": "small", "title": "small"}]
        results = client.post("/notes/import", json=notes).json()["results"]
        assert [result["status"] for result in results] == ["rejected", "created"]
        assert results[0]["problem"]["status"] == 413
        assert "max_import_bytes" in results[0]["problem"]["detail"]
        assert client.get("/notes/large").status_code == 404


def test_import_names_a_bounded_number_of_errors(client: httpx2.Client) -> None:
    wrong = {f"unknown {number}": number for number in range(15)}
    results = client.post("/notes/import", json=[wrong] * 200).json()["results"]
    assert {result["status"] for result in results} == {"rejected"}
    assert all(result["problem"]["errors"] for result in results)
    assert sum(len(result["problem"]["errors"]) for result in results) < MAX_ANSWER_ERRORS + 20 + len(results)
