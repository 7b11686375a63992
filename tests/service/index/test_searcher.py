"""SegmentSearcher: what one search over all segments finds, also beside writes and merges."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, wraps
from typing import Any

import numpy as np
import pytest

from service.filters import AllOf, AnyOf, AttributeRange, Bounds, Filter, Has, Not, TimeRange, order_key
from service.index.growing import GrowingSegment
from service.index.packed_strings import HashedStrings
from service.index.probing import RECALL
from service.index.segment import Segment
from service.index.segmented import SegmentedIndex
from service.index.seqlock import MAX_OPTIMISTIC_READS, SeqLock
from service.index.tags import Columns, TagDictionary
from service.records import StoredNote
from tests.service.conftest import stored_note
from tests.service.index.reference import (
    ANY,
    DIMENSION,
    TOLERANCE,
    direction,
    do_jobs,
    row,
    rows,
    unit_vector,
    vector_of,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def threads_take_turns_often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the interpreter switch threads at nearly every instruction, and two threads share each filtered search."""
    monkeypatch.setattr("service.index.searcher.MIN_SHARED_ROWS", 0)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def beside(search: Callable[[int], None], write: Callable[[int], None], searches: int, turns: int) -> None:
    """Run `search(thread)` in two threads while this one runs `write(turn)`, at least `searches` and `turns` times."""
    stop, searched = threading.Event(), [0, 0]

    def search_on(thread: int) -> None:
        while not stop.is_set():
            search(thread)
            searched[thread] += 1

    threads = [threading.Thread(target=search_on, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    turn = 0
    try:
        while min(searched) < searches or turn < turns:
            assert all(thread.is_alive() for thread in threads), "a search failed"
            write(turn)
            turn += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.usefixtures("threads_take_turns_often")
@pytest.mark.parametrize(
    "where",
    [
        ANY,
        Filter(hashtags=("stays",)),
        Filter(hashtags=("even", "odd")),
        Filter(exclude=frozenset({"stay7", "go7"})),
    ],
)
def test_search_beside_writes_misses_nothing_that_stays(where: Filter) -> None:
    """Notes that stay or are replaced are always found; a removed one is not found after its removal."""
    index = SegmentedIndex(DIMENSION, growing_rows=16)
    stay = [row(f"stay{n}", n, hashtags=("stays", "even")) for n in range(60)]
    index.upsert(stay)
    expected = {note.note.id for note in stay} - where.exclude
    gone, faults = set[str](), list[str]()

    def search(thread: int) -> None:
        before = set(gone)
        hits, of_hits = index.search_rows(direction(thread), 10_000, where, 0.0)
        found, scores = [hit.id for hit in hits], [hit.score for hit in hits]
        if not np.allclose(of_hits.vectors @ direction(thread), scores, atol=TOLERANCE):
            faults.append("a row has another vector than the one that was found")
        faults.extend(f"{hit} should be excluded" for hit in where.exclude.intersection(found))
        if index.vector("stay7") is None:
            faults.append("a vector is missing")
        if len(found) != len(set(found)):
            faults.append("a note is found twice")
        faults.extend(f"{missing} is missing" for missing in expected.difference(found))
        faults.extend(f"{back} is back" for back in before.intersection(found))

    def write(turn: int) -> None:
        index.upsert([row(f"stay{turn % 60}", turn, hashtags=("stays", "even"))])
        index.upsert([row(f"stay{turn % 60}", turn, hashtags=("stays", "odd"))])  # replaced in its row
        index.upsert([row(f"go{turn}", turn, hashtags=("goes",))])
        index.remove([f"go{turn - 5}"])
        if turn >= 5:
            gone.add(f"go{turn - 5}")
        do_jobs(index)

    beside(search, write, searches=40, turns=300)
    assert not faults, faults[:5]


def after_each_call(patch: pytest.MonkeyPatch, owner: type, name: str, then: Callable[[], None]) -> None:
    """Call `then` after each call of a method."""
    method = getattr(owner, name)

    @wraps(method)
    def called(*arguments: Any) -> Any:
        result = method(*arguments)
        then()
        return result

    patch.setattr(owner, name, called)


TEN_SEATS = AttributeRange("seats", Bounds(gte=order_key("10")))
EVEN_OR_ODD = AnyOf((Has("hashtag", frozenset({"even"})), Has("hashtag", frozenset({"odd"}))))
EARLY, LATE = TimeRange("created", Bounds(lte=5.0)), TimeRange("created", Bounds(gt=5.0))
EARLY_EVEN_OR_LATE_ODD = AnyOf(tuple(map(AllOf, zip((EARLY, LATE), EVEN_OR_ODD.parts, strict=True))))


@pytest.mark.parametrize(
    ("owner", "step", "where", "seed"),
    [
        (GrowingSegment, "_rows_tagged", Filter(hashtags=("even", "odd")), 1),
        (GrowingSegment, "_rows_tagged_any", Filter(clause=EVEN_OR_ODD), 1),
        (Columns, "within", Filter(clause=AnyOf((EARLY, LATE))), 1),
        (TagDictionary, "compile", Filter(clause=TEN_SEATS), 1),
        (TagDictionary, "compile", Filter(clause=TEN_SEATS), 2),
        (Columns, "copy", Filter(clause=EARLY_EVEN_OR_LATE_ODD), 1),
        (SeqLock, "read", Filter(hashtags=("even", "odd")), 1),
    ],
    ids=["hashtags", "groups", "times", "range", "range-new-row", "copies", "forgotten"],
)
def test_filtered_search_finds_note_that_passes_before_and_after_a_change_between_its_steps(
    monkeypatch: pytest.MonkeyPatch, owner: type, step: str, where: Filter, seed: int
) -> None:
    """The change comes after the first call of `step` in a search. The note keeps its row, unless `seed` gives it
    another vector; its seats are new to the index, its hashtag is not. After `read`, its old tags are forgotten. Where
    the note keeps its row, `passing` must find it as well."""

    def version(hashtag: str, seats: int = 10, seed: int = 1) -> StoredNote:
        created_at = 9.0 if hashtag == "odd" else 1.0
        return row("changes", seed, hashtags=(hashtag,), created_at=created_at, attributes={"seats": seats})

    def found_by(ask: Callable[[SegmentedIndex], list[str]], before: str, after: str) -> list[str]:
        index, changes = SegmentedIndex(DIMENSION, attributes=("seats",)), [version(after, 11, seed)]
        index.upsert([version(after), version(before)])

        def change() -> None:
            if changes:
                index.upsert([changes.pop()])
                if step == "read":
                    index.snapshot_parts()  # forgets tags

        with monkeypatch.context() as patch:
            after_each_call(patch, owner, step, change)
            found = ask(index)
        assert not changes, "the search did not do the step"
        return found

    def searched(index: SegmentedIndex) -> list[str]:
        return [hit.id for hit in index.search(direction(0), 5, where, 0.0)]

    def passing(index: SegmentedIndex) -> list[str]:
        return index.passing(["changes"], where, 0.0)

    for ask in (searched, passing) if seed == 1 else (searched,):
        # Change the note in both directions, since the test does not know in which order a search reads the two tags.
        found = found_by(ask, "even", "odd"), found_by(ask, "odd", "even")
        assert found == (["changes"], ["changes"]), ask.__name__


ALWAYS_PASSING = [
    Filter(hashtags=("even", "odd")),
    Filter(hashtags=("even", "odd"), exact=True),
    Filter(clause=TEN_SEATS),
    Filter(clause=AnyOf((EARLY, LATE))),
    Filter(clause=EARLY_EVEN_OR_LATE_ODD),
    Filter(clause=Not(AnyOf((Has("category", frozenset({"None"})), Not(TEN_SEATS))))),
    Filter(clause=EVEN_OR_ODD),
]


@pytest.mark.parametrize("where", ALWAYS_PASSING)
def test_filtered_search_beside_changes_at_any_of_its_steps_misses_nothing(
    monkeypatch: pytest.MonkeyPatch, where: Filter
) -> None:
    """Notes that a filter accepts before and after each change are found, whichever steps of a search changes fall
    between: the steps are drawn, and the same in each run."""
    chance, index = random.Random(0), SegmentedIndex(DIMENSION, growing_rows=8, attributes=("seats",))
    changes_left = 0

    def changed(number: int) -> StoredNote:
        """Return a version of a note, mostly with its old vector, and often with seats that no note has had."""
        hashtag = chance.choice(["even", "odd"])
        return row(
            f"stay{number}",
            number + 100 * chance.randrange(12) // 11,
            hashtags=(hashtag,),
            created_at=1.0 if hashtag == "even" else 9.0,
            attributes={"seats": chance.randrange(10, 1000)},
        )

    def change_now_and_then() -> None:
        nonlocal changes_left
        if changes_left and chance.random() < 0.3:
            changes_left -= 1
            index.upsert([changed(chance.randrange(12))])
            if chance.random() < 0.1:
                do_jobs(index)
            if chance.random() < 0.1:
                index.snapshot_parts()  # forgets tags

    index.upsert([changed(number) for number in range(12)])
    for owner, step in (
        (TagDictionary, "compile"),
        (Segment, "unexpired_rows"),
        (GrowingSegment, "frozen"),
        (Columns, "copy"),
        (SeqLock, "read"),
        (GrowingSegment, "_rows_tagged"),
        (GrowingSegment, "_rows_tagged_any"),
        (Columns, "within"),
        (Segment, "filter_rows"),
        (Segment, "search"),
    ):
        after_each_call(monkeypatch, owner, step, change_now_and_then)
    expected = {f"stay{number}" for number in range(12)}
    for search in range(300):
        # One more change might come during a read that makes writers wait: this thread would wait for itself.
        changes_left = MAX_OPTIMISTIC_READS
        found = [hit.id for hit in index.search(direction(search), 20, where, 0.0)]
        assert (set(found), len(found)) == (expected, len(expected)), f"search {search}"
        changes_left = MAX_OPTIMISTIC_READS
        assert index.count(where, 0.0) == len(expected), f"count {search}"


@pytest.mark.usefixtures("threads_take_turns_often")
def test_search_note_being_replaced_is_nearest_to_itself() -> None:
    """The joint search of all segments asks for so many rows that tombstones cannot fill its answer."""
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
    """Return the recall@k of searches for 40 of the notes, each without its `excluded` nearest notes."""
    matrix = np.stack([vector_of(note) for note in notes])
    found, queries = 0, notes[:: len(notes) // 40][:40]
    for query in map(vector_of, queries):
        nearest = [notes[at].note.id for at in np.argsort(-(matrix @ query))[: excluded + k]]
        hits = index.search(query, k, Filter(exclude=frozenset(nearest[:excluded])), 0.0)
        found += len({hit.id for hit in hits}.intersection(nearest[excluded:]))
    return found / (k * len(queries))


@cache
def spread(n: int, topic: int = 0) -> StoredNote:
    """Return note s<n> in no cluster. Notes of a topic differ in 4 of 16 dimensions: few lists have all neighbours."""
    vector = np.zeros(16)
    vector[4 * topic : 4 * topic + 4] = np.random.default_rng(n).normal(size=4)
    return stored_note(f"s{n}", vector=unit_vector(vector))


@pytest.fixture
def lists_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.index.building.IVF_ROWS", 1000)


@pytest.mark.usefixtures("lists_of_few_rows")
@pytest.mark.parametrize("excluded", [1, 30, 300, 900])
def test_search_with_exclusions_keeps_recall(excluded: int) -> None:
    notes = [spread(n) for n in range(8001)]
    index = SegmentedIndex(16, growing_rows=2000)
    index.upsert(notes)
    do_jobs(index)
    assert recall_of(index, notes, 10, excluded) >= RECALL - 0.015


@pytest.mark.usefixtures("lists_of_few_rows")
@pytest.mark.parametrize("k", [10, 50, 200])
def test_search_neighbours_in_smallest_segment_keeps_recall(k: int) -> None:
    """All neighbours are in the smallest segment, where the joint search scans fewer lists than in the others."""
    old, new = [spread(n) for n in range(16_000)], [spread(20_000 + n, topic=1) for n in range(1601)]
    index = SegmentedIndex(16, growing_rows=400)
    for begin in range(0, 16_000, 400):
        index.upsert(old[begin : begin + 400])
        do_jobs(index)
    index.upsert(new)
    do_jobs(index)
    assert sum(segment.has_lists for segment in index.all_segments) > 1
    assert recall_of(index, new, k) >= RECALL - 0.015


@pytest.mark.usefixtures("lists_of_few_rows")
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("tags", [(), ("half",)])
def test_search_cuts_equal_scores_by_id(tags: tuple[str, ...], exact: bool) -> None:
    """Copies of one note are in all segments, in an order that is not that of their ids."""
    twins = [row(f"t{n:02}", hashtags=tags if n % 2 else ()) for n in range(60)]
    others = [row(f"n{n}", n, hashtags=tags) for n in range(1, 3001)]
    order = np.random.default_rng(0).permutation(len(twins) + len(others)).tolist()
    index = SegmentedIndex(DIMENSION, growing_rows=300)
    for begin in range(0, len(order), 100):
        index.upsert([(twins + others)[place] for place in order[begin : begin + 100]])
        do_jobs(index)
    expected = [twin.note.id for twin in twins if set(tags) <= set(twin.note.hashtags)]
    for k in (1, 2, 7, 30):
        found = index.search(direction(0), k, Filter(hashtags=tags, exact=exact), 0.0)
        assert [hit.id for hit in found] == expected[:k]


@pytest.mark.usefixtures("lists_of_few_rows")
def test_search_for_candidates_finds_the_nearest_as_surely_as_a_short_one() -> None:
    notes = [spread(n) for n in range(8001)]
    index = SegmentedIndex(16, growing_rows=2000)
    index.upsert(notes)
    do_jobs(index)
    for note in notes[::400]:
        short, long = (index.search(vector_of(note), k, ANY, 0.0, recall_k=10) for k in (10, 80))
        assert [hit.id for hit in long[:10]] == [hit.id for hit in short]
        assert len(long) == 80


def test_excluded_ids_are_hashed_once_for_all_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing 10,000 ids for each segment took most of a search's time (docs/log/vector-index.md)."""
    index, hashed = SegmentedIndex(DIMENSION, growing_rows=4), list[int]()
    index.upsert(rows(20))
    assert index.segments >= 5
    hash_all = HashedStrings.of

    def count_and_hash(texts: Iterable[str]) -> HashedStrings:
        hashed.append(1)
        return hash_all(texts)

    monkeypatch.setattr(HashedStrings, "of", count_and_hash)
    excluded = frozenset(f"n{number}" for number in range(1, 20))
    assert [hit.id for hit in index.search(direction(7), 1, Filter(exclude=excluded, exact=True), 0.0)] == ["n0"]
    assert len(hashed) == 1


@pytest.mark.usefixtures("lists_of_few_rows")
@pytest.mark.parametrize("where", [ANY, Filter(author="a1"), Filter(exclude=frozenset({"s7", "s8"}))])
def test_rows_looked_up_one_by_one_and_by_segment_are_the_same(monkeypatch: pytest.MonkeyPatch, where: Filter) -> None:
    notes = [spread(n) for n in range(4000)]
    index = SegmentedIndex(16, growing_rows=300)
    written = [replace(note, note=replace(note.note, author=f"a{n % 3}")) for n, note in enumerate(notes)]
    for begin in range(0, len(notes), 300):
        index.upsert(written[begin : begin + 300])
        do_jobs(index)
    index.upsert(notes[:20])
    index.remove([f"s{n}" for n in range(0, 4000, 9)])
    found = []
    for bound in (0, 1000):
        monkeypatch.setattr("service.index.searcher.MAX_CHECKED_ROW_BY_ROW", bound)
        found.append([index.search(vector_of(note), k, where, 0.0) for note in notes[::100] for k in (1, 10, 100)])
    assert found[0] == found[1]


def test_search_for_more_than_a_card_selects_is_made_by_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=16)
    index.upsert(rows(200))
    do_jobs(index)
    expected = index.search(direction(3), 20, ANY, 0.0)
    monkeypatch.setattr("service.index.searcher.MAX_GPU_K", 10)
    monkeypatch.setattr(index._searcher, "_on_gpu", True)
    monkeypatch.setattr(
        "service.index.joint_search.JointIndex.search", None
    )  # a call fails, as it does in FAISS on a card
    assert index.search(direction(3), 20, ANY, 0.0) == expected
