"""What would be ignored is refused: unknown query parameters, repeated values of a single one, bodies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

OPENAPI = json.loads((Path(__file__).parents[3] / "docs" / "openapi.json").read_text())
OPERATIONS = [(method.upper(), path) for path, methods in OPENAPI["paths"].items() for method in methods]
SEVERAL = "for several values, send a `filter` in the body of a request"
BODIES: dict[str, Any] = {"/notes": {"title": "x"}, "/notes/{note_id}": {"title": "x"}}


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_unknown_parameter_is_named_and_refused(client: httpx2.Client, method: str, path: str) -> None:
    filled = path.format(note_id="sample-en-001", prefix="abcdefghij", name="films", user="u", session="s")
    body = None if method in ("GET", "DELETE") else BODIES.get(path, {"title": "x"})
    answer = client.request(method, filled, json=body, params={"colour": "red"})
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/query/colour"
    assert "is not a parameter of this endpoint" in error["detail"]
    assert client.get("/notes/sample-en-001").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "wrong", "right"),
    [
        ("GET", "/notes/sample-en-001/similar", "min_scor", "min_score"),
        ("POST", "/notes", "generates", "generate"),
        ("POST", "/verify", "repairs", "repair"),
    ],
)
def test_misspelt_parameter_is_answered_with_the_right_one(
    client: httpx2.Client, method: str, path: str, wrong: str, right: str
) -> None:
    body = {"title": "x"} if path == "/notes" else None
    (error,) = client.request(method, path, json=body, params={wrong: "1"}).json()["errors"]
    assert f"did you mean {right}?" in error["detail"]


@pytest.mark.parametrize("header", ["Idempotency-Key", "X-Request-Timeout"])
def test_header_of_one_value_that_is_repeated_is_refused(client: httpx2.Client, header: str) -> None:
    answer = client.post("/notes", json={"title": "x"}, headers=[(header, "1"), (header, "2")])
    assert (answer.status_code, header in answer.json()["detail"]) == (400, True)
    assert client.post("/notes", json={"title": "x"}, headers=[(header, "1"), (header, "1")]).status_code == 201


def test_time_that_is_given_twice_is_refused_by_a_read_too(client: httpx2.Client) -> None:
    headers = [("X-Request-Timeout", "1"), ("X-Request-Timeout", "2")]
    assert client.get("/notes/sample-en-001/similar", headers=headers).status_code == 400


def test_many_unknown_parameters_are_answered_briefly(client: httpx2.Client) -> None:
    answer = client.get("/limits", params={f"{n}-{'x' * 200}": "" for n in range(100)})
    assert (answer.status_code, len(answer.json()["errors"])) == (422, 20)
    assert len(answer.content) < 8000


@pytest.mark.parametrize(
    ("path", "name", "advice"),
    [
        ("/notes/sample-en-001/similar?k=1&k=2", "k", "send one value"),
        ("/notes/sample-en-001/similar?category=Food&k=1&category=Travel", "category", SEVERAL),
        ("/notes?author=a&author=b", "author", SEVERAL),
        ("/reports/recommendations?by=scenario&by=variant", "by", "join its values with commas"),
    ],
)
def test_parameter_that_is_given_twice_and_taken_once_is_refused(
    client: httpx2.Client, path: str, name: str, advice: str
) -> None:
    answer = client.get(path)
    assert answer.status_code == 422, answer.text
    detail = f"is given 2 times, but is read once: {advice}"
    assert answer.json()["errors"] == [{"pointer": f"/query/{name}", "detail": detail}]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/notes/sample-en-001"),
        ("GET", "/notes/sample-en-001"),
        ("GET", "/notes/sample-en-001/similar"),
        ("POST", "/verify"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_body_where_none_is_read_is_refused(client: httpx2.Client, method: str, path: str, chunked: bool) -> None:
    body = b'{"dry_run": true}'
    answer = client.request(method, path, content=iter([body]) if chunked else body)
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (400, "body-not-taken")
    assert client.get("/notes/sample-en-001").status_code == 200
    assert client.request("POST", "/verify", headers={"content-length": "0"}).status_code == 200


def test_parameter_that_is_a_list_is_taken_several_times(client: httpx2.Client) -> None:
    assert client.get("/notes/sample-en-001/similar?exclude=a&exclude=b&hashtag=x&hashtag=y").status_code == 200
    assert client.get("/notes?hashtag=x&hashtag=y").status_code == 200
