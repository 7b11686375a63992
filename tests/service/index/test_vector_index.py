"""The contract of VectorIndex, tested against a dict and brute force. To test another backend, add it to BACKENDS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.generation import CategoryProbability, Hashtag
from service.filters import AttributeRange, Bounds, Filter, Not, OrderKey, TimeRange, order_key
from service.index.backend import VectorIndex
from service.index.segmented import GROWING_ROWS, SegmentedIndex
from service.records import Generated, Hit, IndexRows, StoredNote, Vector
from tests.service.index.reference import (
    ANY,
    ATTRIBUTE_NAMES,
    DIMENSION,
    FILTERS,
    STEPS,
    TIMES,
    TOLERANCE,
    Model,
    check,
    check_all,
    direction,
    do_jobs,
    found_ids,
    row,
    rows,
)

pytestmark = pytest.mark.slow


class Maintained(SegmentedIndex):
    """An index that runs every job as soon as it is planned."""

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


class Restored(Maintained):
    """An index that is replaced, after each change, by one restored from its snapshot."""

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


BACKENDS: dict[str, partial[SegmentedIndex]] = {
    "as it is": partial(Maintained, attributes=ATTRIBUTE_NAMES),
    # Rows are sealed and merged all the time.
    "small segments": partial(Maintained, growing_rows=3, attributes=ATTRIBUTE_NAMES),
    "restored": partial(Restored, attributes=ATTRIBUTE_NAMES),
    "small segments, restored": partial(Restored, growing_rows=3, attributes=ATTRIBUTE_NAMES),
}


@pytest.fixture(params=list(BACKENDS.values()), ids=list(BACKENDS), scope="module")
def make_index(request: pytest.FixtureRequest) -> partial[SegmentedIndex]:
    make: partial[SegmentedIndex] = request.param
    return make


@pytest.fixture
def index(make_index: partial[SegmentedIndex]) -> VectorIndex:
    return make_index(DIMENSION)


@pytest.fixture
def large_index(make_index: partial[SegmentedIndex]) -> VectorIndex:
    """An index for thousands of rows: small segments have 128, since a thousand segments of three rows take minutes."""
    return make_index(DIMENSION, growing_rows=128) if "growing_rows" in make_index.keywords else make_index(DIMENSION)


@given(
    st.lists(STEPS, max_size=12), st.lists(st.tuples(FILTERS, st.integers(0, 9), TIMES, st.integers(1, 9)), min_size=1)
)
@settings(max_examples=150, deadline=None)
def test_search_after_any_history_equals_brute_force(
    make_index: partial[SegmentedIndex],
    history: list[tuple[str, object]],
    searches: list[tuple[Filter, int, float, int]],
) -> None:
    index, model = make_index(DIMENSION), Model()
    for step, argument in history:
        getattr(index, step)(argument)
        getattr(model, step)(argument)
    for where, seed, now, k in searches:
        scores = model.scores(direction(seed), where, now)
        hits = index.search(direction(seed), k, where, now)
        check(hits, scores, k)
        check_rows(index.search_rows(direction(seed), k, where, now), hits, model)
        assert index.passing("abcdefgh", where, now) == sorted(scores)
        assert index.count(where, now) == len(scores)
    assert len(index) == len(model.notes)
    for note_id in "abcdefgh":
        expected = model.notes.get(note_id)
        np.testing.assert_array_equal(index.vector(note_id), expected and expected.vector)
    found = index.rows("abcdefgh")
    assert found.ids == sorted(model.notes)
    check_fields(found, model)


def check_rows(found: tuple[list[Hit], IndexRows], hits: list[Hit], model: Model) -> None:
    """Check that a search with rows has the hits of a plain search, and the rows of these notes, also after `take`."""
    assert found[0] == hits
    assert found[1].ids == [hit.id for hit in hits]
    check_fields(found[1], model)
    places = list(range(0, len(hits), 2))
    assert found[1].take(places).ids == [hit.id for hit in hits[::2]]
    check_fields(found[1].take(places), model)


def check_fields(rows: IndexRows, model: Model) -> None:
    """Check that rows have the fields that the notes were written with."""
    for place, note_id in enumerate(rows.ids):
        stored = model.notes[note_id]
        np.testing.assert_array_equal(rows.vectors[place], stored.vector)
        assert (rows.category(place), rows.author(place)) == (stored.category, stored.note.author)


def test_search_of_empty_index_returns_nothing(index: VectorIndex) -> None:
    assert index.search(direction(0), 10, ANY, 0.0) == []
    assert (len(index), index.tombstones, index.vector("a")) == (0, 0, None)


def test_search_for_own_vector_scores_one(index: VectorIndex) -> None:
    index.upsert(rows(50))
    (best,) = index.search(direction(17), 1, ANY, 0.0)
    assert best.id == "n17"
    assert best.score == pytest.approx(1, abs=TOLERANCE)


def test_search_k_beyond_rows_returns_each_once(index: VectorIndex) -> None:
    index.upsert(rows(30))
    found = index.search(direction(0), 200, ANY, 0.0)
    assert sorted(hit.id for hit in found) == sorted(f"n{n}" for n in range(30))


def test_search_k_beyond_matches_returns_the_matches(large_index: VectorIndex) -> None:
    large_index.upsert(rows(3000))
    large_index.upsert([row("rare", 5, author="tom")])
    found = large_index.search(direction(0), 10, Filter(author="tom"), 0.0)
    assert [hit.id for hit in found] == ["rare"]


def test_search_k_zero_returns_nothing(index: VectorIndex) -> None:
    index.upsert(rows(30))
    assert index.search(direction(0), 0, Filter(category="Food"), 0.0) == []


def test_search_equal_scores_are_ordered_by_id(index: VectorIndex) -> None:
    index.upsert([row(note_id) for note_id in "cab"])
    assert [hit.id for hit in index.search(direction(0), 3, ANY, 0.0)] == ["a", "b", "c"]


@pytest.mark.parametrize("hashtag", ["Night Bus", "nightbus", "#NIGHT  BUS ", "ｎｉｇｈｔ bus"])
def test_filter_hashtag_ignores_case_and_spaces(index: VectorIndex, hashtag: str) -> None:
    index.upsert([row("a", hashtags=("night bus",)), row("b", hashtags=("bus",)), row("c", hashtags=("night",))])
    assert found_ids(index, Filter(hashtags=(hashtag,))) == {"a"}


def test_filter_hashtags_need_any_one(index: VectorIndex) -> None:
    index.upsert([row("a", hashtags=("x", "y")), row("b", hashtags=("z",)), row("c", hashtags=("w",))])
    assert found_ids(index, Filter(hashtags=("y", "Z", "unknown"))) == {"a", "b"}
    assert found_ids(index, Filter(hashtags=("unknown",))) == set()


def test_filter_all_hashtags_need_every_one(index: VectorIndex) -> None:
    index.upsert([row("a", hashtags=("x", "y", "z")), row("b", hashtags=("X",)), row("c", hashtags=("y",))])
    assert found_ids(index, Filter(all_hashtags=("#X", "y"))) == {"a"}
    assert found_ids(index, Filter(all_hashtags=("x",))) == {"a", "b"}
    assert found_ids(index, Filter(all_hashtags=("x", "unknown"))) == set()
    assert found_ids(index, Filter(hashtags=("x", "y"), all_hashtags=("y",))) == {"a", "c"}


def test_filter_attribute_compares_values_as_json_text(index: VectorIndex) -> None:
    values = {"en": "en", "text": "2", "whole": 2, "part": 2.5, "yes": True}
    index.upsert([row(note_id, attributes={"language": value}) for note_id, value in values.items()])
    for text, ids in {"en": {"en"}, "2": {"text", "whole"}, "2.5": {"part"}, "true": {"yes"}, "zh": set()}.items():
        assert found_ids(index, Filter(attributes=(("language", text),))) == ids


def test_filter_generated_fields_stand_in_for_author_fields(index: VectorIndex) -> None:
    generated = Generated((Hashtag("made", 0.5),), CategoryProbability("Food", 0.5))
    index.upsert([row("a", generated=generated), row("b", generated=generated, hashtags=("own",), category="Travel")])
    assert found_ids(index, Filter(hashtags=("made",))) == {"a"}
    assert found_ids(index, Filter(category="Food")) == {"a"}


def test_filter_times_are_exclusive(index: VectorIndex) -> None:
    index.upsert([row("a", created_at=10.0), row("b", created_at=10.5), row("c", created_at=9.5)])
    assert found_ids(index, Filter(created_after=10.0)) == {"b"}
    assert found_ids(index, Filter(created_before=10.0)) == {"c"}
    assert found_ids(index, Filter(created_after=9.5, created_before=10.5)) == {"a"}


@pytest.mark.parametrize(
    ("bounds", "ids"),
    [
        (Bounds(gt=order_key("2")), {"part", "large"}),
        (Bounds(gte=order_key("2")), {"two", "text", "part", "large"}),
        (Bounds(gt=order_key("-1"), lt=order_key("2.5")), {"two", "text"}),
        (Bounds(lte=order_key("2.5")), {"negative", "two", "text", "part"}),
        (Bounds(gte=order_key("2026-01-02"), lt=order_key("2026-02")), {"date"}),
        (Bounds(gte=order_key("true")), {"yes"}),
        (Bounds(gt=order_key("3"), lt=order_key("2")), set()),
    ],
)
def test_filter_range_compares_numbers_with_numbers_and_texts_with_texts(
    index: VectorIndex, bounds: Bounds[OrderKey], ids: set[str]
) -> None:
    values = {"two": 2, "text": "2", "part": 2.5, "large": 1e20, "negative": -7, "date": "2026-01-31", "yes": True}
    index.upsert([row(note_id, attributes={"seats": value}) for note_id, value in values.items()])
    index.upsert([row("none"), row("other", attributes={"language": 2})])
    where = AttributeRange("seats", bounds)
    assert found_ids(index, Filter(clause=where)) == ids
    assert found_ids(index, Filter(clause=Not(where))) == {*values, "none", "other"} - ids


def test_filter_time_of_the_last_write_is_that_of_its_position(index: VectorIndex) -> None:
    index.upsert([row("a", position="1500-9"), row("b", 1, position="2000-0"), row("c")])
    where = Filter(clause=TimeRange("updated", Bounds(gte=1.5, lt=2.0)))
    assert found_ids(index, where) == {"a"}
    index.upsert([row("a", position="2500-0"), row("b", 2, position="1999-0")])
    assert found_ids(index, where) == {"b"}


def test_filter_range_over_thousands_of_values_finds_each(large_index: VectorIndex) -> None:
    large_index.upsert([row(f"n{n}", n, attributes={"seats": n / 8}) for n in range(3000)])
    large_index.remove([f"n{n}" for n in range(0, 3000, 3)])
    where = AttributeRange("seats", Bounds(gte=order_key("100"), lt=order_key("200")))
    expected = {f"n{n}" for n in range(800, 1600) if n % 3}
    assert found_ids(large_index, Filter(clause=where), k=3000) == expected


@pytest.mark.parametrize("where", [ANY, Filter(category="Food"), Filter(exact=True)], ids=["any", "food", "exact"])
def test_filter_thousands_of_excluded_ids_are_left_out(large_index: VectorIndex, where: Filter) -> None:
    model = Model()
    for changed in (large_index, model):
        changed.upsert(rows(3000))
        changed.remove([f"n{n}" for n in range(100)])
    excluded = frozenset(f"n{n}" for n in range(3500) if n % 4)
    where = replace(where, exclude=excluded)
    for seed in range(3):
        check(large_index.search(direction(seed), 20, where, 0.0), model.scores(direction(seed), where, 0.0), 20)


def test_expired_row_is_hidden_and_expire_removes_it(index: VectorIndex) -> None:
    index.upsert([row("a", expires_at=10.0), row("b", expires_at=20.0), row("c")])
    assert found_ids(index, now=10.0) == {"b", "c"}
    assert len(index) == 3
    index.expire(10.0)
    assert len(index) == 2
    assert found_ids(index, now=0.0) == {"b", "c"}


def test_upsert_replaces_vector_and_fields(index: VectorIndex) -> None:
    index.upsert([row("a", 1, category="Food", hashtags=("old",), author="tom")])
    index.upsert([row("a", 2, category="Travel", hashtags=("new",), author="ann")])
    assert [f(index) for f in (len, found_ids)] == [1, {"a"}]
    assert found_ids(index, Filter(category="Food")) == found_ids(index, Filter(hashtags=("old",))) == set()
    assert found_ids(index, Filter(author="tom")) == set()
    assert found_ids(index, Filter("Travel", ("new",), "ann")) == {"a"}
    np.testing.assert_array_equal(index.vector("a"), direction(2))


def test_upsert_same_id_twice_keeps_the_last(index: VectorIndex) -> None:
    index.upsert([row("a", 1), row("a", 2), row("a", 3, author="ann")])
    assert (len(index), found_ids(index, Filter(author="ann"))) == (1, {"a"})
    np.testing.assert_array_equal(index.vector("a"), direction(3))


def test_upsert_new_fields_leave_no_tombstone(index: VectorIndex) -> None:
    index.upsert([row("a", category="Food", hashtags=("old",), author="tom", expires_at=10.0)])
    index.upsert([row("a", category="Travel", hashtags=("new",), author="ann")])
    assert index.tombstones == 0
    assert found_ids(index, Filter("Travel", ("new",), "ann"), now=10.0) == {"a"}
    assert found_ids(index, Filter(hashtags=("old",))) == set()


def test_remove_unknown_id_changes_nothing(index: VectorIndex) -> None:
    index.upsert(rows(3))
    index.remove(["unknown", "n1", "n1"])
    index.remove(["n1"])
    assert found_ids(index) == {"n0", "n2"}


@pytest.mark.parametrize(
    "vector",
    [None, np.ones(DIMENSION + 1, np.float32), np.ones((1, DIMENSION), np.float32), np.ones(0, np.float32)],
    ids=["none", "longer", "a matrix", "empty"],
)
def test_upsert_vector_of_other_shape_is_refused(index: VectorIndex, vector: Vector | None) -> None:
    index.upsert(rows(3))
    wrong = StoredNote(row("wrong").note, "space", vector)
    with pytest.raises(ValueError, match="wrong"):
        index.upsert([row("right"), wrong])
    assert found_ids(index) == {"n0", "n1", "n2"}


def test_tombstones_are_compacted_without_changing_answers(large_index: VectorIndex) -> None:
    model = Model()
    notes = rows(GROWING_ROWS + 500)
    for part in (notes[:2000], notes[2000:]):
        large_index.upsert(part)
        model.upsert(part)
    seen = []
    for n in range(0, GROWING_ROWS, GROWING_ROWS // 8):
        gone = [note.note.id for note in notes[n : n + GROWING_ROWS // 8]]
        large_index.remove(gone)
        model.remove(gone)
        seen.append(large_index.tombstones)
        check_all(large_index, model)
    assert max(seen) < GROWING_ROWS
    assert seen != sorted(seen), "no compaction ever gave tombstones back"


def test_upsert_replaced_rows_do_not_pile_up(large_index: VectorIndex) -> None:
    model = Model()
    for turn in range(GROWING_ROWS // 100 + 5):
        changed = [row(f"n{n}", turn * 100 + n, category="Food" if n % 3 == 0 else None) for n in range(100)]
        large_index.upsert(changed)
        model.upsert(changed)
        assert large_index.tombstones <= GROWING_ROWS
    check_all(large_index, model)


def test_upsert_after_removing_all_rows_works(large_index: VectorIndex) -> None:
    large_index.upsert(rows(1500))
    large_index.remove([f"n{n}" for n in range(1500)])
    assert (len(large_index), large_index.search(direction(0), 10, ANY, 0.0)) == (0, [])
    model = Model()
    large_index.upsert(rows(200, 100))
    model.upsert(rows(200, 100))
    check_all(large_index, model)


def test_upsert_fields_after_compaction_are_filtered(large_index: VectorIndex) -> None:
    large_index.upsert(rows(1500))
    large_index.remove([f"n{n}" for n in range(1400)])
    large_index.upsert([row("n1400", 1400, author="ann", hashtags=("new",), expires_at=10.0)])
    for where in (Filter(author="ann"), Filter(hashtags=("new",))):
        assert found_ids(large_index, where) == {"n1400"}
    assert "n1400" not in found_ids(large_index, Filter(hashtags=("seventh",)))
    large_index.expire(10.0)
    assert len(large_index) == 99
