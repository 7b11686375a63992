"""POST /similar/batch: several searches in one call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.service.api.requests import NO_JSON


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60) as opened:
        notes = [{"id": f"b{i}", "title": f"batch note {i}", "author": "batch"} for i in range(9)]
        assert opened.post("/notes", json=notes).status_code == 207
        yield opened


def search_all(client: httpx2.Client, *searches: Any) -> list[Any]:
    answer = client.post("/similar/batch", json=list(searches))
    assert answer.status_code == 207, answer.text
    results: list[Any] = answer.json()["results"]
    assert len(results) == len(searches)
    return results


def comparable(answer: Any) -> Any:
    """Return an answer without its id, with scores that compare within the rounding of batches of other sizes."""
    items = [item | {"score": pytest.approx(item["score"], abs=1e-5)} for item in answer["items"]]
    return {name: value for name, value in answer.items() if name != "recommendation_id"} | {"items": items}


@pytest.mark.parametrize("excluded_ids", [0, 5000])
def test_each_search_answers_as_it_does_alone(excluded_ids: int, client: httpx2.Client) -> None:
    excluded = [f"not-stored-{number:08}" for number in range(excluded_ids)]
    searches: list[dict[str, Any]] = [
        {"title": "batch note 3", "k": 3},
        {"positive": [{"note_id": "b1"}, {"title": "batch note 2"}], "negative": [{"title": "another"}], "k": 2},
        {"positive": [{"note_id": "b1"}], "author": "batch", "diversity": 0.3, "k": 4},
    ]
    searches = [search | {"filter": {"exclude": excluded}} for search in searches]
    results = search_all(client, *searches)
    assert [result["status"] for result in results] == [200, 200, 200]
    for search, result in zip(searches, results, strict=True):
        alone = client.post("/similar", json=search).json()
        answer = {name: value for name, value in result["answer"].items() if name != "recommendation_id"}
        assert answer == comparable(alone)
    assert len({result["answer"]["recommendation_id"] for result in results}) == 3


def test_body_that_arrives_while_its_caller_is_watched_is_read_as_a_whole(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.connection.UNWATCHED_SECONDS", 0.0)
    nobody = [f"nobody {number}" for number in range(10_001)]
    results = search_all(client, *[{"title": "a", "k": 1, "filter": {"exclude": nobody}}] * 6)  # 0.9 MB, in many pieces
    assert {result["problem"]["errors"][0]["pointer"] for result in results} == {
        "/filter/exclude"
    }  # it accepts at most 10,000


def test_bad_searches_get_problems_of_their_own(client: httpx2.Client) -> None:
    results = search_all(
        client,
        {"positive": [{"note_id": "nobody"}]},
        {"title": "fine", "k": 1},
        {"title": "k", "k": 0},
        7,
        {},
        {"positive": [{"note_id": "b1"}], "cursor": "01KAZ00000000000000000000Z.5"},
        {"positive": [{"note_id": "b1"}], "min_log_position": "464106481412082-0"},
    )
    assert [result["status"] for result in results] == [404, 200, 422, 422, 422, 410, 422]
    pointers = [[e["pointer"] for e in r["problem"].get("errors", [])] for r in results if "problem" in r]
    assert pointers == [["/positive/0"], ["/k"], [""], ["/content"], [], ["/min_log_position"]]


def test_all_texts_are_read_in_one_batch(client: httpx2.Client) -> None:
    def batches() -> float:
        lines = client.get("/metrics").text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("notellm_batch_tokens_count")))

    before = batches()
    search_all(client, *({"title": f"text {i}", "k": 1} for i in range(12)))
    assert batches() == before + 1


def test_pages_go_on_in_a_batch(client: httpx2.Client) -> None:
    body = {"title": "batch note 1", "k": 2}
    (first,) = search_all(client, {**body, "cursor": "*"})
    (second,) = search_all(client, {**body, "cursor": first["answer"]["next_cursor"]})
    positions = [item["position"] for page in (first, second) for item in page["answer"]["items"]]
    assert positions == [1, 2, 3, 4]


def test_empty_list_has_no_results(client: httpx2.Client) -> None:
    assert search_all(client) == []


def test_too_many_searches_are_refused(client: httpx2.Client) -> None:
    answer = client.post("/similar/batch", json=[{"positive": [{"note_id": "b1"}]}] * 101)
    assert answer.status_code == 413
    assert "max_searches = 100" in answer.json()["detail"]


@pytest.mark.parametrize("item", NO_JSON)
def test_search_that_cannot_be_read_gets_a_problem_of_its_own(client: httpx2.Client, item: bytes) -> None:
    body = b'[{"title": "a", "k": 1}, %s, {"title": "b", "k": 1}]' % item
    answer = client.post("/similar/batch", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 207
    assert [result["status"] for result in answer.json()["results"]] == [200, 400, 200]


@pytest.mark.parametrize("body", [b"[", b'[{"title": "a"},', b'[{"title": bad}]', b'[{"title": "a"},]', b"[] []"])
def test_body_that_is_no_whole_list_is_refused(client: httpx2.Client, body: bytes) -> None:
    answer = client.post("/similar/batch", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
