"""Bodies that routes accept: media types and encodings, bounds and nesting; and no body holds up the others."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx2
import pytest

from tests.service.api.requests import DEPTHS, NDJSON, NOTE, WITH_BODY, nested, send


@pytest.mark.parametrize(
    ("path", "body", "pointer", "detail"),
    [
        pytest.param("/notes", {"titel": "a"}, "/titel", "did you mean title?", id="note"),
        pytest.param("/events", {"usr": "a"}, "/usr", "did you mean user?", id="event"),
        pytest.param(
            "/similar", {"positive": [{"note": "a"}]}, "/positive/0/note", "did you mean note_id?", id="example"
        ),
        pytest.param(
            "/similar",
            {"positive": ["531"]},
            "/positive/0",
            "must be an object with some of the fields note_id, ",
            id="no-object",
        ),
        pytest.param(
            "/similar",
            {"positive": [{"note_id": "a"}], "filter": {"zz": 1}},
            "/filter/zz",
            "known are: all, ",
            id="filter",
        ),
        pytest.param(
            "/similar",
            {"positive": [{"note_id": "a"}], "sources": "auot"},
            "/sources",
            "must be one of content, auto",
            id="sources",
        ),
    ],
)
def test_wrong_field_is_answered_with_the_known_ones(
    client: httpx2.Client, path: str, body: Any, pointer: str, detail: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert detail in error["detail"]


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "json",
        "application/merge-patch+json",
        "application/JSON-Patch+json; charset=utf-8",
    ],
)
def test_other_media_type_is_415(client: httpx2.Client, method: str, path: str, kind: str) -> None:
    answer = send(client, method, path, NOTE, kind)
    assert (answer.status_code, answer.headers["content-type"]) == (415, "application/problem+json")
    assert "application/json" in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/ld+json"])
def test_json_media_type_in_any_spelling_is_accepted(client: httpx2.Client, kind: str) -> None:
    assert send(client, "POST", "/notes", NOTE, kind).status_code == 201
    assert send(client, "POST", "/similar", NOTE, kind).status_code == 200


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_body_without_media_type_is_415_and_names_json(client: httpx2.Client, method: str, path: str) -> None:
    answer = send(client, method, path, NOTE, None)
    assert answer.status_code == 415
    assert "Content-Type is missing" in answer.json()["detail"]
    assert "application/json" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/notes", b'{"title": "a", "title": "b"}'),
        ("/similar", b'{"title": "a", "filter": {"author": "a", "author": "b"}}'),
        ("/notes/delete", b'{"filter": {"author": "a", "\\u0061uthor": "b"}, "dry_run": true}'),
    ],
)
def test_two_members_of_one_name_are_refused(client: httpx2.Client, path: str, body: bytes) -> None:
    answer = send(client, "POST", path, body, "application/json")
    assert answer.status_code == 400
    assert "is given twice in one object" in answer.json()["detail"]


def test_two_members_of_one_name_refuse_one_note_of_a_list_or_stream(client: httpx2.Client) -> None:
    wrong, right = b'{"title": "a", "title": "b"}', b'{"title": "a"}'
    in_list = send(client, "POST", "/notes", b"[%b,%b]" % (wrong, right), "application/json").json()
    stream = send(client, "POST", "/notes", wrong + b"\n" + right, NDJSON).text
    in_stream = [json.loads(line) for line in stream.splitlines()]
    for results in in_list["results"], in_stream:
        assert [result["status"] for result in results] == ["rejected", "created"]
        assert results[0]["problem"]["status"] == 400


@pytest.mark.parametrize("path", ["/notes", "/similar"])
def test_byte_that_is_not_utf_8_is_named(client: httpx2.Client, path: str) -> None:
    answer = send(client, "POST", path, b'{"title":"\xff"}', "application/json")
    assert answer.status_code == 400
    assert "not valid UTF-8" in answer.json()["detail"]
    assert "(char 10)" in answer.json()["detail"]


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_compressed_body_is_415_and_names_identity(client: httpx2.Client, method: str, path: str) -> None:
    packed = gzip.compress(NOTE)
    answer = send(client, method, path, packed, "application/json", **{"content-encoding": "gzip"})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")


def test_identity_encoding_is_accepted(client: httpx2.Client) -> None:
    headers = {"content-encoding": "identity"}
    assert send(client, "POST", "/similar", NOTE, "application/json", **headers).status_code == 200


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_deeply_nested_body_is_422(client: httpx2.Client, method: str, path: str, depth: int) -> None:
    assert send(client, method, path, nested(depth), "application/json").status_code == 422


def test_note_with_many_errors_lists_20_and_counts_the_rest(client: httpx2.Client) -> None:
    problem = client.post("/notes", json={"title": 1, "hashtags": [1] * 30}).json()
    assert len(problem["errors"]) == 20
    assert "11 more" in problem["detail"]  # 31 errors: 30 hashtags and the title


@pytest.mark.parametrize("path", ["/notes", "/similar", "/generate"])
def test_many_unknown_fields_are_one_error(client: httpx2.Client, path: str) -> None:
    problem = client.post(path, json={"title": "a"} | {f"field{i}": i for i in range(1500)}).json()
    assert problem["status"] == 422
    assert len(problem["errors"]) == 1
    assert "1500" in problem["errors"][0]["detail"]


def test_long_field_name_is_shortened_in_the_problem(client: httpx2.Client) -> None:
    answer = client.post("/notes", json={"title": "a", "x" * 100_000: 1})
    assert answer.status_code == 422
    assert len(answer.content) < 2000
