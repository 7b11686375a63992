"""SegmentedIndex: sealing and merging change no answer, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.filters import Filter
from service.index.growing import GrowingSegment
from service.index.merging import MAX_DEAD_SHARE, MERGE_FACTOR
from service.index.segmented import MergeJob, SegmentedIndex
from tests.service.index.reference import (
    ATTRIBUTE_NAMES,
    DIMENSION,
    FILTERS,
    ROWS,
    STEPS,
    Model,
    check,
    direction,
    do_jobs,
    found_ids,
    row,
    rows,
)

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def pairs_merge() -> Iterator[None]:
    """Merge two segments at a time, not four, and let two threads search few rows, while the block lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.index.segmented.MERGE_FACTOR", 2)
        patch.setattr("service.index.merging.MERGE_FACTOR", 2)
        patch.setattr("service.index.searcher.MIN_SHARED_ROWS", 4)
        yield


def test_values_that_no_row_has_any_more_leave_nothing_in_the_growing_segment() -> None:
    index = SegmentedIndex(DIMENSION, attributes=ATTRIBUTE_NAMES)
    for seats in range(1000):
        index.upsert([row("liked", attributes={"seats": seats})])
    (growing,) = index._searcher.segments
    assert isinstance(growing, GrowingSegment)
    assert len(growing) == 1
    assert len(growing._rows_by_tag) == len(growing._tags[0])


@pytest.mark.parametrize("count", [1, 4, 7, 12, 20])
def test_sampled_ids_are_as_many_as_requested_and_evenly_spread(count: int) -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=4)
    names = [f"n{number}" for number in range(12)]
    for name in names:
        index.upsert([row(name)])
        do_jobs(index)
    assert len(index.all_segments) > 1
    places = [index.ids().index(name) for name in index.sampled_ids(count)]
    assert len(places) == min(count, 12)
    gaps = np.diff([*places, 12])
    assert 1 <= min(gaps) <= max(gaps) <= math.ceil(12 / len(places))


WORK = st.just(("work", None))
MANY = st.lists(ROWS, min_size=6, max_size=8, unique_by=lambda stored: stored.note.id)


@given(
    st.lists(st.one_of(STEPS, MANY.map(lambda notes: ("upsert", notes)), WORK), min_size=15, max_size=40),
    st.lists(st.tuples(FILTERS, st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=3),
)
@settings(max_examples=100, deadline=None)
@pairs_merge()
def test_search_at_any_point_of_a_merge_equals_brute_force(
    history: list[tuple[str, Any]], searches: list[tuple[Filter, int, int]]
) -> None:
    index, model = SegmentedIndex(DIMENSION, growing_rows=2, attributes=ATTRIBUTE_NAMES), Model()
    job: MergeJob | None = None
    for step, argument in history:
        if step == "work":  # the next step of a merge: plan, run or finish
            if job is None:
                job = index.plan()
            elif job.merged is None and job.rows:
                job.run()
            else:
                index.finish(job)
                job = None
        else:
            getattr(index, step)(argument)
            getattr(model, step)(argument)
        for where, seed, k in searches:
            check(index.search(direction(seed), k, where, 5.0), model.scores(direction(seed), where, 5.0), k)
        assert len(index) == len(model.notes)
        for note_id, note in model.notes.items():
            np.testing.assert_array_equal(index.vector(note_id), note.vector)


def test_plan_merges_full_segments_of_one_size() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=4)
    sizes = []
    for note in rows(4 * MERGE_FACTOR**3 + 1):
        index.upsert([note])
        do_jobs(index)
        sizes.append(index.segments)
    assert index.segments == 2, "all but the growing segment is one"
    assert max(sizes) <= 1 + 3 * (MERGE_FACTOR - 1) + 1
    assert index.tombstones == 0


def test_plan_fragmented_segment_is_rewritten() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=8)
    notes = rows(8 * MERGE_FACTOR + 1)
    index.upsert(notes)
    do_jobs(index)
    few = int(MAX_DEAD_SHARE * 8 * MERGE_FACTOR)
    index.remove([note.note.id for note in notes[:few]])
    assert (do_jobs(index), index.tombstones) == (0, few)
    index.remove([notes[few].note.id])
    assert (do_jobs(index), index.tombstones) == (1, 0)
    assert found_ids(index) == {note.note.id for note in notes[few + 1 :]}


def test_segment_over_the_bound_is_left_but_where_tombstones_are_to_be_dropped() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=4, max_merged_rows=15)
    for note in rows(16 * MERGE_FACTOR + 1):
        index.upsert([note])
        do_jobs(index)
    assert [len(segment) for segment in index.all_segments] == [16, 16, 16, 16, 1]
    index.remove([f"n{i}" for i in range(12)])
    do_jobs(index)
    assert [len(segment) for segment in index.all_segments] == [16, 16, 16, 16, 1]
    index.drop_tombstones()
    do_jobs(index)
    assert index.tombstones == 0


def test_plan_segment_without_living_rows_is_dropped() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=4)
    index.upsert(rows(4 * MERGE_FACTOR + 1))
    do_jobs(index)
    index.remove([f"n{n}" for n in range(4 * MERGE_FACTOR)])
    do_jobs(index)
    assert (index.segments, index.tombstones, found_ids(index)) == (1, 0, {f"n{4 * MERGE_FACTOR}"})


def test_plan_after_failed_job_goes_on_with_others() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=8)
    index.upsert(rows(8 * MERGE_FACTOR + 1))
    do_jobs(index)
    index.remove([f"n{n}" for n in range(8 * MERGE_FACTOR // 2)])
    index.upsert(rows(8 * MERGE_FACTOR, first=1000))
    first = index.plan()
    assert first is not None
    index.give_up(first)
    second = index.plan()
    assert second is not None
    assert {id(source.segment) for source in second.sources}.isdisjoint(id(s.segment) for s in first.sources)
    second.run()
    index.finish(second)
    assert index.plan() is None
    assert index.plan() is not None, "the first one is tried again"


def test_job_that_is_never_finished_changes_nothing() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=4)
    index.upsert(rows(4 * MERGE_FACTOR + 1))
    job = index.plan()
    assert job is not None
    job.run()
    again = index.plan()
    assert again is not None
    again.run()
    index.finish(again)
    assert found_ids(index) == {f"n{n}" for n in range(4 * MERGE_FACTOR + 1)}


def test_expire_resets_the_first_expiry() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=4)
    index.upsert([row(f"n{n}", n, expires_at=10.0 if n == 3 else None) for n in range(4 * MERGE_FACTOR + 1)])
    do_jobs(index)
    assert index.expire(10.0) == ["n3"]
    assert all(segment._first_expiry == np.inf for segment in index.all_segments)
    assert "n3" not in found_ids(index, now=0.0)
