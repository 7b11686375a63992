"""Lists of items: every item has its own result, and no list holds up other requests."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator

import httpx2
import pytest

from service.api.problems import MAX_ECHOED_ID
from tests.service.api.conftest import Serve
from tests.service.api.requests import DEPTHS, NO_JSON, UNCERTAIN_LISTS, nested, send

LISTS = ["/notes", "/notes/import", "/events", "/similar/batch"]
"""Paths of endpoints that accept a list."""


def test_list_with_invalid_notes_adds_the_valid_ones(client: httpx2.Client) -> None:
    notes = [{"id": "l1", "title": "one"}, {"id": "l2"}, 7, {"id": "l3", "title": "three"}, {"id": "l1", "title": "1"}]
    answer = client.post("/notes", json=notes)
    results = answer.json()["results"]
    assert answer.status_code == 207
    assert [r["status"] for r in results] == ["created", "rejected", "rejected", "created", "updated"]
    assert results[1]["problem"]["errors"][0]["pointer"] == "/1/content"
    assert results[1]["id"] == "l2"
    assert client.get("/notes/l1").json()["title"] == "1"


@pytest.mark.parametrize("depth", DEPTHS)
def test_list_with_a_deeply_nested_item_rejects_it_alone(client: httpx2.Client, depth: int) -> None:
    body = b'[{"id": "beside-1", "title": "good"}, %s, {"id": "beside-2", "title": "good"}]' % nested(depth)
    answer = send(client, "POST", "/notes", body, "application/json")
    results = answer.json()["results"]
    assert answer.status_code == 207
    assert [result.get("problem", {}).get("status") for result in results] == [None, 422, None]
    assert client.get("/notes/beside-2").status_code == 200


@pytest.mark.parametrize("item", NO_JSON)
@pytest.mark.parametrize("path", ["/notes", "/notes/import"])
def test_list_with_an_item_that_cannot_be_read_rejects_it_alone(client: httpx2.Client, path: str, item: bytes) -> None:
    body = b'[{"id": "read-1", "title": "good"}, %s, {"id": "read-2", "title": "good"}]' % item
    answer = send(client, "POST", path, body, "application/json")
    results = answer.json()["results"]
    assert answer.status_code == 207
    assert [result["status"] == "rejected" for result in results] == [False, True, False]
    problem = results[1]["problem"]
    assert (problem["status"], problem["type"].rpartition("/")[2]) == (400, "malformed-body")
    assert client.get("/notes/read-2").status_code == 200


@pytest.mark.parametrize(
    ("path", "field"),
    [("/notes", "id"), ("/notes/import", "id"), ("/events", "event_id")],
    ids=["notes", "import", "events"],
)
def test_result_of_a_refused_item_repeats_its_whole_id_or_none(client: httpx2.Client, path: str, field: str) -> None:
    """A too long id is not cut: its first characters may be the id of another item."""
    longest = "x" * MAX_ECHOED_ID
    results = client.post(path, json=[{field: one, "unknown": 1} for one in (longest, longest + "x", 7)]).json()[
        "results"
    ]
    assert [result.get(field) for result in results] == [longest, None, None]


@pytest.mark.parametrize("body", [b"[", b'[{"title": "a"},', b"[{},]", b"[,{}]", b"[{},,{}]", b"[] []", b'[{"a": "}]'])
@pytest.mark.parametrize("path", LISTS)
def test_body_that_is_no_list_of_items_is_refused_whole(client: httpx2.Client, path: str, body: bytes) -> None:
    answer = send(client, "POST", path, body, "application/json")
    assert answer.status_code == 400
    assert answer.json()["type"].endswith("malformed-body")


@pytest.mark.parametrize("body", UNCERTAIN_LISTS)
@pytest.mark.parametrize("path", LISTS)
def test_list_whose_items_are_not_certain_is_refused_whole(client: httpx2.Client, path: str, body: bytes) -> None:
    answer = send(client, "POST", path, body, "application/json")
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (400, "malformed-body")
    assert re.search("item [01] of the list", answer.json()["detail"])


@pytest.fixture(scope="module")
def roomy_url(serve: Serve) -> Iterator[str]:
    """A service with the published limits."""
    with serve() as address:
        yield address


def test_huge_list_does_not_hold_up_other_requests(roomy_url: str) -> None:
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
