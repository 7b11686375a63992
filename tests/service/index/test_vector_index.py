"""The contract of VectorIndex, against a dict and brute force. Another backend is one more entry of BACKENDS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.generation import CategoryProbability, Hashtag
from service.filters import Filter, attribute_text
from service.index.segmented import GROWING_ROWS, SegmentedIndex
from service.interfaces import VectorIndex
from service.records import Generated, Hit, StoredNote, Vector
from tests.service.conftest import stored_note

DIMENSION = 8
MakeIndex = Callable[[int], VectorIndex]


class Maintained(SegmentedIndex):
    """Every job is done at once."""

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        super().upsert(notes)
        do_jobs(self)

    def remove(self, ids: Sequence[str]) -> None:
        super().remove(ids)
        do_jobs(self)

    def expire(self, now: float) -> list[str]:
        expired = super().expire(now)
        do_jobs(self)
        return expired


def do_jobs(index: SegmentedIndex) -> int:
    """All that are planned; how many these were."""
    done = 0
    while job := index.plan():
        job.run()
        index.finish(job)
        done += 1
    return done


class Restored(Maintained):
    """After each change it is one that was made of its snapshot."""

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        super().upsert(notes)
        self._restore()

    def remove(self, ids: Sequence[str]) -> None:
        super().remove(ids)
        self._restore()

    def expire(self, now: float) -> list[str]:
        expired = super().expire(now)
        self._restore()
        return expired

    def _restore(self) -> None:
        parts = {part.name: part.make() for part in self.snapshot_parts()}
        new = SegmentedIndex(self._dimension, self._growing_rows, self._attributes)
        new.restore(parts.__getitem__)
        self.__dict__.update(new.__dict__)


ASKED = ("language", "seats")
"""Attributes that filters may ask about."""
BACKENDS: dict[str, MakeIndex] = {
    "as it is": partial(Maintained, attributes=ASKED),
    "small segments": partial(Maintained, growing_rows=3, attributes=ASKED),  # rows are sealed and merged all the time
    "restored": partial(Restored, attributes=ASKED),
    "small segments, restored": partial(Restored, growing_rows=3, attributes=ASKED),
}
TOLERANCE = 1e-5
ANY = Filter()


@pytest.fixture(params=list(BACKENDS.values()), ids=list(BACKENDS), scope="module")
def make_index(request: pytest.FixtureRequest) -> MakeIndex:
    make: MakeIndex = request.param
    return make


@pytest.fixture
def index(make_index: MakeIndex) -> VectorIndex:
    return make_index(DIMENSION)


def direction(seed: int) -> Vector:
    vector = np.random.default_rng(seed).normal(size=DIMENSION)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def row(note_id: str, seed: int = 0, **fields: Any) -> StoredNote:
    return stored_note(note_id, vector=direction(seed), **fields)


def rows(count: int, first: int = 0) -> list[StoredNote]:
    """Rows of different directions; each tenth is Food, each seventh is tagged."""
    return [
        row(f"n{n}", n, category="Food" if n % 10 == 0 else None, hashtags=("seventh",) if n % 7 == 0 else ())
        for n in range(first, first + count)
    ]


def found_ids(index: VectorIndex, where: Filter = ANY, *, k: int = 100, now: float = 0.0) -> set[str]:
    return {hit.id for hit in index.search(direction(0), k, where, now)}


@dataclass
class Model:
    """What an index is meant to be: a dict, searched one by one."""

    notes: dict[str, StoredNote] = field(default_factory=dict)

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        self.notes |= {note.note.id: note for note in notes}

    def remove(self, ids: Sequence[str]) -> None:
        self.notes = {i: note for i, note in self.notes.items() if i not in ids}

    def expire(self, now: float) -> list[str]:
        expired = [i for i, note in self.notes.items() if note.expired(now)]
        self.remove(expired)
        return expired

    def scores(self, vector: Vector, where: Filter, now: float) -> dict[str, float]:
        kept = {i: n for i, n in self.notes.items() if where.accepts(n) and not n.expired(now)}
        return {i: float(np.dot(n.vector.astype(float), vector)) for i, n in kept.items() if n.vector is not None}


def check(found: list[Hit], scores: dict[str, float], k: int) -> None:
    """`found` is the best k of `scores`; which of equal ones are cut off is free."""
    best = sorted(scores.values(), reverse=True)[:k]
    assert len(found) == len(best)
    assert [hit.score for hit in found] == pytest.approx(best, abs=TOLERANCE)
    assert [hit.score for hit in found] == pytest.approx([scores[h.id] for h in found], abs=TOLERANCE)
    ids = {hit.id for hit in found}
    assert len(ids) == len(found)
    assert ids >= {i for i, score in scores.items() if best and score > best[-1] + TOLERANCE}
    assert found == sorted(found, key=lambda hit: (-hit.score, hit.id))


def check_all(index: VectorIndex, model: Model, *, k: int = 10, now: float = 0.0) -> None:
    for where in (ANY, Filter(category="Food"), Filter(hashtags=("seventh",)), Filter(exclude=frozenset({"n0"}))):
        for seed in range(3):
            check(index.search(direction(seed), k, where, now), model.scores(direction(seed), where, now), k)
    assert len(index) == len(model.notes)


IDS = st.sampled_from("abcdefgh")
TIMES = st.sampled_from([0.0, 10.0, 20.0, 30.0])
CATEGORY = st.sampled_from([None, "Food", "Travel"])
AUTHOR = st.sampled_from([None, "tom", "小明"])
TAGS = st.lists(st.sampled_from(["Kyoto", "kyoto", "night bus", "NightBus", "夜"]), max_size=3).map(tuple)
ATTRIBUTES = st.dictionaries(st.sampled_from(ASKED), st.sampled_from(["en", "zh", "2", 2, True, 2.5]), max_size=2)
GENERATED = st.builds(
    Generated,
    st.none() | TAGS.map(lambda tags: tuple(Hashtag(tag, 0.5) for tag in tags)),
    st.none() | CATEGORY.filter(bool).map(lambda name: CategoryProbability(str(name), 0.5)),
)
ROWS = st.builds(
    row,
    IDS,
    st.integers(0, 9),
    generated=GENERATED,
    hashtags=TAGS,
    category=CATEGORY,
    author=AUTHOR,
    attributes=ATTRIBUTES,
    created_at=st.none() | TIMES,
    expires_at=st.none() | TIMES,
)
FILTERS = st.builds(
    Filter,
    category=CATEGORY,
    hashtags=TAGS,
    all_hashtags=TAGS.map(lambda tags: tags[:1]) | TAGS,
    author=AUTHOR,
    attributes=ATTRIBUTES.map(lambda of: tuple((name, str(attribute_text(value))) for name, value in of.items())),
    created_after=st.none() | TIMES,
    created_before=st.none() | TIMES,
    exclude=st.frozensets(IDS, max_size=3),
)
STEPS = st.one_of(
    st.lists(ROWS, min_size=1, max_size=6).map(lambda notes: ("upsert", notes)),
    st.lists(IDS, max_size=3).map(lambda ids: ("remove", ids)),
    TIMES.map(lambda now: ("expire", now)),
)


@given(
    st.lists(STEPS, max_size=12), st.lists(st.tuples(FILTERS, st.integers(0, 9), TIMES, st.integers(1, 9)), min_size=1)
)
@settings(max_examples=150, deadline=None)
def test_after_any_history_it_finds_what_brute_force_finds(
    make_index: MakeIndex,
    history: list[tuple[str, object]],
    searches: list[tuple[Filter, int, float, int]],
) -> None:
    index, model = make_index(DIMENSION), Model()
    for step, argument in history:
        getattr(index, step)(argument)
        getattr(model, step)(argument)
    for where, seed, now, k in searches:
        check(index.search(direction(seed), k, where, now), model.scores(direction(seed), where, now), k)
    assert len(index) == len(model.notes)
    for note_id in "abcdefgh":
        wanted = model.notes.get(note_id)
        np.testing.assert_array_equal(index.vector(note_id), wanted and wanted.vector)


def test_an_empty_index_finds_nothing(index: VectorIndex) -> None:
    assert index.search(direction(0), 10, ANY, 0.0) == []
    assert (len(index), index.tombstones, index.vector("a")) == (0, 0, None)


def test_a_row_finds_itself_with_the_score_one(index: VectorIndex) -> None:
    index.upsert(rows(50))
    (best,) = index.search(direction(17), 1, ANY, 0.0)
    assert best.id == "n17"
    assert best.score == pytest.approx(1, abs=TOLERANCE)


def test_k_beyond_the_rows_gives_them_all_once(index: VectorIndex) -> None:
    index.upsert(rows(30))
    found = index.search(direction(0), 200, ANY, 0.0)
    assert sorted(hit.id for hit in found) == sorted(f"n{n}" for n in range(30))


def test_k_of_a_rare_match_gives_the_matches(index: VectorIndex) -> None:
    index.upsert(rows(3000))
    index.upsert([row("rare", 5, author="tom")])
    found = index.search(direction(0), 10, Filter(author="tom"), 0.0)
    assert [hit.id for hit in found] == ["rare"]


def test_k_of_zero_gives_no_hits(index: VectorIndex) -> None:
    index.upsert(rows(30))
    assert index.search(direction(0), 0, Filter(category="Food"), 0.0) == []


def test_equal_rows_come_in_the_order_of_their_ids(index: VectorIndex) -> None:
    index.upsert([row(note_id) for note_id in "cab"])
    assert [hit.id for hit in index.search(direction(0), 3, ANY, 0.0)] == ["a", "b", "c"]


@pytest.mark.parametrize("asked", ["Night Bus", "nightbus", "#NIGHT  BUS ", "ｎｉｇｈｔ bus"])
def test_a_hashtag_matches_whatever_its_case_and_spaces(index: VectorIndex, asked: str) -> None:
    index.upsert([row("a", hashtags=("night bus",)), row("b", hashtags=("bus",)), row("c", hashtags=("night",))])
    assert found_ids(index, Filter(hashtags=(asked,))) == {"a"}


def test_of_several_hashtags_any_is_enough(index: VectorIndex) -> None:
    index.upsert([row("a", hashtags=("x", "y")), row("b", hashtags=("z",)), row("c", hashtags=("w",))])
    assert found_ids(index, Filter(hashtags=("y", "Z", "unknown"))) == {"a", "b"}
    assert found_ids(index, Filter(hashtags=("unknown",))) == set()


def test_of_all_hashtags_none_may_be_missing(index: VectorIndex) -> None:
    index.upsert([row("a", hashtags=("x", "y", "z")), row("b", hashtags=("X",)), row("c", hashtags=("y",))])
    assert found_ids(index, Filter(all_hashtags=("#X", "y"))) == {"a"}
    assert found_ids(index, Filter(all_hashtags=("x",))) == {"a", "b"}
    assert found_ids(index, Filter(all_hashtags=("x", "unknown"))) == set()
    assert found_ids(index, Filter(hashtags=("x", "y"), all_hashtags=("y",))) == {"a", "c"}


def test_an_attribute_has_the_value_that_is_asked_for_a_number_as_json_has_it(index: VectorIndex) -> None:
    values = {"en": "en", "text": "2", "whole": 2, "part": 2.5, "yes": True}
    index.upsert([row(note_id, attributes={"language": value}) for note_id, value in values.items()])
    for asked, ids in {"en": {"en"}, "2": {"text", "whole"}, "2.5": {"part"}, "true": {"yes"}, "zh": set()}.items():
        assert found_ids(index, Filter(attributes=(("language", asked),))) == ids


def test_generated_hashtags_and_category_count_where_the_author_gave_none(index: VectorIndex) -> None:
    generated = Generated((Hashtag("made", 0.5),), CategoryProbability("Food", 0.5))
    index.upsert([row("a", generated=generated), row("b", generated=generated, hashtags=("own",), category="Travel")])
    assert found_ids(index, Filter(hashtags=("made",))) == {"a"}
    assert found_ids(index, Filter(category="Food")) == {"a"}


def test_a_note_at_the_very_second_is_created_neither_after_nor_before_it(index: VectorIndex) -> None:
    index.upsert([row("a", created_at=10.0), row("b", created_at=10.5), row("c", created_at=9.5)])
    assert found_ids(index, Filter(created_after=10.0)) == {"b"}
    assert found_ids(index, Filter(created_before=10.0)) == {"c"}
    assert found_ids(index, Filter(created_after=9.5, created_before=10.5)) == {"a"}


def test_an_expired_row_is_not_found_and_its_expiry_removes_it(index: VectorIndex) -> None:
    index.upsert([row("a", expires_at=10.0), row("b", expires_at=20.0), row("c")])
    assert found_ids(index, now=10.0) == {"b", "c"}
    assert len(index) == 3
    index.expire(10.0)
    assert len(index) == 2
    assert found_ids(index, now=0.0) == {"b", "c"}


def test_a_replaced_row_is_found_by_its_new_vector_and_fields_only(index: VectorIndex) -> None:
    index.upsert([row("a", 1, category="Food", hashtags=("old",), author="tom")])
    index.upsert([row("a", 2, category="Travel", hashtags=("new",), author="ann")])
    assert [f(index) for f in (len, found_ids)] == [1, {"a"}]
    assert found_ids(index, Filter(category="Food")) == found_ids(index, Filter(hashtags=("old",))) == set()
    assert found_ids(index, Filter(author="tom")) == set()
    assert found_ids(index, Filter("Travel", ("new",), "ann")) == {"a"}
    np.testing.assert_array_equal(index.vector("a"), direction(2))


def test_of_one_id_twice_in_a_batch_the_last_counts(index: VectorIndex) -> None:
    index.upsert([row("a", 1), row("a", 2), row("a", 3, author="ann")])
    assert (len(index), found_ids(index, Filter(author="ann"))) == (1, {"a"})
    np.testing.assert_array_equal(index.vector("a"), direction(3))


def test_new_fields_of_a_row_leave_no_tombstone(index: VectorIndex) -> None:
    index.upsert([row("a", category="Food", hashtags=("old",), author="tom", expires_at=10.0)])
    index.upsert([row("a", category="Travel", hashtags=("new",), author="ann")])
    assert index.tombstones == 0
    assert found_ids(index, Filter("Travel", ("new",), "ann"), now=10.0) == {"a"}
    assert found_ids(index, Filter(hashtags=("old",))) == set()


def test_removing_an_unknown_id_changes_nothing(index: VectorIndex) -> None:
    index.upsert(rows(3))
    index.remove(["unknown", "n1", "n1"])
    index.remove(["n1"])
    assert found_ids(index) == {"n0", "n2"}


@pytest.mark.parametrize(
    "vector",
    [None, np.ones(DIMENSION + 1, np.float32), np.ones((1, DIMENSION), np.float32), np.ones(0, np.float32)],
    ids=["none", "longer", "a matrix", "empty"],
)
def test_a_vector_of_another_shape_is_refused(index: VectorIndex, vector: Vector | None) -> None:
    index.upsert(rows(3))
    wrong = StoredNote(row("wrong").note, "space", vector)
    with pytest.raises(ValueError, match="wrong"):
        index.upsert([row("right"), wrong])
    assert found_ids(index) == {"n0", "n1", "n2"}


def test_many_tombstones_are_given_back_and_no_answer_changes(index: VectorIndex) -> None:
    model = Model()
    notes = rows(GROWING_ROWS + 500)
    for part in (notes[:2000], notes[2000:]):
        index.upsert(part)
        model.upsert(part)
    seen = []
    for n in range(0, GROWING_ROWS, GROWING_ROWS // 8):
        gone = [note.note.id for note in notes[n : n + GROWING_ROWS // 8]]
        index.remove(gone)
        model.remove(gone)
        seen.append(index.tombstones)
        check_all(index, model)
    assert max(seen) < GROWING_ROWS
    assert seen != sorted(seen), "no compaction ever gave tombstones back"


def test_replaced_rows_do_not_pile_up(index: VectorIndex) -> None:
    model = Model()
    for turn in range(GROWING_ROWS // 100 + 5):
        changed = [row(f"n{n}", turn * 100 + n, category="Food" if n % 3 == 0 else None) for n in range(100)]
        index.upsert(changed)
        model.upsert(changed)
        assert index.tombstones <= GROWING_ROWS
    check_all(index, model)


def test_an_index_that_lost_all_its_rows_takes_new_ones(index: VectorIndex) -> None:
    index.upsert(rows(1500))
    index.remove([f"n{n}" for n in range(1500)])
    assert (len(index), index.search(direction(0), 10, ANY, 0.0)) == (0, [])
    model = Model()
    index.upsert(rows(200, 100))
    model.upsert(rows(200, 100))
    check_all(index, model)


def test_fields_change_after_a_compaction_as_before(index: VectorIndex) -> None:
    index.upsert(rows(1500))
    index.remove([f"n{n}" for n in range(1400)])
    index.upsert([row("n1400", 1400, author="ann", hashtags=("new",), expires_at=10.0)])
    assert found_ids(index, Filter(author="ann")) == found_ids(index, Filter(hashtags=("new",))) == {"n1400"}
    assert "n1400" not in found_ids(index, Filter(hashtags=("seventh",)))
    index.expire(10.0)
    assert len(index) == 99
