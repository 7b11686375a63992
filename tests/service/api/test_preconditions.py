"""If-Match and If-None-Match: honoured, or refused with 400 where they are malformed or not supported."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx2
import pytest

from tests.service.api.requests import NDJSON

NOTE = {"title": "Lemon tart"}
OLD = '"1-0"'
HOLDING = ("If-Match: *", "If-Match: {old}, {etag}", "If-Match: W/{etag}", "If-None-Match: {old}")
numbers = count()


@pytest.fixture
def stored(client: httpx2.Client) -> tuple[str, str]:
    """URL and ETag of a fresh note."""
    answer = client.post("/notes", json=NOTE | {"id": f"conditional-{next(numbers)}"})
    return answer.headers["location"], answer.headers["etag"]


def change(client: httpx2.Client, method: str, path: str, headers: dict[str, str]) -> httpx2.Response:
    """Change a note by its own URL, or by POST of its id."""
    note_id = path.rpartition("/")[2]
    if method == "POST":
        return client.post("/notes", json={"id": note_id, "title": "Changed"}, headers=headers)
    body: Any = None if method == "DELETE" else {"title": "Changed"}
    return client.request(method, path, json=body, headers=headers)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("value", ["", '""', "1-0", '"1-0', '"x"', '"1-0"x', "*, *", ",".join(['"1-0"'] * 17)])
@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_malformed_condition_is_400(
    client: httpx2.Client, stored: tuple[str, str], method: str, value: str, header: str
) -> None:
    path, etag = stored
    answer = change(client, method, path, {header: value})
    assert answer.status_code == 400
    assert header in answer.json()["detail"]
    assert client.get(path).headers["etag"] == etag


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_condition_that_does_not_hold_is_412(client: httpx2.Client, stored: tuple[str, str], method: str) -> None:
    path, etag = stored
    for failing in ({"If-Match": OLD}, {"If-None-Match": "*"}, {"If-None-Match": f"{OLD}, {etag}"}):
        assert change(client, method, path, failing).status_code == 412
    assert client.get(path).headers["etag"] == etag


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "header", ["If-Match: *", "If-Match: {old}, {etag}", "If-Match: W/{etag}", "If-None-Match: {old}"]
)
def test_condition_that_holds_lets_the_change_pass(
    client: httpx2.Client, stored: tuple[str, str], method: str, header: str
) -> None:
    path, etag = stored
    name, _, value = header.format(old=OLD, etag=etag).partition(": ")
    assert change(client, method, path, {name: value}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_if_none_match_star_creates_only(client: httpx2.Client, method: str) -> None:
    path = f"/notes/created-once-{method}"
    assert change(client, method, path, {"If-None-Match": "*"}).status_code == 201
    again = change(client, method, path, {"If-None-Match": "*"})
    assert (again.status_code, "exists already" in again.json()["detail"]) == (412, True)
    missing = change(client, method, f"{path}-missing", {"If-Match": "*"})
    assert (missing.status_code, "does not exist" in missing.json()["detail"]) == (412, True)
    assert client.get(path).json()["revision"] == 1


def test_if_none_match_star_of_many_creates_one(client: httpx2.Client) -> None:
    def create(n: int) -> int:
        return client.put("/notes/raced", json={"title": f"Racer {n}"}, headers={"If-None-Match": "*"}).status_code

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(create, range(8)))
    assert sorted(statuses) == [201] + [412] * 7


def test_get_of_a_known_version_is_304(client: httpx2.Client, stored: tuple[str, str]) -> None:
    path, etag = stored
    for known in (etag, f"W/{etag}", f"{OLD}, {etag}", "*"):
        answer = client.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert client.get(path, headers={"If-None-Match": OLD}).status_code == 200
    assert client.get(path, headers={"If-Match": etag}).status_code == 200
    assert client.get(path, headers={"If-Match": OLD}).status_code == 412


@pytest.mark.parametrize("headers", [{"If-Match": "*"}, {"If-None-Match": "*"}, {"If-Unmodified-Since": "x"}])
def test_condition_that_cannot_be_honoured_is_400(client: httpx2.Client, headers: dict[str, str]) -> None:
    (name,) = headers
    answers = (
        client.post("/notes", json=NOTE, headers=headers),
        client.post("/notes", json=[NOTE | {"id": "listed"}], headers=headers),
        client.post("/notes", content=b'{"title": "x"}', headers=headers | {"content-type": NDJSON}),
        client.post("/similar", json=NOTE, headers=headers),
        client.post("/generate", json=NOTE, headers=headers),
        client.get("/notes/sample-en-001/similar", headers=headers),
        client.get("/limits", headers=headers),
    )
    assert [answer.status_code for answer in answers] == [400] * 7
    assert all(name in answer.json()["detail"] for answer in answers)


def test_both_conditions_at_once_are_400(client: httpx2.Client, stored: tuple[str, str]) -> None:
    path, etag = stored
    assert client.put(path, json=NOTE, headers={"If-Match": etag, "If-None-Match": OLD}).status_code == 400


def test_lines_of_one_condition_are_one_list(client: httpx2.Client, stored: tuple[str, str]) -> None:
    path, etag = stored
    refused = client.put(path, json=NOTE, headers=[("If-None-Match", OLD), ("If-None-Match", "*")])
    assert (refused.status_code, client.get(path).headers["etag"]) == (400, etag)
    assert client.put(path, json=NOTE, headers=[("If-Match", OLD), ("If-Match", etag)]).status_code == 200


def test_etag_that_a_proxy_has_changed_matches_no_version(client: httpx2.Client, stored: tuple[str, str]) -> None:
    path, etag = stored
    changed = etag[:-1] + '-gzip"'
    answer = client.get(path, headers={"If-None-Match": changed})
    assert (answer.status_code, answer.headers["etag"]) == (200, etag)
    assert client.get(path, headers={"If-None-Match": f"{changed}, {etag}"}).status_code == 304
    assert client.get(path, headers={"If-Match": changed}).status_code == 412
    assert client.get(path, headers={"If-None-Match": "1-0"}).status_code == 400


@pytest.mark.parametrize("form", ["{etag},", ", {etag} ,,", '"a,b", {etag}', ", ".join(['"x"'] * 17) + ", {etag}"])
def test_list_of_etags_may_have_commas_within_and_around_them(client: httpx2.Client, form: str) -> None:
    etag = client.put("/notes/commas", json={"title": "Commas"}).headers["etag"]
    answer = client.get("/notes/commas", headers={"If-None-Match": form.format(etag=etag)})
    assert answer.status_code == 304
    others = client.get("/notes/commas", headers={"If-None-Match": form.format(etag=OLD)})
    assert others.status_code == 200
