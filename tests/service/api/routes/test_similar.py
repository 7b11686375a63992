"""GET /notes/{id}/similar and POST /similar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from service.api import waiting
from service.records import position_key

CATEGORIES = ("Food", "Pets")
AUTHORS = ("ann", "bob", "cat")


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60) as opened:
        notes = [
            {
                "id": f"f{i}",
                "title": f"filtered note {i}",
                "category": f"F-{CATEGORIES[i % 2]}",
                "author": f"f-{AUTHORS[i % 3]}",
                "hashtags": [f"f tag {i % 5}"],
                "attributes": {"language": "en" if i % 6 else "zh", "seats": i // 10},
                "created_at": f"2026-01-{i + 1:02}T00:00:00Z",
            }
            for i in range(30)
        ]
        assert opened.post("/notes", json=notes).status_code == 207
        yield opened


def similar(client: httpx2.Client, **params: Any) -> Any:
    answer = client.get("/notes/f0/similar", params=params)
    assert answer.status_code == 200
    return answer.json()


def test_scores_fall_and_the_note_itself_is_not_among_them(client: httpx2.Client) -> None:
    answer = similar(client, k=20)
    scores = [item["score"] for item in answer["items"]]
    assert len(scores) == 20
    assert scores == sorted(scores, reverse=True)
    assert "f0" not in [item["id"] for item in answer["items"]]
    assert (answer["note_id"], answer["complete"], answer["model"]) == ("f0", True, "tiny")


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"category": "F-Food"}, {f"f{i}" for i in range(2, 30, 2)}),
        ({"author": "f-bob"}, {f"f{i}" for i in range(1, 30, 3)}),
        ({"hashtag": "F TAG 4"}, {f"f{i}" for i in range(4, 30, 5)}),
        ({"hashtag": ["f tag 3", "#ftag4"]}, {f"f{i}" for i in range(30) if i % 5 in (3, 4)}),
        ({"category": "F-Pets", "created_after": "2026-01-20T00:00:00Z"}, {f"f{i}" for i in range(21, 30, 2)}),
        (
            {"created_after": "2026-01-04T00:00:00Z", "created_before": "2026-01-09T00:00:00Z"},
            {f"f{i}" for i in range(4, 8)},
        ),
        ({"author": "f-ann", "exclude": ["f3", "f6"]}, {f"f{i}" for i in range(9, 30, 3)}),
        ({"attribute": "language:zh"}, {f"f{i}" for i in range(6, 30, 6)}),
        ({"attribute": ["language:zh", "seats:1"]}, {"f12", "f18"}),
        ({"attribute": "seats:"}, set()),
        ({"category": "nothing has this"}, set()),
    ],
)
def test_a_filter_returns_every_match_and_nothing_else(
    client: httpx2.Client, params: dict[str, Any], expected: set[str]
) -> None:
    answer = similar(client, k=50, **params)
    assert {item["id"] for item in answer["items"]} == expected
    assert answer["complete"]


def test_min_score_cuts_the_tail(client: httpx2.Client) -> None:
    scores = [item["score"] for item in similar(client, k=10)["items"]]
    middle = (scores[4] + scores[5]) / 2
    assert [item["score"] for item in similar(client, k=10, min_score=middle)["items"]] == scores[:5]


def test_a_text_finds_what_its_stored_twin_finds(client: httpx2.Client) -> None:
    body = {"title": "filtered note 0", "hashtags": ["f tag 0"], "k": 5, "exclude": ["f0"]}
    by_text = client.post("/similar", json=body).json()
    assert by_text["note_id"] is None
    assert [i["id"] for i in by_text["items"]] == [i["id"] for i in similar(client, k=5)["items"]]


def test_a_log_position_is_waited_for(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    position = client.post("/notes", json={"id": "f-pos", "title": "position"}).json()["log_position"]
    asked, wait = list[str](), waiting.wait_for_position

    async def recorded(position: str, *arguments: Any) -> None:
        asked.append(position)
        await wait(position, *arguments)

    monkeypatch.setattr("service.api.routes.similar.wait_for_position", recorded)
    by_text = client.post("/similar", json={"title": "position", "min_log_position": position})
    answers = [similar(client, min_log_position=position), by_text.json()]
    assert asked == [position] * 2
    assert all(position_key(answer["log_position"]) >= position_key(position) for answer in answers)


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("k=0", "/query/k"),
        ("k=51", "/query/k"),
        ("k=many", "/query/k"),
        ("created_after=soon", "/query/created_after"),
        ("created_before=-1", "/query/created_before"),
        ("created_after=2026-02-01T00:00:00Z&created_before=2026-01-01T00:00:00Z", "/query/created_before"),
        ("min_score=2", "/query/min_score"),
        ("colour=red", "/query/colour"),
        ("attribute=language", "/query/attribute/0"),
        ("attribute=colour:red", "/query/attribute"),
        ("exclude=a/b", "/query/exclude/0"),
        ("min_log_position=latest", "/query/min_log_position"),
        ("min_log_position=464106481412082-0", "/query/min_log_position"),
    ],
)
def test_a_bad_query_is_refused_with_a_pointer(client: httpx2.Client, query: str, pointer: str) -> None:
    answer = client.get(f"/notes/f0/similar?{query}")
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


def test_an_unknown_note_is_404(client: httpx2.Client) -> None:
    assert client.get("/notes/nobody/similar").status_code == 404
