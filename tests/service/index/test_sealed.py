"""SealedSegment with an inverted file: what its searches find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from service.filters import Filter
from service.index.array_files import map_arrays, save_arrays
from service.index.merging import MERGE_FACTOR
from service.index.probing import RECALL
from service.index.sealed import SealedSegment
from service.index.segmented import SegmentedIndex
from service.records import StoredNote, Vector
from tests.service.conftest import stored_note
from tests.service.index.reference import (
    ANY,
    TOLERANCE,
    Model,
    check,
    clustered,
    do_jobs,
    unit_vector,
    vector_of,
)

SEALED_ROWS = 6000


@pytest.fixture(scope="module", params=["processor", "card"])
def sealed(request: pytest.FixtureRequest) -> Iterator[SegmentedIndex]:
    """An index of one large segment with an inverted file, whose rows form clusters, like the topics of a community."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.index.building.IVF_ROWS", 1000)
        patch.setattr("service.index.sealed.MAX_EXACT_ROWS", 20)
        gpu = request.getfixturevalue("card") if request.param == "card" else None
        index = SegmentedIndex(16, growing_rows=SEALED_ROWS // MERGE_FACTOR, gpu=gpu)
        index.upsert([clustered(n) for n in range(SEALED_ROWS + 1)])
        do_jobs(index)
        assert any(isinstance(segment, SealedSegment) and segment._inverted for segment in index.all_segments)
        yield index


@pytest.fixture(scope="module")
def spread_rows() -> Iterator[SegmentedIndex]:
    """An index of one large segment and a small one, with neighbours in many lists, so that searches use codes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.index.building.IVF_ROWS", 1000)
        index = SegmentedIndex(32, growing_rows=4000)
        index.upsert([spread(n) for n in range(16_100)])
        do_jobs(index)
        yield index


@cache
def spread(number: int) -> StoredNote:
    """Return note r<number>, near one of 400 random directions in 32 dimensions."""
    topic = np.random.default_rng(number % 400).normal(size=32)
    vector = topic + 0.7 * np.random.default_rng(1000 + number).normal(size=32)
    return stored_note(f"r{number}", vector=unit_vector(vector))


def queries() -> list[Vector]:
    """Return vectors of 60 notes that are not in the index."""
    return [vector_of(clustered(SEALED_ROWS + 10 + n)) for n in range(60)]


@pytest.mark.parametrize("k", [1, 10, 100, 300])
@pytest.mark.parametrize("tag", [None, "half", "tenth", "hundredth", "rare"])
def test_ivf_search_returns_k_at_measured_recall(sealed: SegmentedIndex, tag: str | None, k: int) -> None:
    model = Model()
    model.upsert([clustered(n) for n in range(SEALED_ROWS + 1)])
    where = ANY if tag is None else Filter(hashtags=(tag,))
    ids = [i for i, note in model.notes.items() if where.accepts(note)]
    matrix = np.stack([vector for i in ids if (vector := model.notes[i].vector) is not None])
    hits = 0
    for query in queries():
        found = sealed.search(query, k, where, 0.0)
        assert len(found) == min(k, len(ids))
        best = {ids[i] for i in np.argsort(-(matrix @ query))[:k]}
        hits += len(best.intersection(hit.id for hit in found))
    assert hits >= (RECALL - 0.015) * 60 * min(k, len(ids))


@pytest.mark.parametrize("k", [1, 10, 30])
def test_search_by_codes_finds_the_nearest_with_scores_of_vectors(spread_rows: SegmentedIndex, k: int) -> None:
    assert spread_rows.all_segments[0].codes(k, k) is not None
    matrix = np.stack([vector_of(spread(n)) for n in range(16_100)])
    found = 0
    for query in (vector_of(spread(20_000 + n)) for n in range(30)):
        scores = matrix @ query
        hits = spread_rows.search(query, k, ANY, 0.0)
        np.testing.assert_allclose(
            [hit.score for hit in hits], [scores[int(hit.id[1:])] for hit in hits], atol=TOLERANCE
        )
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        found += len({int(hit.id[1:]) for hit in hits}.intersection(np.argsort(-scores)[:k].tolist()))
    assert found >= (RECALL - 0.015) * 30 * k


def test_search_by_codes_restored_returns_the_same(spread_rows: SegmentedIndex) -> None:
    parts = {part.name: part.make() for part in spread_rows.snapshot_parts()}
    restored = SegmentedIndex(32, growing_rows=4000)
    restored.restore(parts.__getitem__)
    codes, kept = (index.all_segments[0].codes(10, 10) for index in (restored, spread_rows))
    assert codes is not None
    assert kept is not None
    assert codes.candidates == kept.candidates
    for query in (vector_of(spread(20_000 + n)) for n in range(30)):
        assert restored.search(query, 10, ANY, 0.0) == spread_rows.search(query, 10, ANY, 0.0)


def test_rows_of_an_odd_dimension_have_no_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.index.building.IVF_ROWS", 1000)
    index = SegmentedIndex(15, growing_rows=1000)
    notes = [stored_note(f"o{n}", vector=vector_of(spread(n))[:15].copy()) for n in range(4001)]
    index.upsert(notes)
    do_jobs(index)
    assert index.all_segments[0].has_lists
    assert index.all_segments[0].codes(10, 10) is None
    assert index.search(vector_of(notes[7]), 1, ANY, 0.0)[0].id == "o7"


@pytest.mark.parametrize("where", [ANY, Filter(hashtags=("tenth",)), Filter(exact=True)])
def test_ivf_restored_returns_the_same(sealed: SegmentedIndex, where: Filter) -> None:
    parts = {part.name: part.make() for part in sealed.snapshot_parts()}
    restored = SegmentedIndex(16, gpu=sealed._gpu)
    restored.restore(parts.__getitem__)
    for query in queries():
        assert restored.search(query, 10, where, 0.0) == sealed.search(query, 10, where, 0.0)
    restored.remove(["c40"])
    assert restored.vector("c40") is None
    assert sealed.vector("c40") is not None


@pytest.mark.parametrize("where", [ANY, Filter(hashtags=("tenth",)), Filter(exact=True)])
def test_ivf_mapped_from_a_file_returns_the_same(sealed: SegmentedIndex, where: Filter, tmp_path: Path) -> None:
    for part in sealed.snapshot_parts():
        with (tmp_path / part.name).open("wb") as file:
            save_arrays(file, part.make())
    mapped = SegmentedIndex(16, gpu=sealed._gpu)
    mapped.restore(lambda name: map_arrays(tmp_path / name))
    for query in queries():
        assert mapped.search(query, 10, where, 0.0) == sealed.search(query, 10, where, 0.0)
    mapped.upsert([replace(clustered(41), vector=clustered(42).vector)])
    mapped.remove(["c40"])
    mapped.drop_tombstones()
    do_jobs(mapped)
    assert (mapped.tombstones, mapped.vector("c40")) == (0, None)
    np.testing.assert_array_equal(mapped.vector("c41"), sealed.vector("c42"))


@pytest.mark.parametrize("where", [Filter(exact=True), Filter(hashtags=("half",), exact=True)])
def test_ivf_exact_search_equals_brute_force(sealed: SegmentedIndex, where: Filter) -> None:
    model = Model()
    model.upsert([clustered(n) for n in range(SEALED_ROWS + 1)])
    for query in queries()[:5]:
        check(sealed.search(query, 200, where, 0.0), model.scores(query, where, 0.0), 200)


def test_ivf_removed_row_is_hidden_at_once(sealed: SegmentedIndex) -> None:
    vector = clustered(40).vector
    assert vector is not None
    assert sealed.search(vector, 1, ANY, 0.0)[0].id == "c40"
    np.testing.assert_array_equal(sealed.vector("c40"), vector)
    sealed.remove(["c40"])
    assert "c40" not in {hit.id for hit in sealed.search(vector, 500, ANY, 0.0)}
    assert sealed.vector("c40") is None
    sealed.upsert([clustered(40)])
    assert sealed.search(vector, 1, ANY, 0.0)[0].id == "c40"


def test_search_nearest_are_tombstones_returns_k(sealed: SegmentedIndex) -> None:
    """The joint search finds too few living rows, so that each segment is searched with its tombstones masked."""
    query = queries()[3]
    nearest = [hit.id for hit in sealed.search(query, 100, ANY, 0.0)]
    sealed.remove(nearest[:90])
    try:
        found = {hit.id for hit in sealed.search(query, 10, ANY, 0.0)}
        assert (len(found), found.isdisjoint(nearest[:90])) == (10, True)
    finally:
        sealed.upsert([clustered(int(note_id.removeprefix("c"))) for note_id in nearest[:90]])
