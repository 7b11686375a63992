"""Searches by words beside vectors: `sources` of GET and POST /similar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.service.api.conftest import Serve

RARE = "quetzal"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60) as opened:
        notes = [{"id": f"w{i}", "title": f"walk number {i} in town", "author": f"w-{i % 3}"} for i in range(30)]
        notes += [
            {"id": "w-first", "title": f"{RARE} seen at dawn", "content": "a long story of other things"},
            {"id": "w-second", "title": "what we did all week", "content": f"among it a {RARE}", "author": "w-0"},
        ]
        assert opened.post("/notes", json=notes).status_code == 207
        yield opened


def similar(client: httpx2.Client, **body: Any) -> Any:
    answer = client.post("/similar", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer: Any) -> list[str]:
    return [item["id"] for item in answer["items"]]


def test_text_with_a_rare_word_finds_the_notes_that_have_it(client: httpx2.Client) -> None:
    assert set(ids(similar(client, title=RARE, sources={"words": 100}, k=2))) == {"w-first", "w-second"}


def test_stored_note_with_a_rare_word_finds_the_other_one(client: httpx2.Client) -> None:
    body = {"positive": [{"note_id": "w-first"}], "sources": {"words": 100}, "k": 1}
    assert ids(similar(client, **body)) == ["w-second"]
    answer = client.post("/notes/w-first/similar", json={"sources": {"words": 100}, "k": 1})
    assert ids(answer.json()) == ["w-second"]


def test_auto_by_query_and_by_body_are_the_same(client: httpx2.Client) -> None:
    by_query = client.get("/notes/w1/similar", params={"sources": "auto", "k": 20}).json()
    by_body = client.post("/notes/w1/similar", json={"sources": "auto", "k": 20}).json()
    assert by_query["items"] == by_body["items"]
    assert by_query["items"] != client.get("/notes/w1/similar", params={"k": 20}).json()["items"]


def test_auto_leaves_words_out_that_no_note_shares_many_of(client: httpx2.Client) -> None:
    body = {"positive": [{"note_id": "w-first"}], "k": 20}  # shares one word of eleven with one note
    assert similar(client, **body, sources="auto")["items"] == similar(client, **body)["items"]
    assert similar(client, **body, sources={"words": 0.5})["items"] != similar(client, **body)["items"]


WEIGHTS = {"content": 1, "words": 0.5, "behaviour": 1}
"""The weights that `auto` has by default."""


def test_weights_that_auto_has_too_are_taken_as_they_are(client: httpx2.Client) -> None:
    body = {"positive": [{"note_id": "w-first"}], "k": 20}  # `auto` leaves words out
    by_words = similar(client, **body, sources={"words": 0.5})["items"]
    searches = [body | {"sources": sources} for sources in (WEIGHTS, "auto")]
    assert similar(client, **searches[0])["items"] == by_words
    of_note = client.post("/notes/w-first/similar", json={"k": 20, "sources": WEIGHTS}).json()
    assert of_note["items"] == by_words
    by_weights, by_name = client.post("/similar/batch", json=searches).json()["results"]
    assert by_weights["answer"]["items"] == by_words != by_name["answer"]["items"]


@pytest.mark.parametrize(("first", "other"), [("auto", WEIGHTS), (WEIGHTS, "auto")], ids=["name", "weights"])
def test_cursor_is_of_the_name_or_of_the_weights(client: httpx2.Client, first: Any, other: Any) -> None:
    body = {"positive": [{"note_id": "w-first"}], "k": 5}
    cursor = similar(client, **body, sources=first, cursor="*")["next_cursor"]
    refused = client.post("/similar", json=body | {"sources": other, "cursor": cursor})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/cursor")
    assert len(similar(client, **body, sources=first, cursor=cursor)["items"]) == 5


@pytest.mark.parametrize(("weight", "is_the_same"), [(0.0, True), (0.3, False)])
def test_auto_gives_words_the_weight_of_the_setting(serve: Serve, weight: float, is_the_same: bool) -> None:
    with serve(words_weight=weight) as url, httpx2.Client(base_url=url, timeout=60) as client:
        notes = [{"id": f"w{i}", "title": f"walk number {i} in town", "content": f"day {i % 4}"} for i in range(12)]
        assert client.post("/notes", json=notes).status_code == 207
        body = {"positive": [{"note_id": "w1"}], "k": 5}
        by_words = similar(client, **body, sources={"words": weight})["items"]
        assert similar(client, **body, sources="auto")["items"] == by_words
        assert (similar(client, **body)["items"] == by_words) is is_the_same
        named = similar(client, **body, sources=WEIGHTS)["items"]
        assert named == similar(client, **body, sources={"words": 0.5})["items"] != by_words


@pytest.mark.parametrize("sources", ["auto", {"words": 0.5}])
def test_text_query_puts_the_note_first_that_has_its_words(client: httpx2.Client, sources: Any) -> None:
    titles = {
        "w-intestines": "Half a pound of chili for dry fried duck intestines, very hot and great fun",
        "w-pond": "A duck and her ducklings on the pond behind our house",
        "w-balcony": "How I grow chili on a balcony that faces north",
        "w-noodles": "Chili oil, and three bowls of noodles to put it on",
    }
    notes = [{"id": name, "title": title} for name, title in titles.items()]
    assert client.post("/notes", json=notes).status_code == 207
    answer = similar(client, title="duck intestines chili", sources=sources, explain=True, k=5)
    assert ids(answer)[0] == "w-intestines"
    assert set(answer["items"][0]["explanation"]["shared_words"]) == {"duck", "intestines", "chili"}
    client.post("/notes/delete", json={"ids": list(titles)})


def test_content_alone_is_the_default(client: httpx2.Client) -> None:
    default = similar(client, title=RARE, k=20)["items"]
    assert default == similar(client, title=RARE, sources="content", k=20)["items"]
    assert default == similar(client, title=RARE, sources={"content": 2}, k=20)["items"]


def test_filter_holds_for_notes_found_by_words(client: httpx2.Client) -> None:
    body = {"title": RARE, "sources": {"words": 100}}
    assert "w-first" not in ids(similar(client, author="w-0", **body, k=50))
    assert ids(similar(client, author="w-0", **body, k=1)) == ["w-second"]
    assert "w-second" not in ids(similar(client, exclude=["w-second"], **body, k=50))


@pytest.mark.parametrize("options", [{}, {"diversity": 0.5}, {"max_per_author": 2, "collapse_above": 0.99}])
def test_first_notes_do_not_depend_on_how_many_are_asked_for(client: httpx2.Client, options: dict[str, Any]) -> None:
    body = {"title": f"{RARE} walk in town", "sources": "auto", **options}
    assert ids(similar(client, **body, k=30))[:7] == ids(similar(client, **body, k=7))


def test_explanation_names_shared_words(client: httpx2.Client) -> None:
    answer = similar(client, title=f"a {RARE} in town", sources={"words": 100}, explain=True, k=1)
    explanation = answer["items"][0]["explanation"]
    assert explanation["shared_words"][0] == RARE
    assert explanation["words"] > 0
    assert explanation["relevance"] == pytest.approx(explanation["positive"][0] + explanation["words"])


def test_explanation_without_words_has_none(client: httpx2.Client) -> None:
    answer = similar(client, title=RARE, explain=True, k=1)
    assert answer["items"][0]["explanation"]["words"] is None


def test_removed_note_is_not_found_by_its_words(client: httpx2.Client) -> None:
    word = "axolotl"
    note = {"id": "w-gone", "title": f"{word} in a tank"}
    assert client.post("/notes", json=note).status_code == 201
    body = {"title": word, "sources": {"words": 100}, "k": 50}
    assert ids(similar(client, **body))[0] == "w-gone"
    assert client.delete("/notes/w-gone").status_code == 200
    assert "w-gone" not in ids(similar(client, **body))


def test_changed_text_is_found_by_its_new_words_alone(client: httpx2.Client) -> None:
    assert client.post("/notes", json={"id": "w-changed", "title": "an ocelot"}).status_code == 201
    assert client.patch("/notes/w-changed", json={"title": "a capybara"}).status_code == 200
    new, old = (
        similar(client, title=word, sources={"words": 100}, explain=True, k=1) for word in ("capybara", "ocelot")
    )
    assert new["items"][0]["explanation"]["shared_words"] == ["capybara"]
    assert old["items"][0]["explanation"]["shared_words"] == []
    assert client.delete("/notes/w-changed").status_code == 200
