"""Tests of an evaluation on hand-made data: which notes and pairs count, what a system is shown, what is recorded."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from model.data.pairs import split_of
from model.data.pairs_file import Pair
from model.evaluation.evaluate import EvaluationData, closed_set, evaluate, evaluate_categories, notes_of_split
from model.evaluation.protocol import PROTOCOLS
from model.evaluation.ranking import Scorer
from model.evaluation.record import INVENTED
from model.note import Note

pytestmark = pytest.mark.slow

TEST = [str(i) for i in range(100) if split_of(str(i)) == "test"]


TRAIN = [str(i) for i in range(100) if split_of(str(i)) == "train"]


OTHERS = [str(i) for i in range(100) if split_of(str(i)) != "test"]


def data_of(
    notes: Mapping[str, Note],
    pairs: Mapping[str, Sequence[Pair]] | None = None,
    clicks: Mapping[str, int] | None = None,
) -> EvaluationData:
    return EvaluationData("data", notes, pairs or {}, clicks or {})


class ByLength:
    """Scores a note by how close its title's length is to the query's, so that ranks can be worked out by hand."""

    name = "by-length"

    def related(self, notes: Sequence[Note]) -> Scorer:
        lengths = np.array([len(note.title) for note in notes], np.float32)
        self.hashtags_seen = any(note.hashtags for note in notes)
        return lambda rows: -abs(lengths[rows][:, None] - lengths)


def in_both(*pairs: tuple[str, str]) -> dict[str, list[Pair]]:
    return {protocol: [Pair(note, related, 1.0) for note, related in pairs] for protocol in PROTOCOLS}


def notes_of(lengths: dict[str, int]) -> dict[str, Note]:
    return {i: Note(id=i, title="x" * n, hashtags=("h",)) for i, n in lengths.items()}


def test_small_pool_is_told_with_the_cutoffs_that_say_nothing():
    a, b = TEST[:2]
    told: list[str] = []
    evaluate(ByLength(), data_of(notes_of({a: 1, b: 2, OTHERS[0]: 3}), in_both((a, b))), progress=told.append)
    trivial = "so Recall@10, Recall@100, Recall@1000 is 100% whatever the system"
    assert f"cold-cold: the pool has 2 notes, {trivial}" in told
    assert f"cold-all: the pool has 3 notes, {trivial}" in told


def test_pool_larger_than_every_cutoff_is_told_alone():
    a, b = TEST[:2]
    told: list[str] = []
    notes = notes_of({a: 1, b: 2} | {f"n{i}": 3 for i in range(1000)})
    evaluate(ByLength(), data_of(notes, in_both((a, b))), progress=told.append)
    assert "cold-all: the pool has 1,002 notes" in told


def test_pool_is_the_split_in_cold_cold_and_all_in_cold_all():
    a, b, c = TEST[:3]
    x, y = OTHERS[:2]
    notes = notes_of({a: 10, b: 14, c: 11, x: 13, y: 40})
    record = evaluate(ByLength(), data_of(notes, in_both((a, b), (a, x), (x, a), (x, y))))
    assert record.related["cold-cold"].ranks == [2]  # c ranks before b
    by_id = dict(zip(sorted((b, x)), record.related["cold-all"].ranks, strict=True))
    assert by_id == {b: 3, x: 2}  # order: c, x, b
    assert record.related["cold-all"].queries == [0, 0]
    assert record.split == "test"


def test_protocols_count_their_own_pairs():
    a, b, c = TEST[:3]
    x = OTHERS[0]
    notes = notes_of({a: 10, b: 14, c: 11, x: 11})
    pairs = {"cold-cold": [Pair(a, b, 1.0)], "cold-all": [Pair(a, c, 1.0), Pair(b, x, 1.0)]}
    related = evaluate(ByLength(), data_of(notes, pairs)).related
    assert {name: len(ranks.ranks) for name, ranks in related.items()} == {"cold-cold": 1, "cold-all": 2}
    assert related["cold-all"].queries == [0, 1]
    numbers = {note_id: number for number, note_id in enumerate(sorted((c, x)))}
    by_query = dict(zip(sorted((a, b)), related["cold-all"].targets, strict=True))
    assert by_query == {a: numbers[c], b: numbers[x]}
    only = evaluate(ByLength(), data_of(notes, {"cold-cold": pairs["cold-cold"]}))
    assert only.related == {"cold-cold": related["cold-cold"]}


def test_pairs_of_missing_notes_do_not_count():
    a, b, missing = TEST[:3]
    pairs = in_both((a, b), (a, missing), (missing, b), (b, OTHERS[0]))
    related = evaluate(ByLength(), data_of(notes_of({a: 1, b: 2}), pairs)).related
    assert {name: ranks.ranks for name, ranks in related.items()} == {"cold-cold": [1], "cold-all": [1]}


def test_split_without_pairs_reads_no_notes():
    system = ByLength()
    notes = notes_of(dict.fromkeys(OTHERS, 1))
    record = evaluate(system, data_of(notes, in_both((OTHERS[0], OTHERS[1]))))
    assert not hasattr(system, "hashtags_seen")
    assert (record.related, record.seconds_per_note) == ({}, None)


def test_targets_are_grouped_by_their_clicks():
    a, b, c, d = sorted(TEST[:4])
    notes = notes_of({a: 200, b: 1, c: 200, d: 1})
    notes |= {i: Note(id=i, title="x" * 150) for i in (str(n) for n in range(100, 900)) if split_of(i) == "test"}
    pairs = {"cold-cold": [Pair(a, b, 1.0), Pair(a, c, 1.0), Pair(a, d, 1.0)]}
    record = evaluate(ByLength(), data_of(notes, pairs, {b: 7, d: 70}))  # c was never clicked
    related = record.related["cold-cold"]
    assert related.exposures == [1, 0, 2]
    assert record.summary()["recall_by_exposure"] == {"cold-cold": {"low": 1.0, "middle": 0.0, "high": 0.0}}


def test_exposure_without_clicks_or_with_few_pairs_is_none():
    a, b, c = TEST[:3]
    notes = notes_of({a: 1, b: 2, c: 3})
    three = {"cold-cold": [Pair(a, b, 1.0), Pair(a, c, 1.0), Pair(b, c, 1.0)]}
    unclicked = evaluate(ByLength(), data_of(notes, three))
    assert unclicked.related["cold-cold"].exposures == []
    few = evaluate(ByLength(), data_of(notes, {"cold-cold": three["cold-cold"][:2]}, {b: 1, c: 2}))
    for record in (unclicked, few):
        assert record.summary()["recall_by_exposure"] == {"cold-cold": None}


@pytest.mark.parametrize("shown", [True, False])
def test_related_notes_show_hashtags_only_if_told_to(shown: bool):
    system = ByLength()
    a, b = TEST[:2]
    record = evaluate(system, data_of(notes_of({a: 1, b: 2}), in_both((a, b))), with_hashtags=shown)
    assert system.hashtags_seen == record.with_hashtags == shown


class ByRule:
    """Answers from tables by note title, and records the notes it was given."""

    name = "by-rule"

    def __init__(self, probabilities: dict[str, list[float]], hashtags: dict[str, tuple[str, ...]]) -> None:
        self.probabilities = probabilities
        self.tags = hashtags
        self.shown: list[Note] = []

    def category_log_probs(self, notes: Sequence[Note], categories: Sequence[str]) -> npt.NDArray[np.float64]:
        self.shown += notes
        assert tuple(categories) == ("Food", "Art", "Travel")
        return np.log([self.probabilities[note.title] for note in notes])

    def hashtags(self, notes: Sequence[Note], count: int) -> list[tuple[str, ...]]:
        self.shown += notes
        return [self.tags.get(note.title, ())[:count] for note in notes]


class Writer(ByRule):
    """Writes the category Art for every note but the one titled "a", for which it invents a category."""

    def write_category(self, notes: Sequence[Note]) -> list[str]:
        return ["Arts & Crafts" if note.title == "a" else "Art" for note in notes]


def with_categories() -> dict[str, Note]:
    """Six training notes, with Food more frequent than Art and Travel, and four test notes, two of which have a trained
    category."""
    trained = dict(zip(TRAIN, ["Food", "Art", "Travel", "Food", None, ""], strict=False))
    asked = dict(
        zip(sorted(TEST[:4]), [("a", "Travel"), ("b", "Art"), ("c", "Never trained"), ("d", None)], strict=True)
    )
    notes = {i: Note(id=i, title="t", category=category) for i, category in trained.items()}
    return notes | {
        i: Note(id=i, title=title, category=category, hashtags=("h",)) for i, (title, category) in asked.items()
    }


CHANCES = {"a": [0.2, 0.2, 1.6], "b": [0.9, 0.06, 0.04]}
"""Probabilities by title; the first row does not sum to 1, and has to be normalised."""


def test_note_without_a_category_counts_as_wrong():
    system = ByRule({"food": [0.9, 0.05, 0.05], "料理": [1 / 3, 1 / 3, 1 / 3]}, {})
    said: list[str] = []
    notes = [Note(id=title, title=title, category="Food") for title in ("food", "料理")]
    categories = evaluate_categories(system, notes, ("Food", "Art", "Travel"), said.append)
    assert categories is not None
    assert categories.chosen == [0, INVENTED]
    assert any(line.startswith("1 of these notes got no category") for line in said)


def test_closed_set_is_of_training_notes_by_frequency():
    assert closed_set(with_categories()) == ("Food", "Art", "Travel")
    assert closed_set({}) == ()


def test_categories_are_kept_as_places_in_the_closed_set():
    categories = evaluate(Writer(CHANCES, {}), data_of(with_categories()), parts=["categories"]).categories
    assert categories is not None
    assert (categories.truth, categories.chosen, categories.free) == ([2, 1], [2, 0], [INVENTED, 1])
    assert categories.probability == pytest.approx([0.8, 0.9])


def test_notes_whose_category_was_never_trained_are_counted_aloud():
    said: list[str] = []
    evaluate(ByRule(CHANCES, {}), data_of(with_categories()), parts=["categories"], progress=said.append)
    others = "the category of the others is in no training note"
    assert said == [f"Choosing one of 3 categories for 2 of 3 labelled notes; {others}"]


def test_category_summary_is_as_by_hand():
    summary = evaluate(Writer(CHANCES, {}), data_of(with_categories()), parts=["categories"]).summary()
    assert summary["category"] == {
        "notes": 2,
        "accuracy_free": 0.5,
        "accuracy_constrained": 0.5,
        "macro_f1": pytest.approx(1 / 3),  # F1 of Food 0, Art 0, Travel 1
        "illusory": 0.5,
        "ece": pytest.approx((0.2 + 0.9) / 2),  # confidence 0.8 is right, 0.9 is wrong
    }


def test_classifier_that_cannot_write_has_no_free_figures():
    record = evaluate(ByRule(CHANCES, {}), data_of(with_categories()), parts=["categories"])
    assert record.categories is not None
    assert record.categories.free is None
    category = record.summary()["category"]
    assert (category["accuracy_free"], category["illusory"]) == (None, None)
    assert category["accuracy_constrained"] == 0.5


@pytest.mark.parametrize("shown", [True, False])
def test_classifier_sees_hashtags_only_if_told_to(shown: bool):
    system = ByRule(CHANCES, {})
    evaluate(system, data_of(with_categories()), with_hashtags=shown, parts=["categories"])
    assert [note.title for note in system.shown] == ["a", "b"]
    assert all(bool(note.hashtags) == shown for note in system.shown)


def tagged() -> dict[str, Note]:
    """Two test notes with hashtags, one without, and one of another split."""
    a, b, c = sorted(TEST[:3])
    return {
        a: Note(id=a, title="a", hashtags=("New York", "food")),
        b: Note(id=b, title="b", hashtags=("sea",)),
        c: Note(id=c, title="c"),
        TRAIN[0]: Note(id=TRAIN[0], title="d", hashtags=("sea",)),
    }


WRITTEN = {"a": ("newyork", "sun", "food"), "b": ("sky",)}


def test_hashtag_scores_are_as_by_hand():
    record = evaluate(ByRule({}, WRITTEN), data_of(tagged()), parts=["hashtags"])
    hashtags = record.hashtags
    assert hashtags is not None
    # a has 1, 2 and 2 hits among the first 1, 3 and 5, of 2 true hashtags. b has no hits.
    assert hashtags.precision == [pytest.approx([1, 2 / 3, 2 / 5]), [0, 0, 0]]
    assert hashtags.recall == [pytest.approx([1 / 2, 1, 1]), [0, 0, 0]]
    assert hashtags.f1 == [pytest.approx([2 / 3, 4 / 5, 4 / 7]), [0, 0, 0]]
    # "newyork sun food" against "New York food": one word of three, and no bigram.
    assert hashtags.rouge == [pytest.approx([1 / 3, 0, 1 / 3]), [0, 0, 0]]
    summary = record.summary()["hashtags"]
    assert summary["notes"] == 2
    assert [summary[f"f1@{k}"] for k in (1, 3, 5)] == pytest.approx([1 / 3, 2 / 5, 2 / 7])
    assert [summary[f"rouge{n}"] for n in "12L"] == pytest.approx([1 / 6, 0, 1 / 6])


@pytest.mark.parametrize("shown", [True, False])
def test_tagger_never_sees_hashtags(shown: bool):
    system = ByRule({}, WRITTEN)
    evaluate(system, data_of(tagged()), with_hashtags=shown, parts=["hashtags"])
    assert [note.title for note in system.shown] == ["a", "b"]
    assert not any(note.hashtags for note in system.shown)


def test_notes_drawn_of_a_split_are_the_same_and_in_order():
    notes = {str(i): Note(id=str(i), title="t") for i in range(200)}
    all_notes = notes_of_split(notes, "test")
    drawn = notes_of_split(notes, "test", 10)
    assert drawn == notes_of_split(notes, "test", 10) == sorted(drawn, key=lambda note: note.id)
    assert len({note.id for note in drawn}) == 10
    assert {note.id for note in drawn} < {note.id for note in all_notes} == {i for i in notes if split_of(i) == "test"}
    assert notes_of_split(notes, "test", len(all_notes)) == all_notes


def test_part_that_the_system_cannot_do_is_none():
    a, b = sorted(TEST[:2])
    notes = tagged() | {i: Note(id=i, title="b", category="Food") for i in (b, TRAIN[1])}
    pairs = {"cold-cold": [Pair(a, b, 1.0)]}
    ranked = evaluate(ByLength(), data_of(notes, pairs))
    assert (ranked.categories, ranked.hashtags) == (None, None)
    assert ranked.related
    assert ranked.seconds_per_note is not None
    answered = evaluate(Writer({}, WRITTEN), data_of(tagged(), pairs)).summary()
    assert [name for name, figures in answered.items() if figures is not None] == ["hashtags"]


def test_part_that_is_not_asked_for_is_none():
    for part in ("related", "categories", "hashtags"):
        record = evaluate(Writer(CHANCES, WRITTEN), data_of(tagged() | with_categories()), parts=[part])
        assert (record.categories is not None) == (part == "categories")
        assert (record.hashtags is not None) == (part == "hashtags")


def test_part_that_the_data_has_no_truth_for_is_none():
    notes = notes_of({TEST[0]: 3, TRAIN[0]: 4})
    bare = {i: Note(id=i, title=note.title) for i, note in notes.items()}
    assert set(evaluate(Writer({}, {}), data_of(bare)).summary().values()) == {None}
