"""Which notes are asked about, what is kept of the answers, and that a checkpoint is read as it is served."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from model.data.pairs import Pair, split_of
from model.evaluation.evaluate import (
    INVENTED,
    Categories,
    EngineSystem,
    Hashtags,
    Ranks,
    Record,
    closed_set,
    cosine,
    evaluate,
    notes_of_split,
    rank_pairs,
    recall_of_pairs,
)
from model.generation import GenerationRequest
from model.inference.engine import Engine
from model.note import Note

TEST = [str(i) for i in range(100) if split_of(str(i)) == "test"]
TRAIN = [str(i) for i in range(100) if split_of(str(i)) == "train"]
OTHERS = [str(i) for i in range(100) if split_of(str(i)) != "test"]
BOTH = ("cold-cold", "cold-all")


class ByLength:
    """Scores a note by how close its title's length is to the query's: ranks can be told by hand."""

    name = "by-length"

    def related(self, notes):
        lengths = np.array([len(note.title) for note in notes], np.float32)
        self.hashtags_seen = any(note.hashtags for note in notes)
        return lambda rows: -abs(lengths[rows][:, None] - lengths)


def in_both(*pairs: tuple[str, str]) -> dict[str, list[Pair]]:
    return {protocol: [Pair(note, related, 1.0) for note, related in pairs] for protocol in BOTH}


def notes_of(lengths: dict[str, int]) -> dict[str, Note]:
    return {i: Note(id=i, title="x" * n, hashtags=("h",)) for i, n in lengths.items()}


def test_ranks_come_in_the_order_of_the_pairs_and_never_count_the_query():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.5, 0.5]], np.float32)
    pairs = [("c", "a"), ("a", "b"), ("c", "d")]
    assert rank_pairs(cosine(vectors), ["a", "b", "c", "d"], pairs).tolist() == [3, 1, 1]


def test_ties_go_to_the_smaller_id_whatever_the_order_of_the_pool():
    same = np.ones((3, 1), np.float32)
    for ids in (["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]):
        assert rank_pairs(cosine(same), ids, [("a", "b"), ("a", "c"), ("b", "a")]).tolist() == [1, 2, 1]


def test_recall_of_pairs_counts_both_directions():
    vectors = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]], np.float32)
    assert recall_of_pairs(vectors, ["a", "b", "c"], [("a", "b")], k=1) == 0.5  # c is closer to b than a is


def test_cold_cold_ranks_test_notes_among_test_notes_and_cold_all_among_all():
    a, b, c = TEST[:3]
    x, y = OTHERS[:2]
    notes = notes_of({a: 10, b: 14, c: 11, x: 13, y: 40})
    record = evaluate(ByLength(), "data", notes, in_both((a, b), (a, x), (x, a), (x, y)), {})
    assert record.related["cold-cold"].ranks == [2]  # c stands before b
    by_id = dict(zip(sorted((b, x)), record.related["cold-all"].ranks, strict=True))
    assert by_id == {b: 3, x: 2}  # c, x, b
    assert record.related["cold-all"].queries == [0, 0]
    assert record.split == "test"


def test_each_protocol_counts_its_own_pairs():
    a, b, c = TEST[:3]
    x = OTHERS[0]
    notes = notes_of({a: 10, b: 14, c: 11, x: 11})
    pairs = {"cold-cold": [Pair(a, b, 1.0)], "cold-all": [Pair(a, c, 1.0), Pair(b, x, 1.0)]}
    related = evaluate(ByLength(), "data", notes, pairs, {}).related
    assert {name: len(found.ranks) for name, found in related.items()} == {"cold-cold": 1, "cold-all": 2}
    assert related["cold-all"].queries == [0, 1]
    only = evaluate(ByLength(), "data", notes, {"cold-cold": pairs["cold-cold"]}, {})
    assert only.related == {"cold-cold": related["cold-cold"]}


def test_pairs_of_notes_that_are_not_there_do_not_count():
    a, b, gone = TEST[:3]
    pairs = in_both((a, b), (a, gone), (gone, b), (b, OTHERS[0]))
    related = evaluate(ByLength(), "data", notes_of({a: 1, b: 2}), pairs, {}).related
    assert {name: found.ranks for name, found in related.items()} == {"cold-cold": [1], "cold-all": [1]}


def test_without_a_pair_of_the_split_nothing_is_read():
    system = ByLength()
    notes = notes_of(dict.fromkeys(OTHERS, 1))
    record = evaluate(system, "data", notes, in_both((OTHERS[0], OTHERS[1])), {})
    assert not hasattr(system, "hashtags_seen")
    assert (record.related, record.seconds_per_note) == ({}, None)


def test_targets_are_grouped_by_how_often_they_were_clicked():
    a, b, c, d = sorted(TEST[:4])
    notes = notes_of({a: 200, b: 1, c: 200, d: 1})
    notes |= {i: Note(id=i, title="x" * 150) for i in (str(n) for n in range(100, 900)) if split_of(i) == "test"}
    pairs = {"cold-cold": [Pair(a, b, 1.0), Pair(a, c, 1.0), Pair(a, d, 1.0)]}
    record = evaluate(ByLength(), "data", notes, pairs, {b: 7, d: 70})  # c was never clicked
    found = record.related["cold-cold"]
    assert found.exposures == [1, 0, 2]
    assert record.summary()["recall_by_exposure"] == {"cold-cold": {"low": 1.0, "middle": 0.0, "high": 0.0}}


def test_without_clicks_or_with_few_pairs_there_are_no_groups():
    a, b, c = TEST[:3]
    notes = notes_of({a: 1, b: 2, c: 3})
    three = {"cold-cold": [Pair(a, b, 1.0), Pair(a, c, 1.0), Pair(b, c, 1.0)]}
    unclicked = evaluate(ByLength(), "data", notes, three, {})
    assert unclicked.related["cold-cold"].exposures == []
    few = evaluate(ByLength(), "data", notes, {"cold-cold": three["cold-cold"][:2]}, {b: 1, c: 2})
    for record in (unclicked, few):
        assert record.summary()["recall_by_exposure"] == {"cold-cold": None}


@pytest.mark.parametrize("shown", [True, False])
def test_hashtags_are_shown_or_withheld_from_every_note(shown: bool):
    system = ByLength()
    a, b = TEST[:2]
    record = evaluate(system, "data", notes_of({a: 1, b: 2}), in_both((a, b)), {}, with_hashtags=shown)
    assert system.hashtags_seen == record.with_hashtags == shown


class ByRule:
    """Answers as its tables say, by the title of a note; it keeps what it was shown."""

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
    """Writes of every note that it is about art, but of one with a made-up name."""

    def write_category(self, notes: Sequence[Note]) -> list[str]:
        return ["Arts & Crafts" if note.title == "a" else "Art" for note in notes]


def with_categories() -> dict[str, Note]:
    """Six training notes, Food before the equally frequent Art and Travel; four test notes, of which two count."""
    trained = dict(zip(TRAIN, ["Food", "Art", "Travel", "Food", None, ""], strict=False))
    asked = dict(
        zip(sorted(TEST[:4]), [("a", "Travel"), ("b", "Art"), ("c", "Never trained"), ("d", None)], strict=True)
    )
    notes = {i: Note(id=i, title="t", category=category) for i, category in trained.items()}
    return notes | {
        i: Note(id=i, title=title, category=category, hashtags=("h",)) for i, (title, category) in asked.items()
    }


CHANCES = {"a": [0.2, 0.2, 1.6], "b": [0.9, 0.06, 0.04]}
"""The first one does not sum to 1: it is renormalised."""


def test_the_closed_set_is_what_training_notes_have_the_most_frequent_first():
    assert closed_set(with_categories()) == ("Food", "Art", "Travel")
    assert closed_set({}) == ()


def test_categories_are_kept_as_places_in_the_closed_set():
    found = evaluate(Writer(CHANCES, {}), "data", with_categories(), {}, {}, parts=["categories"]).categories
    assert found is not None
    assert (found.truth, found.chosen, found.free) == ([2, 1], [2, 0], [INVENTED, 1])
    assert found.probability == pytest.approx([0.8, 0.9])


def test_categories_are_summed_up_by_hand():
    summary = evaluate(Writer(CHANCES, {}), "data", with_categories(), {}, {}, parts=["categories"]).summary()
    assert summary["category"] == {
        "notes": 2,
        "accuracy_free": 0.5,
        "accuracy_constrained": 0.5,
        "macro_f1": pytest.approx(1 / 3),  # of Food 0, of Art 0, of Travel 1
        "illusory": 0.5,
        "ece": pytest.approx((0.2 + 0.9) / 2),  # 0.8 and right, 0.9 and wrong
    }


def test_a_classifier_that_cannot_write_has_no_free_figures():
    record = evaluate(ByRule(CHANCES, {}), "data", with_categories(), {}, {}, parts=["categories"])
    assert record.categories is not None
    assert record.categories.free is None
    category = record.summary()["category"]
    assert (category["accuracy_free"], category["illusory"]) == (None, None)
    assert category["accuracy_constrained"] == 0.5


@pytest.mark.parametrize("shown", [True, False])
def test_who_chooses_a_category_sees_hashtags_where_they_are_shown(shown: bool):
    system = ByRule(CHANCES, {})
    evaluate(system, "data", with_categories(), {}, {}, with_hashtags=shown, parts=["categories"])
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


def test_hashtags_are_scored_by_hand():
    record = evaluate(ByRule({}, WRITTEN), "data", tagged(), {}, {}, parts=["hashtags"])
    found = record.hashtags
    assert found is not None
    # Of a: 1 of 1, 2 of 3, 2 of 5 written; 1, 2 and 2 of its 2 found. Of b nothing.
    assert found.precision == [pytest.approx([1, 2 / 3, 2 / 5]), [0, 0, 0]]
    assert found.recall == [pytest.approx([1 / 2, 1, 1]), [0, 0, 0]]
    assert found.f1 == [pytest.approx([2 / 3, 4 / 5, 4 / 7]), [0, 0, 0]]
    # "newyork sun food" against "New York food": one word of three, no two in a row.
    assert found.rouge == [pytest.approx([1 / 3, 0, 1 / 3]), [0, 0, 0]]
    summary = record.summary()["hashtags"]
    assert summary["notes"] == 2
    assert [summary[f"f1@{k}"] for k in (1, 3, 5)] == pytest.approx([1 / 3, 2 / 5, 2 / 7])
    assert [summary[f"rouge{n}"] for n in "12L"] == pytest.approx([1 / 6, 0, 1 / 6])


@pytest.mark.parametrize("shown", [True, False])
def test_hashtags_are_always_withheld_from_whom_they_are_asked_of(shown: bool):
    system = ByRule({}, WRITTEN)
    evaluate(system, "data", tagged(), {}, {}, with_hashtags=shown, parts=["hashtags"])
    assert [note.title for note in system.shown] == ["a", "b"]
    assert not any(note.hashtags for note in system.shown)


def test_some_notes_of_a_split_are_the_same_at_every_call_and_in_order():
    notes = {str(i): Note(id=str(i), title="t") for i in range(200)}
    every = notes_of_split(notes, "test")
    some = notes_of_split(notes, "test", 10)
    assert some == notes_of_split(notes, "test", 10) == sorted(some, key=lambda note: note.id)
    assert len({note.id for note in some}) == 10
    assert {note.id for note in some} < {note.id for note in every} == {i for i in notes if split_of(i) == "test"}
    assert notes_of_split(notes, "test", len(every)) == every


def test_what_a_system_cannot_do_is_none():
    a, b = sorted(TEST[:2])
    notes = tagged() | {i: Note(id=i, title="b", category="Food") for i in (b, TRAIN[1])}
    pairs = {"cold-cold": [Pair(a, b, 1.0)]}
    ranked = evaluate(ByLength(), "data", notes, pairs, {})
    assert (ranked.categories, ranked.hashtags) == (None, None)
    assert ranked.related
    assert ranked.seconds_per_note is not None
    answered = evaluate(Writer({}, WRITTEN), "data", tagged(), pairs, {}).summary()
    assert [name for name, found in answered.items() if found is not None] == ["hashtags"]


def test_what_is_not_asked_for_is_none():
    for part in ("related", "categories", "hashtags"):
        record = evaluate(Writer(CHANCES, WRITTEN), "data", tagged() | with_categories(), {}, {}, parts=[part])
        assert (record.categories is not None) == (part == "categories")
        assert (record.hashtags is not None) == (part == "hashtags")


def test_what_the_data_cannot_answer_is_none():
    notes = notes_of({TEST[0]: 3, TRAIN[0]: 4})
    bare = {i: Note(id=i, title=note.title) for i, note in notes.items()}
    assert set(evaluate(Writer({}, {}), "data", bare, {}, {}).summary().values()) == {None}


def test_a_checkpoint_scores_by_the_vectors_that_it_serves(tiny_engine: Engine):
    notes = [Note(title=t) for t in ("one", "two", "a much longer title about bread")]
    served = np.array([tiny_engine.run([tiny_engine.tokenize(note)])[0].vector for note in notes])
    scores = EngineSystem(tiny_engine).related(notes)(np.array([2, 0]))
    np.testing.assert_allclose(scores, served[[2, 0]] @ served.T, atol=1e-5)


def test_a_checkpoint_answers_as_it_serves(tiny_engine: Engine):
    notes = [Note(title=t) for t in ("one", "two", "a much longer title about bread")]
    system = EngineSystem(tiny_engine)
    names = ("Travel", "Food", "Film")
    log_probs = system.category_log_probs(notes, names)
    tags = system.hashtags(notes, 2)
    for note, row, written in zip(notes, log_probs, tags, strict=True):
        (reading,) = tiny_engine.run([tiny_engine.tokenize(note, GenerationRequest(2, names))])
        served = {category.name: category.probability for category in reading.categories or ()}
        assert np.exp(row) == pytest.approx([served[name] for name in names], abs=1e-5)
        assert written == tuple(hashtag.text for hashtag in reading.hashtags or ())
    assert system.write_category(notes) == tiny_engine.write_category(notes)
    assert np.isfinite(log_probs).all()


def test_related_notes_are_summed_up_in_shares_by_protocol():
    ranks = Ranks([1, 10, 11, 101], [0, 0, 1, 2])
    record = Record(system="s", data="d", split="test", with_hashtags=True, seconds_per_note=0.5, related={"p": ranks})
    summary = record.summary()
    assert summary["recall"] == {"p": {"10": 0.5, "100": 0.75, "1000": 1.0}}
    assert summary["mrr"] == {"p": pytest.approx((1 + 1 / 10 + 1 / 11 + 1 / 101) / 4)}
    assert summary["pairs"] == {"p": 4}
    assert summary["notes_per_second"] == 2


def test_a_summary_has_what_was_agreed_on():
    """Programs read it: names may come, none may go."""
    record = Record(
        system="s",
        data="d",
        split="test",
        with_hashtags=True,
        seconds_per_note=1.0,
        related=dict.fromkeys(BOTH, Ranks([1], [0])),
        categories=Categories([0], [0], [1.0], [0]),
        hashtags=Hashtags(*([[1.0] * 3] for _ in range(4))),
    )
    summary = record.summary()
    assert summary.keys() >= {"recall", "mrr", "pairs", "category", "hashtags", "notes_per_second"}
    assert summary["recall"].keys() == set(BOTH)
    assert all(shares.keys() == {"10", "100", "1000"} for shares in summary["recall"].values())
    assert summary["mrr"].keys() == summary["pairs"].keys() == set(BOTH)
    assert summary["category"].keys() >= {"accuracy_free", "accuracy_constrained", "macro_f1", "illusory", "ece"}
    assert summary["hashtags"].keys() >= {"f1@1", "f1@3", "f1@5", "rouge1", "rouge2", "rougeL"}
    nothing = Record(system="s", data="d", split="test", with_hashtags=True).summary()
    assert nothing.keys() == summary.keys()
    assert set(nothing.values()) == {None}
