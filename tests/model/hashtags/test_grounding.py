"""Which hashtags are the same, which may be told, and what those of near notes weigh."""

from __future__ import annotations

import math

import pytest

from model.generation import Hashtag, Neighbour, Neighbours
from model.hashtags.grounding import (
    LEXICAL_SHARE,
    MAX_CANDIDATES,
    MIN_NEIGHBOUR_SHARE,
    NEIGHBOUR_SPREAD,
    NEIGHBOURS_NAMED,
    WRITTEN_WEIGHT,
    HashtagFilter,
    candidates_from,
    dedup_key,
    neighbour_weights,
    rerank,
    scripts,
)
from model.note import Note

ANY = HashtagFilter()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Travel Tips", "traveltip"),
        ("recipes", "Recipe"),
        ("beaches", "beach"),
        ("parties", "party"),
        ("boxes", "box"),
        ("movies", "movie"),
        ("potatoes", "potato"),
    ],
)
def test_a_plural_is_the_same_hashtag(one: str, other: str) -> None:
    assert dedup_key(one) == dedup_key(other)


@pytest.mark.parametrize("word", ["bus", "chess", "tennis", "gas", "news", "lens", "travelnews", "旅行"])
def test_a_word_that_only_looks_like_a_plural_stays(word: str) -> None:
    assert dedup_key(word) == word


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Kyoto 2026!", {"LATIN"}),
        ("旅行 vlog", {"CJK", "LATIN"}),
        ("ラーメン", {"CJK"}),
        ("борщ", {"CYRILLIC"}),
        ("1 🍜", set()),
    ],
)
def test_scripts_are_those_of_the_letters(text: str, expected: set[str]) -> None:
    assert scripts(text) == expected


def test_a_hashtag_of_another_writing_than_the_notes_is_not_told_but_a_latin_one_is() -> None:
    english, chinese = (HashtagFilter.of(Note(title=title), frozenset()) for title in ("Noodles", "面条"))
    assert [english(text) for text in ("noodles", "面条", "2026")] == [True, False, True]
    assert [chinese(text) for text in ("noodles", "面条")] == [True, True]
    assert HashtagFilter.of(Note(title="🍜"), frozenset())("面条")


def test_blocked_hashtags_are_not_told_however_they_are_spelled() -> None:
    allowed = HashtagFilter.of(Note(title="a"), frozenset({"traveltips"}))
    assert [allowed(text) for text in ("Travel  Tips", "travel")] == [False, True]


def test_near_notes_weigh_by_how_near_they_are_in_both_ways() -> None:
    far = 0.9 - NEIGHBOUR_SPREAD  # weighs 1 / e
    near = Neighbours(
        [Neighbour("a", 0.9, ()), Neighbour("b", far, ()), Neighbour("d", far, ())],
        [Neighbour("c", 0.6, ()), Neighbour("b", 0.4, ())],
    )
    total = 1 + 2 / math.e
    assert neighbour_weights(near) == pytest.approx(
        {
            "a": (1 - LEXICAL_SHARE) / total,
            "b": (1 - LEXICAL_SHARE) / math.e / total + LEXICAL_SHARE * 0.16 / 0.52,
            "c": LEXICAL_SHARE * 0.36 / 0.52,
            "d": (1 - LEXICAL_SHARE) / math.e / total,
        }
    )


def test_where_one_way_finds_nothing_the_other_has_all_the_weight() -> None:
    some = [Neighbour("a", 0.5, ("soup",)), Neighbour("b", 0.5, ("soup",))]
    assert (
        neighbour_weights(Neighbours(some))
        == neighbour_weights(Neighbours((), some))
        == pytest.approx({"a": 0.5, "b": 0.5})
    )
    assert neighbour_weights(Neighbours()) == {}


def test_a_hashtag_weighs_as_much_as_the_notes_that_carry_it() -> None:
    """The heaviest notes are named first."""
    soup, soups, cold = (
        Neighbour("a", 0.5, ("Soup", "hot")),
        Neighbour("b", 0.2, ("soups",)),
        Neighbour("c", 0.1, ("cold",)),
    )
    near = candidates_from(Neighbours((), [cold, soups, soup]), ANY)
    assert {key: of.weight for key, of in near.items()} == pytest.approx(
        {"soup": 0.29 / 0.3, "hot": 0.25 / 0.3, "cold": 0.01 / 0.3}
    )
    assert (near["soup"].text, near["soup"].notes) == ("Soup", ["a", "b"])
    assert list(near) == ["soup", "hot", "cold"]


def test_what_is_carried_is_bounded_and_allowed() -> None:
    many = [Neighbour(f"{i}", 0.5, (f"tag {i}",)) for i in range(MAX_CANDIDATES + 9)]
    assert len(candidates_from(Neighbours(many), ANY)) == MAX_CANDIDATES
    assert list(candidates_from(Neighbours(many[:2]), HashtagFilter(frozenset({"tag0"})))) == ["tag1"]
    assert candidates_from(Neighbours(), ANY) == {}


def test_grounded_hashtags_are_ordered_by_what_is_carried_and_what_is_written() -> None:
    near = candidates_from(Neighbours([Neighbour(f"n{i}", 0.9, ("soup",)) for i in range(9)]), ANY)
    told = rerank([Hashtag("hot", 0.5), Hashtag("Soups", 0.1)], near, {"soup": 0.2}, 5)
    soup = (1 + MIN_NEIGHBOUR_SHARE) / (1 + MIN_NEIGHBOUR_SHARE) * 0.2**WRITTEN_WEIGHT
    hot = MIN_NEIGHBOUR_SHARE / (1 + MIN_NEIGHBOUR_SHARE) * 0.5**WRITTEN_WEIGHT
    assert [(h.text, h.score) for h in told] == [("soup", pytest.approx(soup)), ("hot", pytest.approx(hot))]
    assert [h.notes for h in told] == [tuple(f"n{i}" for i in range(NEIGHBOURS_NAMED)), ()]
    assert rerank([Hashtag("hot", 0.5)], near, {"soup": 0.2}, 1) == told[:1]


def test_a_carried_hashtag_that_the_model_would_never_write_is_not_told() -> None:
    near = candidates_from(Neighbours([Neighbour("a", 0.9, ("soup",))]), ANY)
    assert rerank([], near, {"soup": 0.0}, 5) == ()
