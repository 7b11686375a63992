"""Behaviour as a source of a search: notes read after the examples come first if behaviour has a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from tests.service.api.conftest import Serve, eventually_true
from tests.service.api.routes.test_events import event
from tests.service.api.test_behaviour import kept

BOTH = {"content": 1.0, "behaviour": 5.0}
READERS = [f"u{number}" for number in range(12)]
COUNT = 40


@pytest.fixture(scope="module")
def client(serve: Serve) -> Iterator[httpx2.Client]:
    """Client of a service whose readers all read n0, then the note that is farthest from it, and then n5."""
    with serve() as url, httpx2.Client(base_url=url, timeout=60) as opened:
        notes = [
            {"id": f"n{i}", "title": f"note {i} of {i * i} and {i**3}", "category": "Food" if i % 2 else "Travel"}
            for i in range(COUNT)
        ]
        opened.post("/notes", json=notes)
        for note in ("n0", last(opened), "n5"):
            opened.post("/events", json=[event(note, user) for user in READERS])
        eventually_true(lambda: kept(opened) == (36, 12, 3))
        yield opened


def last(client: httpx2.Client) -> str:
    """Return the id of the note that is farthest from n0."""
    found = client.post("/similar", json={"positive": [{"note_id": "n0"}], "k": COUNT}).json()
    name: str = found["items"][-1]["id"]
    return name


def search(client: httpx2.Client, positive: str = "n0", **body: Any) -> list[dict[str, Any]]:
    body = {"positive": [{"note_id": positive}], "k": 5, "sources": BOTH} | body
    answer = client.post("/similar", json=body)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [item["id"] for item in items]


def test_what_was_read_after_an_example_comes_first(client: httpx2.Client) -> None:
    assert set(ids(search(client))[:2]) == {last(client), "n5"}


def test_content_alone_decides_where_behaviour_has_no_weight(client: httpx2.Client) -> None:
    plain = client.post("/similar", json={"positive": [{"note_id": "n0"}], "k": 5}).json()["items"]
    assert ids(search(client, sources={"content": 1.0, "behaviour": 0.0})) == ids(plain)
    assert last(client) not in ids(plain)


def test_what_was_read_before_an_example_is_not_related(client: httpx2.Client) -> None:
    assert last(client) not in ids(search(client, last(client)))
    explained = search(client, last(client), explain=True, k=COUNT - 1)
    assert {item["id"]: item["explanation"]["co_readers"] for item in explained}["n0"] == 0.0


def test_an_explanation_says_what_readers_added(client: httpx2.Client) -> None:
    items = {item["id"]: item for item in search(client, explain=True, k=COUNT - 1)}
    explanation = items[last(client)]["explanation"]
    assert explanation["co_readers"] == 12.0
    assert explanation["behaviour"] == pytest.approx(5 * 12 / 16)
    assert items[last(client)]["score"] == pytest.approx(explanation["positive"][0] + 3.75, abs=1e-5)
    assert (items["n7"]["explanation"]["co_readers"], items["n7"]["explanation"]["behaviour"]) == (0.0, 0.0)
    without = search(client, sources={"content": 1.0}, explain=True)[0]["explanation"]
    assert without["co_readers"] is without["behaviour"] is None


def test_behaviour_finds_only_what_passes_the_filter(client: httpx2.Client) -> None:
    found = search(client, category="Travel", k=COUNT)
    assert {item["category"] for item in found} == {"Travel"}
    assert len(found) == COUNT // 2 - 1
    assert "n5" not in ids(search(client, exclude=["n5"]))


def test_pages_with_behaviour_are_the_one_long_list(client: httpx2.Client) -> None:
    body: dict[str, Any] = {"positive": [{"note_id": "n0"}], "sources": BOTH, "k": 7, "cursor": "*"}
    whole = ids(search(client, k=COUNT))
    paged: list[str] = []
    while body["cursor"]:
        page = client.post("/similar", json=body).json()
        paged += ids(page["items"])
        body["cursor"] = page.get("next_cursor")
    assert paged == whole


def test_a_text_has_no_readers(client: httpx2.Client) -> None:
    text = {"title": "note 0 of 0 and 0", "k": 5}
    with_readers = client.post("/similar", json=text | {"sources": BOTH}).json()["items"]
    assert ids(with_readers) == ids(client.post("/similar", json=text).json()["items"])


@pytest.mark.parametrize(
    ("sources", "pointer"),
    [
        pytest.param({"behaviour": 1.0, "content": 0.0}, "/sources", id="no-content"),
        pytest.param({"behaviour": -1.0}, "/sources", id="below-zero"),
        pytest.param({"behavior": 1.0}, "/sources", id="unknown"),
    ],
)
def test_sources_that_cannot_be_are_refused(client: httpx2.Client, sources: dict[str, float], pointer: str) -> None:
    answer = client.post("/similar", json={"positive": [{"note_id": "n0"}], "sources": sources})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"].startswith(pointer)


def test_readers_who_are_forgotten_have_no_say(serve: Serve, eventually: Callable[[Callable[[], bool]], None]) -> None:
    with serve() as url, httpx2.Client(base_url=url, timeout=60) as own:
        own.post("/notes", json=[{"id": name, "title": name} for name in "abc"])
        own.post("/events", json=[event(note, "u1") for note in "ac"])
        eventually(lambda: kept(own) == (2, 1, 2))

        def co_readers() -> float:
            (item,) = (one for one in search(own, "a", explain=True) if one["id"] == "c")
            readers: float = item["explanation"]["co_readers"]
            return readers

        assert co_readers() == 1.0
        own.delete("/users/u1/events")
        eventually(lambda: co_readers() == 0.0)
