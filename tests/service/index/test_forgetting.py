"""Tests that an index forgets removed notes: names of authors and hashtags, and ids."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from model.hashtags.lexical_index import InvertedLexicalIndex
from service.filters import Filter
from service.index.backend import Arrays, Snapshottable
from service.index.merging import MergePlanner
from service.index.segmented import CODES, SegmentedIndex
from service.index.texts import LiveTexts
from service.records import StoredNote
from tests.service.conftest import letters
from tests.service.index.reference import DIMENSION, direction, do_jobs, found_ids, hashtags_of, row

NOW = 0.0


def authored(first: int, count: int) -> list[StoredNote]:
    """Notes of one author and one hashtag each."""
    return [
        row(f"note-{n:05}", n, author=f"author-{n:05}", hashtags=(f"tag-{n:05}",), category="Food")
        for n in range(first, first + count)
    ]


def saved(index: SegmentedIndex) -> dict[str, Arrays]:
    return {part.name: part.make() for part in index.snapshot_parts()}


def content(state: Snapshottable) -> bytes:
    """Bytes of all arrays of a snapshot."""
    arrays = [array for part in state.snapshot_parts() for array in part.make().values()]
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


def tag_count(index: SegmentedIndex) -> int:
    return len(saved(index)[CODES]["numbers"])


def test_tags_of_ten_thousand_authors_who_left_are_forgotten() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=256)
    staying = authored(0, 20)
    index.upsert(staying)
    for first in range(1000, 11_000, 1000):
        passing = authored(first, 1000)
        index.upsert(passing)
        do_jobs(index)
        assert tag_count(index) == 2 * (20 + 1000) + 1
        index.remove([stored.note.id for stored in passing])
        do_jobs(index)
        assert tag_count(index) == 2 * 20 + 1
        for n in (0, 19):
            assert found_ids(index, Filter(author=f"author-{n:05}", hashtags=(f"tag-{n:05}",))) == {f"note-{n:05}"}
        assert found_ids(index, Filter(author=f"author-{first:05}")) == set()
    index.upsert(authored(1000, 1))
    assert found_ids(index, Filter(author="author-01000")) == {"note-01000"}
    assert len(found_ids(index, Filter(category="Food"))) == 21


def test_restored_index_knows_the_tags_that_were_kept() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=16)
    index.upsert(authored(0, 200))
    do_jobs(index)
    index.remove([f"note-{n:05}" for n in range(0, 200, 2)])
    parts = saved(index)
    restored = SegmentedIndex(DIMENSION, growing_rows=16)
    restored.restore(parts.__getitem__)
    restored.upsert(authored(300, 1))
    for n in range(200):
        expected = {f"note-{n:05}"} if n % 2 else set()
        assert found_ids(restored, Filter(author=f"author-{n:05}")) == expected
    assert found_ids(restored, Filter(author="author-00300")) == {"note-00300"}


def test_dropped_tombstones_leave_no_byte_of_removed_notes() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=64)
    index.upsert(authored(0, 1000))
    do_jobs(index)
    removed = ["note-00017", "note-00500", "note-00999"]  # in a sealed segment, in another, and in the growing one
    index.remove(removed)
    assert b"note-00017" in content(index)
    index.drop_tombstones()
    assert index.dropping
    do_jobs(index)
    assert not index.dropping
    assert index.tombstones == 0
    left = content(index)
    for n in ("note-00017", "note-00500", "note-00999"):
        assert n.encode() not in left
        assert n.replace("note", "author").encode() not in left
    assert len(index) == 997
    query = direction(3)
    hits = index.search(query, 10, Filter(), NOW)
    exact = index.search(query, 10, Filter(exact=True), NOW)
    assert [hit.id for hit in hits] == [hit.id for hit in exact]


def test_dropping_ends_though_notes_are_removed_all_the_time() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=16)
    index.upsert(authored(0, 200))
    do_jobs(index)
    index.remove(["note-00003"])
    index.drop_tombstones()
    jobs = 0
    while job := index.plan():
        job.run()
        index.remove([f"note-{100 + jobs:05}"])
        index.finish(job)
        jobs += 1
        assert jobs < 20
    assert not index.dropping


def drop_beside_a_merge(part: SegmentedIndex | LiveTexts, note_id: str) -> None:
    """Remove a note and drop tombstones while a merge of its segment runs; then do the jobs that are left."""
    job: Any = part.plan()
    assert job is not None
    part.remove([note_id])
    part.drop_tombstones()
    job.run()
    part.finish(job)
    assert part.dropping
    do_jobs(part)
    assert not part.dropping


def test_merge_that_was_planned_before_the_drop_leaves_no_byte_of_removed_notes() -> None:
    index = SegmentedIndex(DIMENSION, growing_rows=16)
    index.upsert(authored(0, 200))
    drop_beside_a_merge(index, "note-00003")
    assert (index.tombstones, b"note-00003" in content(index)) == (0, False)


def test_merge_of_texts_that_was_planned_before_the_drop_leaves_nothing_of_removed_ones() -> None:
    texts = LiveTexts(letters(), InvertedLexicalIndex(), growing_rows=4)
    texts.upsert([row(f"n{n}", n, title=f"word{n}", hashtags=(f"tag {n}",)) for n in range(10, 28)])
    drop_beside_a_merge(texts, "n11")
    assert not any(text in content(texts) for text in (b"n11", b"tag 11"))


def test_dropped_tombstones_leave_nothing_of_removed_texts() -> None:
    texts = LiveTexts(letters(), InvertedLexicalIndex(), growing_rows=4)
    texts.upsert([row(f"n{n}", n, title=f"word{n}", hashtags=(f"tag {n}",)) for n in range(10, 28)])
    do_jobs(texts)
    texts.upsert([row("n11", 1, title="other", hashtags=("other",))])
    texts.remove(["n13", "n27"])  # in a sealed segment, and in the growing one, where tombstones lose their ids
    left = (b"n13", b"n27", b"tag 11", b"tag 13", b"tag 27")
    assert [text in content(texts) for text in left] == [True, False, True, True, True]
    texts.drop_tombstones()
    assert texts.dropping
    do_jobs(texts)
    assert not texts.dropping
    assert not any(text in content(texts) for text in left)
    assert hashtags_of(texts, ["n11", "n13", "n14"]) == {"n11": ("other",), "n14": ("tag 14",)}
    assert [hit[0] for hit in texts.by_words(row("x", title="word14").note, 1, NOW)] == ["n14"]
    assert texts.by_words(row("x", title="word13").note, 1, NOW) == []


def test_planner_never_says_that_a_drop_is_over_while_a_merge_that_ran_is_recorded() -> None:
    planner = MergePlanner[Any]()

    class Merged:
        living = 1
        seen: ClassVar[list[bool]] = []

        def __len__(self) -> int:
            return 2

        @property
        def dead(self) -> int:
            self.seen.append(planner.dropping)  # a purge reads it in another thread
            return 1

    source = SimpleNamespace(dead=1)
    planner.drop_tombstones([source])
    merged = Merged()
    planner.finish([source], [merged])
    assert merged.seen == [True]
    assert planner.dropping
