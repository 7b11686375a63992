"""Selection against the formulas themselves, one step at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from model.note import Note
from service.ranking.boosts import Boost, Match
from service.ranking.selection import LeftOut, Selection, SelectionOptions
from service.records import Hit, IndexRows, StoredNote

COUNT, DIMENSION = 40, 6


def rows_of(hits: Sequence[Hit], vectors: np.ndarray | None = None) -> IndexRows:
    """Return rows of candidates in the category "all"; the last character of an id names the author."""
    ids = [hit.id for hit in hits]
    vectors = np.zeros((len(ids), DIMENSION), np.float32) if vectors is None else vectors
    names = ["all", *(note_id[-1] for note_id in ids)]
    return IndexRows(
        ids, vectors, np.zeros(len(ids), np.int32), np.arange(1, len(names), dtype=np.int32), dict(enumerate(names))
    )


def candidates(seed: int) -> tuple[list[Hit], np.ndarray]:
    """Random candidates, the best first, and their vectors of unit length."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(COUNT, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = vectors @ (rng.normal(size=DIMENSION) / DIMENSION**0.5)
    order = np.argsort(-scores)
    return [Hit(f"n{i}", float(scores[i])) for i in order], vectors[order]


def maximal_marginal_relevance(hits: list[Hit], vectors: np.ndarray, diversity: float, count: int) -> list[str]:
    """Return the choice by the definition, computed without optimisation."""
    chosen: list[int] = []
    while len(chosen) < count:
        left = [i for i in range(len(hits)) if i not in chosen]
        value = {
            i: (1 - diversity) * hits[i].score
            - diversity * max((float(vectors[i] @ vectors[j]) for j in chosen), default=0.0)
            for i in left
        }
        chosen.append(max(left, key=lambda i: value[i]))
    return [hits[i].id for i in chosen]


@pytest.mark.parametrize("diversity", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_diversity_is_maximal_marginal_relevance(seed: int, diversity: float) -> None:
    hits, vectors = candidates(seed)
    options = SelectionOptions(diversity=diversity, collapse_above=2)
    selection = Selection(options).extended(hits, rows_of(hits, vectors), {}, 12)
    assert [one.id for one in selection.chosen] == maximal_marginal_relevance(hits, vectors, diversity, 12)


@pytest.mark.parametrize("block", [1, 3, 7, 40])
def test_short_selection_is_the_beginning_of_a_long_one(block: int) -> None:
    hits, vectors = candidates(4)
    notes = {hit.id: StoredNote(Note(id=hit.id, author=hit.id[-1], category=hit.id[1]), "s") for hit in hits}
    options = SelectionOptions(0.4, max_per_author=3, max_per_category=6, collapse_above=0.8)

    def select(count: int) -> Selection:
        selection = Selection(options)
        for begin in range(0, COUNT, block):
            if len(selection) < count:
                part = slice(begin, begin + block)
                selection = selection.extended(hits[part], rows_of(hits[part], vectors[part]), notes, count)
        return selection

    whole = select(COUNT)
    assert 5 < len(whole) < COUNT
    for count in range(1, len(whole)):
        assert select(count).chosen == whole.chosen[:count]


def test_no_two_chosen_notes_are_near_duplicates_over_all_blocks() -> None:
    hits, vectors = candidates(5)
    selection = Selection(SelectionOptions(collapse_above=0.6))
    for begin in range(0, COUNT, 10):
        part = slice(begin, begin + 10)
        selection = selection.extended(hits[part], rows_of(hits[part], vectors[part]), {}, COUNT)
    by_id = {hit.id: vector for hit, vector in zip(hits, vectors, strict=True)}
    chosen = [one.id for one in selection.chosen]
    for place, note_id in enumerate(chosen):
        assert all(by_id[note_id] @ by_id[other] < 0.6 for other in chosen[:place])
    assert selection.left_out.collapse_above == COUNT - len(chosen)


def test_copies_collapse_at_1_whatever_the_rounding_of_their_cosine() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 352)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert min(vector @ vector for vector in vectors) < 1, "some are below 1"
    hits = [Hit(f"{copy}{number}", 1 - number / 100) for number in range(50) for copy in "ab"]
    options = SelectionOptions(collapse_above=1)
    selection = Selection(options).extended(hits, rows_of(hits, np.repeat(vectors, 2, axis=0)), {}, len(hits))
    assert [one.duplicates for one in selection.chosen] == [(f"b{number}",) for number in range(50)]


def test_note_that_is_gone_gives_its_place_and_its_duplicates_back() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    hits = [Hit("a", 0.9), Hit("b", 0.9), Hit("c", 0.1)]
    options = SelectionOptions(collapse_above=0.9)
    first = Selection(options).extended(hits, rows_of(hits, vectors), {}, 3)
    assert [(one.id, one.duplicates) for one in first.chosen] == [("a", ("b",)), ("c", ())]
    second = Selection(options).extended(hits, rows_of(hits, vectors), {"a": None}, 3)
    assert [(one.id, one.duplicates) for one in second.chosen] == [("b", ()), ("c", ())]


def test_note_without_an_author_has_no_cap() -> None:
    hits = [Hit(f"n{i}", 1 - i / 10) for i in range(4)]
    notes = {hit.id: StoredNote(Note(id=hit.id, author="ann" if i < 2 else None), "s") for i, hit in enumerate(hits)}
    selection = Selection(SelectionOptions(max_per_author=1)).extended(hits, rows_of(hits), notes, 4)
    assert [one.id for one in selection.chosen] == ["n0", "n2", "n3"]
    assert selection.left_out == LeftOut(max_per_author=1)


def test_note_that_was_not_read_counts_for_caps_as_its_row_says() -> None:
    hits = [Hit(note_id, 0.9) for note_id in ("n1", "m1", "n2", "n3")]
    changed = {"n2": StoredNote(Note(id="n2", author="1"), "s")}
    options = SelectionOptions(max_per_author=1)
    assert [one.id for one in Selection(options).extended(hits, rows_of(hits), {}, 4).chosen] == ["n1", "n2", "n3"]
    assert [one.id for one in Selection(options).extended(hits, rows_of(hits), changed, 4).chosen] == ["n1", "n3"]
    per_category = Selection(SelectionOptions(max_per_category=2)).extended(hits, rows_of(hits), {}, 4)
    assert [one.id for one in per_category.chosen] == ["n1", "m1"]
    assert per_category.left_out == LeftOut(max_per_category=2)


def test_boost_changes_the_order_and_not_the_score() -> None:
    hits = [Hit("a", 0.9), Hit("b", 0.5)]
    notes = {"a": StoredNote(Note(id="a"), "s"), "b": StoredNote(Note(id="b", author="ann"), "s")}
    options = SelectionOptions(boosts=(Boost(0.5, Match(author="ann")),))
    selection = Selection(options).extended(hits, rows_of(hits), notes, 2)
    assert [(one.id, one.score, one.boosts) for one in selection.chosen] == [("b", 0.5, (0.5,)), ("a", 0.9, (0.0,))]
