"""The centre of an index: a share of the mean of its rows, once there are enough of them."""

from __future__ import annotations

import numpy as np
import pytest

from service.filters import Filter
from service.index.backend import Part
from service.index.centre import MIN_CENTRE_SHIFT, MIN_CHANGED_SHARE, MIN_NOTES, SAMPLED_NOTES
from service.index.segmented import SegmentedIndex
from service.records import StoredNote, Vector
from tests.service.conftest import DIMENSION, stored_note
from tests.service.index.reference import do_jobs

SHARE = 0.5


def index_of(notes: list[StoredNote], share: float = SHARE) -> SegmentedIndex:
    index = SegmentedIndex(DIMENSION, growing_rows=100, mean_share=share)
    index.upsert(notes)
    do_jobs(index)
    return index


def leaning(count: int, seed: int = 0, lean: float = 2.0) -> list[StoredNote]:
    """Notes whose vectors lean towards the first axis."""
    directions = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)
    directions[:, 0] += lean
    units = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return [stored_note(f"{seed}-{number}", vector=unit) for number, unit in enumerate(units)]


def vectors_of(notes: list[StoredNote]) -> np.ndarray:
    return np.stack([note.vector for note in notes if note.vector is not None])


def mean_of(notes: list[StoredNote]) -> Vector:
    return vectors_of(notes).mean(axis=0)


def test_centre_of_enough_notes_is_a_share_of_their_mean():
    notes = leaning(MIN_NOTES)
    centre = index_of(notes).centre
    np.testing.assert_allclose(centre.vector, SHARE * mean_of(notes), atol=1e-6)


@pytest.mark.parametrize(("count", "share"), [(MIN_NOTES - 1, SHARE), (MIN_NOTES, 0.0)])
def test_query_among_few_notes_or_without_a_share_is_the_vector_itself(count: int, share: float):
    index = index_of(leaning(count), share)
    vector = index.vector("0-0")
    assert vector is not None
    assert index.centre.query(vector) is vector


def test_query_is_the_unit_vector_less_the_centre():
    index = index_of(leaning(MIN_NOTES))
    vector, centre = index.vector("0-7"), index.centre
    assert vector is not None
    assert centre.vector is not None
    rest = vector - centre.vector
    np.testing.assert_allclose(centre.query(vector), rest / np.linalg.norm(rest), atol=1e-6)


def test_centre_of_many_notes_is_near_their_mean():
    notes = [*leaning(2 * SAMPLED_NOTES), *leaning(2 * SAMPLED_NOTES, seed=1, lean=-1.0)]
    centre = index_of(notes).centre
    assert centre.vector is not None
    assert np.linalg.norm(centre.vector - SHARE * mean_of(notes)) < 0.02


def test_centre_stays_until_a_share_of_the_notes_has_changed():
    notes, others = leaning(int(MIN_NOTES / MIN_CHANGED_SHARE)), leaning(MIN_NOTES, seed=1, lean=-2.0)
    changed = [stored_note(old.note.id, vector=new.vector) for old, new in zip(notes, others, strict=False)]
    index = index_of(notes)
    before = index.centre
    index.upsert(changed[:-1])
    assert index.centre is before
    index.upsert(changed[-1:])
    assert index.centre.vector is not None
    assert np.linalg.norm(index.centre.vector - SHARE * mean_of([*changed, *notes[len(changed) :]])) < 0.02


def test_centre_stays_where_notes_change_and_their_mean_hardly_moves():
    notes = leaning(2 * MIN_NOTES, lean=8.0)
    index = index_of(notes)
    before = index.centre
    for seed in (1, 2):
        others = leaning(2 * MIN_NOTES, seed=seed, lean=8.0)
        assert np.linalg.norm(mean_of(others) - mean_of(notes)) < MIN_CENTRE_SHIFT
        changed = [stored_note(old.note.id, vector=new.vector) for old, new in zip(notes, others, strict=True)]
        index.upsert(changed)
    assert index.centre is before
    index.drop_tombstones()  # as a purge does: it recomputes the centre
    np.testing.assert_allclose(index.centre.vector, SHARE * mean_of(changed), atol=1e-6)


def test_note_that_keeps_its_vector_is_no_change_to_the_centre():
    notes, others = leaning(int(MIN_NOTES / MIN_CHANGED_SHARE)), leaning(MIN_NOTES - 1, seed=1, lean=-2.0)
    index = index_of(notes)
    before = index.centre
    index.upsert([stored_note(old.note.id, vector=new.vector) for old, new in zip(notes, others, strict=False)])
    index.upsert(notes[MIN_NOTES:])  # in sealed segments
    index.upsert(notes[-10:])  # in the growing one
    assert index.centre is before
    index.upsert([stored_note("one more", vector=notes[0].vector)])
    assert index.centre is not before


def test_centre_goes_with_all_but_a_few_notes():
    notes = leaning(MIN_NOTES)
    index = index_of(notes)
    index.remove([notes[0].note.id])
    assert index.centre.vector is None
    index.upsert(notes[:1])
    np.testing.assert_allclose(index.centre.vector, SHARE * mean_of(notes), atol=1e-6)


def test_dropped_tombstones_leave_nothing_in_the_centre():
    notes, others = leaning(4 * MIN_NOTES), leaning(MIN_NOTES // 2, seed=1, lean=-2.0)
    index = index_of([*notes, *others])
    index.remove([note.note.id for note in others])
    index.drop_tombstones()
    do_jobs(index)
    np.testing.assert_allclose(index.centre.vector, SHARE * mean_of(notes), atol=1e-6)


def test_snapshot_of_a_model_without_a_share_gets_a_centre():
    notes = leaning(MIN_NOTES)
    parts = {part.name: part for part in index_of(notes, share=0.0).snapshot_parts()}
    restored = SegmentedIndex(DIMENSION, growing_rows=100, mean_share=SHARE)
    restored.restore(lambda name: parts[name].make())
    np.testing.assert_allclose(restored.centre.vector, SHARE * mean_of(notes), atol=1e-6)


def test_centre_is_estimated_anew_where_notes_were_removed():
    notes = leaning(4 * MIN_NOTES)
    index = index_of(notes)
    index.remove([note.note.id for note in notes[MIN_NOTES:]])
    np.testing.assert_allclose(index.centre.vector, SHARE * mean_of(notes[:MIN_NOTES]), atol=1e-6)


@pytest.mark.parametrize("count", [1, MIN_NOTES])
def test_restored_index_has_the_same_centre(count: int):
    index = index_of(leaning(count))
    parts: dict[str, Part] = {part.name: part for part in index.snapshot_parts()}
    restored = SegmentedIndex(DIMENSION, growing_rows=100, mean_share=SHARE)
    restored.restore(lambda name: parts[name].make())
    np.testing.assert_array_equal(np.array(restored.centre.vector), np.array(index.centre.vector))


def test_notes_nearest_to_a_query_are_those_of_the_formula():
    notes = leaning(2 * MIN_NOTES)
    index = index_of(notes)
    vectors, own = vectors_of(notes), notes[3]
    assert own.vector is not None
    query = own.vector - SHARE * mean_of(notes)
    nearest = np.argsort(-(vectors @ query))
    expected = [notes[row].note.id for row in nearest.tolist() if notes[row] is not own][:10]
    found = index.search(index.centre.query(own.vector), 10, Filter(exclude=frozenset({own.note.id})), 0.0)
    assert [hit.id for hit in found] == expected
