"""SegmentedIndex: sealing and merging change no answer, whatever happens meanwhile; and what an inverted file finds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.filters import Filter
from service.index.gpu import Gpu, find_gpu
from service.index.native import swig, trained_ivf
from service.index.sealed import RECALL, SealedSegment
from service.index.segmented import MAX_DEAD_SHARE, MERGE_FACTOR, MergeJob, SegmentedIndex
from service.records import StoredNote, Vector
from tests.service.conftest import stored_note
from tests.service.index.test_vector_index import (
    ANY,
    ASKED,
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

SEALED_ROWS = 6000
CLUSTERS = 40


@pytest.fixture(scope="module")
def pairs_merge() -> Iterator[None]:
    """Two heads or segments are enough to become one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.index.segmented.MERGE_FACTOR", 2)
        yield


WORK = st.just(("work", None))
MANY = st.lists(ROWS, min_size=6, max_size=8, unique_by=lambda stored: stored.note.id)


@pytest.mark.usefixtures("pairs_merge")
@given(
    st.lists(st.one_of(STEPS, MANY.map(lambda notes: ("upsert", notes)), WORK), min_size=15, max_size=40),
    st.lists(st.tuples(FILTERS, st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_at_any_point_of_any_job_it_finds_what_brute_force_finds(
    history: list[tuple[str, Any]], searches: list[tuple[Filter, int, int]]
) -> None:
    index, model = SegmentedIndex(DIMENSION, growing_rows=2, attributes=ASKED), Model()
    job: MergeJob | None = None
    for step, argument in history:
        if step == "work":  # the next of planning, running and finishing
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


def test_heads_are_sealed_and_segments_of_one_size_become_one() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=4)
    sizes = []
    for note in rows(4 * MERGE_FACTOR**3 + 1):
        index.upsert([note])
        do_jobs(index)
        sizes.append(index.segments)
    assert index.segments == 2, "all but the head is one"
    assert max(sizes) <= 1 + 3 * (MERGE_FACTOR - 1) + 1
    assert index.tombstones == 0


def test_a_worn_segment_is_made_again_without_its_tombstones() -> None:
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


def test_a_segment_without_a_living_row_goes() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=4)
    index.upsert(rows(4 * MERGE_FACTOR + 1))
    do_jobs(index)
    index.remove([f"n{n}" for n in range(4 * MERGE_FACTOR)])
    do_jobs(index)
    assert (index.segments, index.tombstones, found_ids(index)) == (1, 0, {f"n{4 * MERGE_FACTOR}"})


def test_of_two_jobs_one_that_fails_does_not_hold_up_the_other() -> None:
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


def test_a_job_whose_result_nobody_takes_changes_nothing() -> None:
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


@pytest.fixture(scope="module")
def card() -> Iterator[Gpu]:
    """The machine's own, or else what copies to the processor where a card is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        if not swig.get_num_gpus():
            patch.setattr(swig, "StandardGpuResources", object, raising=False)
            patch.setattr(swig, "index_cpu_to_gpu", lambda _r, _device, of: swig.clone_index(of), raising=False)
        yield Gpu()


@pytest.fixture(scope="module", params=["processor", "card"])
def sealed(request: pytest.FixtureRequest) -> Iterator[SegmentedIndex]:
    """One segment with an inverted file, of rows in clusters: the notes of a community are about some things."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.index.sealed.IVF_ROWS", 1000)
        patch.setattr("service.index.sealed.MAX_EXACT_ROWS", 20)
        gpu = request.getfixturevalue("card") if request.param == "card" else None
        index = SegmentedIndex(16, growing_rows=SEALED_ROWS // MERGE_FACTOR, gpu=gpu)
        index.upsert([clustered(n) for n in range(SEALED_ROWS + 1)])
        do_jobs(index)
        assert any(isinstance(segment, SealedSegment) and segment._lists_by_k for segment in index._segments)
        yield index


def copies_on(card: Gpu) -> int:
    """Count the copies of inverted files that the card holds, once what nobody needs is freed."""
    with card._exclusive():
        return sum(not isinstance(index, swig.IndexShards) for index in card._indexes.values())


def test_gpu_after_merges_holds_one_copy_a_segment(card: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.index.sealed.IVF_ROWS", 100)
    index = SegmentedIndex(16, growing_rows=100, gpu=card)
    before = copies_on(card)
    for n in range(100 * MERGE_FACTOR * MERGE_FACTOR + 1):
        index.upsert([clustered(n)])
        do_jobs(index)
        assert index.search(one_of(clustered(n)), 1, ANY, 0.0)[0].id == f"c{n}"
    assert (index.segments, copies_on(card) - before) == (2, 1)


def test_gpu_copy_in_joined_index_stays_until_that_goes(card: Gpu) -> None:
    vectors = np.eye(4, dtype=np.float32)
    index = trained_ivf(vectors, lists=1)
    index.add(vectors)
    copy = card.copy(index, lists=1)
    assert copy is not None
    joined = card.concatenate([copy, index])
    copy_number, joined_number = copy._number, joined._number
    del copy
    scores, rows = joined.search(vectors[:1], 2)
    assert (scores.tolist(), sorted(rows[0].tolist())) == ([[1.0, 1.0]], [0, 4])
    assert copy_number not in card._indexes
    del joined
    with card._exclusive():
        assert joined_number not in card._indexes


def test_where_a_card_has_no_room_the_processor_searches(card: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(swig, "index_cpu_to_gpu", full)
    monkeypatch.setattr("service.index.sealed.IVF_ROWS", 100)
    index = SegmentedIndex(16, growing_rows=100, gpu=card)
    index.upsert([clustered(n) for n in range(100 * MERGE_FACTOR + 1)])
    do_jobs(index)
    assert [index.search(one_of(clustered(n)), 1, ANY, 0.0)[0].id for n in (5, 400)] == ["c5", "c400"]


def test_where_no_card_is_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swig, "get_num_gpus", lambda: 0)
    assert find_gpu() is None


def clustered(n: int) -> StoredNote:
    rng = np.random.default_rng(n)
    centre = np.random.default_rng(10_000 + n % CLUSTERS).normal(size=16)
    vector = centre + 0.8 * rng.normal(size=16)
    shares = {name: n % every == 0 for name, every in (("half", 2), ("tenth", 10), ("hundredth", 100), ("rare", 2000))}
    tags = tuple(name for name, has in shares.items() if has)
    return stored_note(f"c{n}", vector=(vector / np.linalg.norm(vector)).astype(np.float32), hashtags=tags)


def one_of(stored: StoredNote) -> Vector:
    assert stored.vector is not None
    return stored.vector


def queries() -> list[Vector]:
    return [one_of(clustered(SEALED_ROWS + 10 + n)) for n in range(60)]


@pytest.mark.parametrize("k", [1, 10, 100, 300])
@pytest.mark.parametrize("tag", [None, "half", "tenth", "hundredth", "rare"])
def test_an_inverted_file_finds_nearly_all_and_always_as_many(sealed: SegmentedIndex, tag: str | None, k: int) -> None:
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


@pytest.mark.parametrize("where", [ANY, Filter(hashtags=("tenth",)), Filter(exact=True)])
def test_one_that_was_restored_finds_the_same(sealed: SegmentedIndex, where: Filter) -> None:
    parts = {part.name: part.make() for part in sealed.snapshot_parts()}
    restored = SegmentedIndex(16, gpu=sealed._gpu)
    restored.restore(parts.__getitem__)
    for query in queries():
        assert restored.search(query, 10, where, 0.0) == sealed.search(query, 10, where, 0.0)
    restored.remove(["c40"])
    assert restored.vector("c40") is None
    assert sealed.vector("c40") is not None


@pytest.mark.parametrize("where", [Filter(exact=True), Filter(hashtags=("half",), exact=True)])
def test_who_asks_for_exactness_gets_it(sealed: SegmentedIndex, where: Filter) -> None:
    model = Model()
    model.upsert([clustered(n) for n in range(SEALED_ROWS + 1)])
    for query in queries()[:5]:
        check(sealed.search(query, 200, where, 0.0), model.scores(query, where, 0.0), 200)


def test_from_an_inverted_file_a_row_goes_at_once(sealed: SegmentedIndex) -> None:
    vector = clustered(40).vector
    assert vector is not None
    assert sealed.search(vector, 1, ANY, 0.0)[0].id == "c40"
    np.testing.assert_array_equal(sealed.vector("c40"), vector)
    sealed.remove(["c40"])
    assert "c40" not in {hit.id for hit in sealed.search(vector, 500, ANY, 0.0)}
    assert sealed.vector("c40") is None
    sealed.upsert([clustered(40)])
    assert sealed.search(vector, 1, ANY, 0.0)[0].id == "c40"


def test_what_expires_costs_later_searches_nothing() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=4)
    index.upsert([row(f"n{n}", n, expires_at=10.0 if n == 3 else None) for n in range(4 * MERGE_FACTOR + 1)])
    do_jobs(index)
    assert index.expire(10.0) == ["n3"]
    assert all(segment._first_expiry == np.inf for segment in index._segments)
    assert "n3" not in found_ids(index, now=0.0)


@pytest.fixture
def threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def beside(search: Callable[[int], None], write: Callable[[int], None], searches: int, turns: int) -> None:
    """Two threads search, each told its number, while this one writes, told the turn: at least so often each."""
    stop, searched = threading.Event(), [0, 0]

    def search_on(thread: int) -> None:
        while not stop.is_set():
            search(thread)
            searched[thread] += 1

    threads = [threading.Thread(target=search_on, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    turn = 0
    while any(thread.is_alive() for thread in threads) and (min(searched) < searches or turn < turns):
        write(turn)
        turn += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert min(searched) >= searches, "a search failed"


@pytest.mark.usefixtures("threads_take_turns_often")
@pytest.mark.parametrize("where", [ANY, Filter(hashtags=("stays",)), Filter(exclude=frozenset({"stay7", "go7"}))])
def test_searches_beside_writes_and_merges_miss_nothing_that_stays(where: Filter) -> None:
    """Notes that stay or are replaced are always found; one that is removed for good is not found after that."""
    index = SegmentedIndex(DIMENSION, growing_rows=16)
    stay = [row(f"stay{n}", n, hashtags=("stays",)) for n in range(60)]
    index.upsert(stay)
    wanted = {note.note.id for note in stay} - where.exclude
    gone, faults = set[str](), list[str]()

    def search(thread: int) -> None:
        before = set(gone)
        found = [hit.id for hit in index.search(direction(thread), 10_000, where, 0.0)]
        faults.extend(f"{hit} was left out" for hit in where.exclude.intersection(found))
        if index.vector("stay7") is None:
            faults.append("a vector is missing")
        if len(found) != len(set(found)):
            faults.append("a note is found twice")
        faults.extend(f"{missing} is missing" for missing in wanted.difference(found))
        faults.extend(f"{back} is back" for back in before.intersection(found))

    def write(turn: int) -> None:
        index.upsert([row(f"stay{turn % 60}", turn, hashtags=("stays",)), row(f"go{turn}", turn, hashtags=("goes",))])
        index.remove([f"go{turn - 5}"])
        if turn >= 5:
            gone.add(f"go{turn - 5}")
        do_jobs(index)

    beside(search, write, searches=40, turns=300)
    assert not faults, faults[:5]


@pytest.mark.usefixtures("threads_take_turns_often")
def test_a_note_that_is_replaced_all_the_time_is_always_the_nearest_to_itself() -> None:
    """So many are asked for that tombstones do not fill the answer of the one call for all segments."""
    index = SegmentedIndex(DIMENSION, growing_rows=16)
    index.upsert([row("stays", 7), *rows(200, first=1000)])
    where = Filter(exclude=frozenset({"n1000"}))
    faults = list[list[str]]()

    def search(_: int) -> None:
        found = [hit.id for hit in index.search(direction(7), 40, where, 0.0)]
        if found[0] != "stays" or len(set(found)) < 40:
            faults.append(found[:3])

    def write(turn: int) -> None:
        moved = direction(7) + 0.01 * direction(turn)
        index.upsert([stored_note("stays", vector=(moved / np.linalg.norm(moved)).astype(np.float32))])
        do_jobs(index)

    beside(search, write, searches=300, turns=3000)
    assert not faults, faults[:5]


def recall_of(index: SegmentedIndex, notes: list[StoredNote], k: int, excluded: int = 0) -> float:
    """For 40 of the notes as queries, of which the nearest so many are to be left out."""
    matrix = np.stack([one_of(note) for note in notes])
    found, asked = 0, notes[:: len(notes) // 40][:40]
    for query in map(one_of, asked):
        nearest = [notes[at].note.id for at in np.argsort(-(matrix @ query))[: excluded + k]]
        hits = index.search(query, k, Filter(exclude=frozenset(nearest[:excluded])), 0.0)
        found += len({hit.id for hit in hits}.intersection(nearest[excluded:]))
    return found / (k * len(asked))


def spread(n: int, topic: int = 0) -> StoredNote:
    """In no clusters; those of one topic differ in four directions of sixteen, so that few lists have what is near."""
    vector = np.zeros(16)
    vector[4 * topic : 4 * topic + 4] = np.random.default_rng(n).normal(size=4)
    return stored_note(f"s{n}", vector=(vector / np.linalg.norm(vector)).astype(np.float32))


@pytest.fixture
def lists_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.index.sealed.IVF_ROWS", 1000)


@pytest.mark.usefixtures("lists_of_few_rows")
@pytest.mark.parametrize("excluded", [1, 30, 300, 900])
def test_what_is_left_out_does_not_make_what_is_left_harder_to_find(excluded: int) -> None:
    notes = [spread(n) for n in range(8001)]
    index = SegmentedIndex(16, growing_rows=2000)
    index.upsert(notes)
    do_jobs(index)
    assert recall_of(index, notes, 10, excluded) >= RECALL - 0.015


@pytest.mark.usefixtures("lists_of_few_rows")
@pytest.mark.parametrize("k", [10, 50, 200])
def test_what_was_written_at_one_time_is_found_as_well_as_what_was_not(k: int) -> None:
    """All that is near is in the smallest segment, of which less is looked at than of the others."""
    old, new = [spread(n) for n in range(16_000)], [spread(20_000 + n, topic=1) for n in range(1601)]
    index = SegmentedIndex(16, growing_rows=400)
    for begin in range(0, 16_000, 400):
        index.upsert(old[begin : begin + 400])
        do_jobs(index)
    index.upsert(new)
    do_jobs(index)
    assert sum(segment.has_lists for segment in index._segments) > 1
    assert recall_of(index, new, k) >= RECALL - 0.015


def test_where_most_of_the_nearest_are_tombstones_as_many_are_found(sealed: SegmentedIndex) -> None:
    """More are in the way than were expected, so that the tombstones are masked."""
    query = queries()[3]
    nearest = [hit.id for hit in sealed.search(query, 100, ANY, 0.0)]
    sealed.remove(nearest[:90])
    try:
        found = {hit.id for hit in sealed.search(query, 10, ANY, 0.0)}
        assert (len(found), found.isdisjoint(nearest[:90])) == (10, True)
    finally:
        sealed.upsert([clustered(int(note_id.removeprefix("c"))) for note_id in nearest[:90]])
