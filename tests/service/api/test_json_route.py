"""What bodies are taken: their media types and encodings, their bounds, their nesting, and that none holds the rest."""

from __future__ import annotations

import gzip

import httpx2
import pytest

from tests.service.api.requests import DEPTHS, NOTE, WITH_BODY, nested, send


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


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_nesting_is_422_on_every_route(client: httpx2.Client, method: str, path: str, depth: int) -> None:
    assert send(client, method, path, nested(depth), "application/json").status_code == 422


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
