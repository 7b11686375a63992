"""`include`: further fields of the notes in the items of a search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.api.included import IncludedFields
from service.api.schemas.similar import SimilarOut
from service.read_time import ReadTime
from service.records import RelatedNote, Similar, Write
from service.search.verified import KEPT_CHARACTERS
from service.store.redis_store import RedisNoteStore
from tests.service.api.conftest import Serve
from tests.service.conftest import stored_note

FIELDS = ["content", "created_at", "expires_at", "attributes", "generated", "revision", "log_position"]
PLAIN = {"id", "score", "position", "title", "hashtags", "category", "author"}
BOOTSTRAP_KEY = "the-bootstrap-key-of-these-tests"
LONG = "long " * KEPT_CHARACTERS


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    path: Path = tmp_path_factory.mktemp("s") / "scenarios.toml"
    path.write_text('[feed]\ninclude = ["content"]\n')
    with serve(scenarios=path) as url, httpx2.Client(base_url=url, timeout=60) as opened:
        notes: list[dict[str, Any]] = [
            {"id": f"i{i}", "title": f"note {i}", "content": f"content {i}", "attributes": {"seats": i, "open": True}}
            for i in range(4)
        ]
        notes[1] |= {"content": LONG, "expires_at": "2100-01-01T00:00:00Z"}
        assert opened.post("/notes?generate=hashtags,category", json=notes).status_code == 207
        yield opened


def answers(client: httpx2.Client, include: Any = None, **options: Any) -> list[Any]:
    """Return the answers to one search for i0 from every route that can answer it."""
    asked = options if include is None else options | {"include": include}
    by_ids = {"positive": [{"note_id": "i0"}]} | asked
    batch = client.post("/similar/batch", json=[by_ids, by_ids])
    assert batch.status_code == 207
    responses = [
        client.get("/notes/i0/similar", params=asked),
        client.post("/notes/i0/similar", json=asked),
        client.post("/similar", json=by_ids),
        client.get("/notes/i0/similar", params=asked | {"cursor": "*"}),
    ]
    for response in responses:
        assert response.status_code == 200, response.text
    return [*(response.json() for response in responses), *(result["answer"] for result in batch.json()["results"])]


def test_included_fields_are_those_of_the_note(client: httpx2.Client) -> None:
    for answer in answers(client, FIELDS):
        assert len(answer["items"]) == 3
        assert "unread" not in answer
        for item in answer["items"]:
            note = client.get(f"/notes/{item['id']}").json()
            assert {name: item[name] for name in FIELDS} == {name: note[name] for name in FIELDS}
            assert item.keys() == PLAIN | set(FIELDS)


def test_search_without_include_has_the_fields_that_it_always_had(client: httpx2.Client) -> None:
    for answer in answers(client):
        assert len(answer["items"]) == 3
        assert all(item.keys() == PLAIN for item in answer["items"])


def test_only_fields_that_are_named_are_included(client: httpx2.Client) -> None:
    for answer in answers(client, ["attributes"]):
        assert all(item.keys() == PLAIN | {"attributes"} for item in answer["items"])
        assert {item["id"]: item["attributes"]["seats"] for item in answer["items"]} == {"i1": 1, "i2": 2, "i3": 3}


def test_scenario_binds_include_and_the_request_wins(client: httpx2.Client) -> None:
    for answer in answers(client, scenario="feed"):
        assert {item["id"]: item["content"] for item in answer["items"]}["i1"] == LONG
    for answer in answers(client, ["revision"], scenario="feed"):
        assert len(answer["items"]) == 3
        assert all(item.keys() == PLAIN | {"revision"} for item in answer["items"])


def test_caller_who_may_not_read_notes_gets_what_a_scenario_binds_alone(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "scenarios.toml"
    path.write_text('[feed]\ninclude = ["content"]\nexplain = true\n')
    root = {"Authorization": f"Bearer {BOOTSTRAP_KEY}"}
    with serve(scenarios=path, bootstrap_key=BOOTSTRAP_KEY) as url, httpx2.Client(base_url=url, timeout=60) as client:
        notes = [{"id": f"i{i}", "title": f"note {i}", "content": f"content {i}"} for i in range(2)]
        assert client.post("/notes", json=notes, headers=root).status_code == 207
        for scopes, allowed in ((["similar"], False), (["similar", "notes.read"], True)):
            key = client.post("/keys", json={"name": "a", "scopes": scopes}, headers=root).json()["key"]
            client.headers["Authorization"] = f"Bearer {key}"
            for answer in answers(client, scenario="feed"):
                assert answer["items"][0]["content"] == "content 1"
                assert answer["items"][0]["explanation"]
            options: list[dict[str, Any]] = [{"include": ["content"]}, {"include": ["attributes", "generated"]}]
            for option in (*options, {"explain": True}):
                example = {"positive": [{"note_id": "i0"}]}
                batch = client.post("/similar/batch", json=[example | option, example]).json()["results"]
                problem = batch[0].get("problem")
                responses = [
                    client.get("/notes/i0/similar", params=option),
                    client.get("/notes/i0/similar", params=option | {"scenario": "feed"}),
                    client.post("/notes/i0/similar", json=option),
                    client.post("/similar", json=example | option),
                ]
                assert {response.status_code for response in responses} == {200 if allowed else 403}
                assert [result["status"] for result in batch] == [200 if allowed else 403, 200]
                if not allowed:
                    for detail in (problem["detail"], *(response.json()["detail"] for response in responses)):
                        assert f"notes.read, which a search with `{next(iter(option))}` requires" in detail


def test_fields_beyond_the_bound_are_null_and_the_answer_names_their_notes(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.included.MAX_READ_BYTES", len(LONG) + 300)
    many = [{"positive": [{"note_id": "i0"}], "include": ["content", "revision"]}] * 2
    first, second = (result["answer"] for result in client.post("/similar/batch", json=many).json()["results"])
    assert {item["id"]: item["content"] for item in first["items"]}["i1"] == LONG
    assert "unread" not in first
    without = {item["id"] for item in second["items"] if item["content"] is None}
    assert "i1" in without
    assert set(second["unread"]) == without
    assert all(item["revision"] is None for item in second["items"] if item["id"] in without)


@pytest.mark.parametrize(
    ("include", "pointer"),
    [(["vector"], "/include/0"), (["content,attributes"], "/include/0"), (["content"] * 8, "/include")],
)
def test_unknown_field_is_refused_with_a_pointer(client: httpx2.Client, include: list[str], pointer: str) -> None:
    by_query = client.get("/notes/i0/similar", params={"include": include})
    by_body = client.post("/similar", json={"title": "a", "include": include})
    (listed,) = client.post("/similar/batch", json=[{"title": "a", "include": include}]).json()["results"]
    assert [by_query.status_code, by_body.status_code, listed["status"]] == [422, 422, 422]
    assert [by_query.json()["errors"][0]["pointer"], by_body.json()["errors"][0]["pointer"]] == [
        f"/query{pointer}",
        pointer,
    ]
    assert listed["problem"]["errors"][0]["pointer"] == pointer


@pytest.mark.anyio
async def test_content_that_was_written_meanwhile_is_left_to_a_further_read(store: RedisNoteStore) -> None:
    stored = stored_note("m", content=LONG)
    (written,) = await store.put([Write(stored)])
    assert written
    now, before = (
        Similar("", [RelatedNote(replace(stored, position=position), 1.0, 1)], True, position)
        for position in (written.position, "1-0")
    )
    for similar, content, unread in ((now, LONG, None), (before, None, ["m"])):
        answer = SimilarOut.of(similar, None, "")
        await IncludedFields(store).add(answer, similar, ["content"], ReadTime())
        assert (answer.items[0].content, answer.unread) == (content, unread)
