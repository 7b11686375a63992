"""What bodies are taken: their media types and encodings, their bounds, their nesting, and that none holds the rest."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.service.api.routes.conftest import Serve

NOTE = b'{"title": "a note"}'
NDJSON = "application/x-ndjson"
WITH_BODY = [
    ("POST", "/notes"),
    ("PUT", "/notes/typed"),
    ("PATCH", "/notes/typed"),
    ("POST", "/similar"),
    ("POST", "/generate"),
    ("POST", "/generate/hashtags"),
    ("POST", "/generate/hashtags/stream"),
    ("POST", "/generate/category"),
]
DEPTHS = (250, 300, 1000)


def send(
    client: httpx2.Client, method: str, path: str, body: bytes, kind: str | None, **headers: str
) -> httpx2.Response:
    typed = {} if kind is None else {"content-type": kind}
    return client.request(method, path, content=body, headers=typed | headers)


def nested(depth: int) -> bytes:
    """A note with a field that notes do not have, so deep."""
    return b'{"id": "deep", "title": "deep", "colour": %s}' % (b"[" * depth + b"]" * depth)


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json"])
def test_a_type_that_a_route_does_not_take_is_415(client: httpx2.Client, method: str, path: str, kind: str) -> None:
    answer = send(client, method, path, NOTE, kind)
    assert (answer.status_code, answer.headers["content-type"]) == (415, "application/problem+json")
    assert "application/json" in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/ld+json"])
def test_json_by_any_of_its_names_is_taken(client: httpx2.Client, kind: str) -> None:
    assert send(client, "POST", "/notes", NOTE, kind).status_code == 201
    assert send(client, "POST", "/similar", NOTE, kind).status_code == 200


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_a_body_without_a_type_is_400_and_told_which(client: httpx2.Client, method: str, path: str) -> None:
    answer = send(client, method, path, NOTE, None)
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["detail"]


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_a_packed_body_is_415_and_told_what_is_taken(client: httpx2.Client, method: str, path: str) -> None:
    packed = gzip.compress(NOTE)
    answer = send(client, method, path, packed, "application/json", **{"content-encoding": "gzip"})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")


def test_an_encoding_that_changes_nothing_is_taken(client: httpx2.Client) -> None:
    headers = {"content-encoding": "identity"}
    assert send(client, "POST", "/similar", NOTE, "application/json", **headers).status_code == 200


@pytest.mark.parametrize("kind", ["application/x-ndjson-but-not", "application/x-ndjson+json", NDJSON])
@pytest.mark.parametrize(("method", "path"), WITH_BODY[1:])
def test_no_type_lifts_the_bound_of_a_body(client: httpx2.Client, method: str, path: str, kind: str) -> None:
    endless: Any = (b" " * 2**16 for _ in range(2**10))  # 64 MiB, of which 1 MiB may come
    with contextlib.suppress(httpx2.TransportError):  # the service may close while it is being sent
        assert send(client, method, path, endless, kind).status_code in (413, 415)


def test_a_type_that_begins_as_a_streams_is_none(client: httpx2.Client) -> None:
    assert send(client, "POST", "/notes", NOTE + b"\n", "application/x-ndjson-but-not").status_code == 415
    assert send(client, "POST", "/notes", NOTE + b"\n", f"{NDJSON}; charset=utf-8").status_code == 200


@pytest.mark.parametrize("path", ["/similar", "/generate"])
def test_a_body_of_unknown_length_over_its_bound_is_413(client: httpx2.Client, path: str) -> None:
    chunks: Any = (b" " * 65536 for _ in range(20))
    assert send(client, "POST", path, chunks, "application/json").status_code == 413


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_nesting_is_422_on_every_route(client: httpx2.Client, method: str, path: str, depth: int) -> None:
    assert send(client, method, path, nested(depth), "application/json").status_code == 422


@pytest.mark.parametrize("depth", DEPTHS)
def test_nesting_in_a_list_rejects_its_item_alone(client: httpx2.Client, depth: int) -> None:
    body = b'[{"id": "beside-1", "title": "good"}, %s, {"id": "beside-2", "title": "good"}]' % nested(depth)
    answer = send(client, "POST", "/notes", body, "application/json")
    results = answer.json()["results"]
    assert answer.status_code == 207
    assert [result.get("problem", {}).get("status") for result in results] == [None, 422, None]
    assert client.get("/notes/beside-2").status_code == 200


@pytest.mark.parametrize("depth", DEPTHS)
def test_nesting_in_a_stream_rejects_its_line_alone(client: httpx2.Client, depth: int) -> None:
    body = b'{"id": "around-1", "title": "good"}\n%s\n{"id": "around-2", "title": "good"}' % nested(depth)
    answer = send(client, "POST", "/notes", body, NDJSON)
    results = [json.loads(line) for line in answer.text.splitlines()]
    assert [result.get("problem", {}).get("status") for result in results] == [None, 422, None]
    assert client.get("/notes/around-2").status_code == 200


def test_errors_of_a_note_are_few_and_the_rest_is_counted(client: httpx2.Client) -> None:
    bad = {"title": 1, "hashtags": [1] * 25} | {f"field{i}": i for i in range(5)}
    problem = client.post("/notes", json=bad).json()
    assert len(problem["errors"]) == 20
    assert "11 more" in problem["detail"]  # of 25 hashtags, 5 fields and the title


@pytest.mark.parametrize("path", ["/notes", "/similar", "/generate"])
def test_unknown_fields_beyond_a_few_are_one_error(client: httpx2.Client, path: str) -> None:
    problem = client.post(path, json={"title": "a"} | {f"field{i}": i for i in range(1500)}).json()
    assert problem["status"] == 422
    assert len(problem["errors"]) == 1
    assert "1500" in problem["errors"][0]["detail"]


def test_a_long_name_of_a_field_is_not_repeated_whole(client: httpx2.Client) -> None:
    answer = client.post("/notes", json={"title": "a", "x" * 100_000: 1})
    assert answer.status_code == 422
    assert len(answer.content) < 2000


@pytest.fixture(scope="module")
def roomy_url(serve: Serve) -> Iterator[str]:
    """A service with the published limits."""
    with serve() as address:
        yield address


def test_others_are_answered_while_a_huge_list_is_refused(roomy_url: str) -> None:
    note = {"title": "x"} | {f"k{i}": 0 for i in range(1500)}
    body = json.dumps([note] * 1000, separators=(",", ":")).encode()
    assert len(body) > 13e6
    answers: list[httpx2.Response] = []

    def refuse() -> None:
        headers = {"content-type": "application/json"}
        answers.append(httpx2.post(f"{roomy_url}/notes", content=body, headers=headers, timeout=60))

    huge = threading.Thread(target=refuse)
    between = 0
    with httpx2.Client(base_url=roomy_url, timeout=60) as client:
        huge.start()
        while huge.is_alive():
            assert client.get("/livez").status_code == 200
            between += 1
    huge.join()
    (answer,) = answers
    assert {result["status"] for result in answer.json()["results"]} == {"rejected"}
    assert len(answer.content) < 2**20
    assert between >= 10
