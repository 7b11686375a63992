"""SegmentSearcher: the segments of an index as they are at one moment, and a search over all of them.

One FAISS call searches all segments (joint_search.py). It ignores tombstones and filters: rows that may not be found
are dropped from its result. A call for each segment would cost more, in Python around it, than the search itself. Only
where too few rows are left are the segments searched one by one, each with a bitmap (docs/decisions/0011-segments.md).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, sqrt
from typing import Protocol

import numpy as np

from service.filters import Filter
from service.index.bitmaps import Bits, Mask, RowNumbers, has, mask_of
from service.index.gpu import MAX_GPU_K, Gpu
from service.index.growing import GrowingSegment
from service.index.joint_search import JointIndex
from service.index.native import RankedRows
from service.index.packed_strings import HashedStrings
from service.index.probing import MEASURED_K
from service.index.segment import Segment
from service.index.seqlock import SeqLock
from service.index.tags import CompiledFilter, TagDictionary
from service.index.threads import map_in_two_threads
from service.records import IndexRows, Vector

DEVIATIONS = 3.0
"""Margin that is added to an expected count, in standard deviations."""
CALL_SIZES = (10, 16, 20, 40, 80, 160, 320, 640, 1000)
"""Sizes of a FAISS call, in neighbours. An index over all segments is prepared for each. A search that needs more
neighbours goes segment by segment."""
FURTHER_NEIGHBOURS = (1, 64, 1024)
"""Neighbours to search for beyond `k`, tried in turn while all of them have the same score as the last one of the
answer. Of more notes with equal scores, an arbitrary choice is returned."""
MAX_CHECKED_ROW_BY_ROW = 32
"""Maximum number of neighbours of a call that are checked one by one; more are checked faster segment by segment."""
MIN_SHARED_ROWS = 4096
"""Minimum number of rows that pass a filter for two threads to search them: another thread takes 0.1 ms to begin."""
FilteredRows = tuple[Bits | None, int]
"""The rows of a segment that pass a filter and their number, as `Segment.filter_rows` returns them."""
RowHit = tuple[float, str, int]
"""A row that a search found: its score times -1, the id of its note, and its number among the rows of all segments. In
ascending order the best row comes first, and of equal scores the one with the smallest id."""


class SegmentSearcher:
    """Searches `segments`, the oldest first; the last one grows.

    `replaced` counts the notes that got a new row. The writer increments it between adding that row and making a
    tombstone of the old one. `rows_lock`: the lock for changes of rows; each change covers the rows of one note.
    """

    def __init__(
        self,
        segments: tuple[Segment, ...],
        dimension: int,
        tag_dictionary: TagDictionary,
        rows_lock: SeqLock,
        gpu: Gpu | None,
    ) -> None:
        self.segments = segments
        self.replaced = 0
        self._on_gpu = gpu is not None
        self._dimension = dimension
        self._tag_dictionary = tag_dictionary
        self._rows_lock = rows_lock
        self._first_rows = list(accumulate(map(len, segments[:-1]), initial=0))
        """Number of each segment's first row among the rows of all segments."""
        rows = max(1, sum(map(len, segments)))
        shares = [len(segment) / rows if segment.has_lists else 1.0 for segment in segments]
        self._expected_rows = [[max(MEASURED_K[0], expected(k, share)) for share in shares] for k in CALL_SIZES]
        """Number of neighbours that a segment is expected to have, by call size and segment; it determines how many
        lists are searched."""
        self._indexes = [
            JointIndex(segments, rows_of_each, size, gpu)
            for size, rows_of_each in zip(CALL_SIZES, self._expected_rows, strict=True)
        ]
        """Indexes over all segments, one for each call size."""

    def search(self, vector: Vector, k: int, where: Filter, now: float, recall_k: int | None = None) -> list[RowHit]:
        """Return the rows of the notes that VectorIndex.search returns: of a note that is replaced meanwhile, the new
        row, the old row, or both.

        Among equal scores FAISS drops arbitrary rows. So neighbours beyond `k` are searched for as well, and more of
        them while all of these have the same score as the last one of the answer.
        """
        row_hits: list[RowHit] = []
        for further in FURTHER_NEIGHBOURS if k > 0 else ():
            row_hits = self._search(vector, k + further, where, now, min(k, recall_k or k))
            if len(row_hits) < k + further or row_hits[-1][0] > row_hits[k - 1][0]:
                break
        return row_hits[:k]

    def _search(self, vector: Vector, k: int, where: Filter, now: float, recall_k: int) -> list[RowHit]:
        if where.narrows:
            compiled, filtered = self._filter_at_one_moment(where, now)
            if where.exact:
                return self._search_one_by_one(vector, k, compiled, filtered)
            matches = sum(count for _, count in filtered)
            visible = _InBitmaps([bits for bits, _ in filtered])
            row_hits, _ = self._search_in_one_call(vector, k, where.exclude, matches, visible, recall_k)
            return sorted(row_hits) if len(row_hits) == k else self._search_filtered(vector, k, compiled, filtered)
        compiled = self._tag_dictionary.compile(where)
        if where.exact:
            return self._search_one_by_one(vector, k, compiled, self._filter_in_order(compiled, now))
        replaced_before, living = self.replaced, sum(segment.living for segment in self.segments)
        row_hits, met_hidden = self._search_in_one_call(
            vector, k, where.exclude, living, _Alive(self.segments, now), recall_k
        )
        # A hidden row may be the old row of a note whose new row came too late for this call.
        may_miss_a_note = met_hidden and self.replaced != replaced_before
        if len(row_hits) == k and not may_miss_a_note:
            return sorted(row_hits)
        return self._search_one_by_one(vector, k, compiled, self._filter_in_order(compiled, now))

    def rows(self, row_hits: Sequence[RowHit]) -> IndexRows:
        """Return the rows that a search found, as they are now."""
        name_of = self._tag_dictionary.name_of  # read before the codes: it keeps the names of forgotten codes
        numbers = np.array([number for _, _, number in row_hits], np.int64)
        places = np.searchsorted(self._first_rows, numbers, "right") - 1
        vectors, codes = np.empty((len(row_hits), self._dimension), np.float32), np.empty((2, len(row_hits)), np.int32)
        for place in np.flatnonzero(np.bincount(places)).tolist():
            segment, at = self.segments[place], np.flatnonzero(places == place)
            rows = numbers[at] - self._first_rows[place]
            vectors[at] = segment.vectors(rows)
            codes[0, at], codes[1, at] = segment.columns.category[rows], segment.columns.author[rows]
        return IndexRows([note_id for _, note_id, _ in row_hits], vectors, codes[0], codes[1], name_of)

    def passing(self, ids: Sequence[str], where: Filter, now: float) -> list[str]:
        """Do what VectorIndex.passing does. A note that gets a new row meanwhile may be left out."""
        visible: Visible = _Alive(self.segments, now)
        if where.narrows:
            _, filtered = self._filter_at_one_moment(where, now)
            visible = _InBitmaps([bits for bits, _ in filtered])

        candidates = [note_id for note_id in ids if note_id not in where.exclude]
        passing = self._visible_ids(candidates, visible)
        return [note_id for note_id in candidates if note_id in passing]

    def count(self, where: Filter, now: float) -> int:
        """Do what VectorIndex.count does. An excluded note that gets a new row meanwhile may be counted."""
        _, filtered = self._filter_at_one_moment(where, now)
        excluded = self._visible_ids(list(where.exclude), _InBitmaps([bits for bits, _ in filtered]))
        return sum(count for _, count in filtered) - len(excluded)

    def _visible_ids(self, ids: Sequence[str], visible: Visible) -> set[str]:
        """Return those of `ids` whose row is visible."""
        hashed = HashedStrings.of(ids)
        return {
            note_id
            for place, segment in enumerate(self.segments)
            for note_id, row in segment.rows_of_ids(hashed).items()
            if visible.has(place, row)
        }

    def _filter_at_one_moment(self, where: Filter, now: float) -> tuple[CompiledFilter, list[FilteredRows]]:
        """Return the rows of each segment that pass a filter at one moment between two changes of notes: a note that
        passes before and after each change is among them exactly once.

        What a change alters is copied at that moment: which rows are alive, since a change may move a note to another
        segment, and the fields in the growing segment, since a change may replace one passing tag of a note by another.
        The copies are made again if a note changed meanwhile; changes after that do not matter. The filter is compiled
        after the copies, when each tag of the copied rows has a code. Where tags were forgotten in between, as after a
        merge or for a snapshot, both are done again.
        """
        *older, newest = self.segments
        assert isinstance(newest, GrowingSegment)
        while True:
            forgettings = self._tag_dictionary.forgettings
            living, frozen = self._rows_lock.read(
                lambda: ([segment.unexpired_rows(now) for segment in older], newest.frozen())
            )
            compiled = self._tag_dictionary.compile(where)
            if forgettings == self._tag_dictionary.forgettings:
                break
        filtered = [segment.passing_rows(compiled, *rows) for segment, rows in zip(older, living, strict=True)]
        return compiled, [*filtered, frozen.filter_rows(compiled, now)]

    def _filter_in_order(self, compiled: CompiledFilter, now: float) -> Iterable[FilteredRows]:
        """Yield the rows of each segment that pass a filter without conditions on fields. A segment is filtered only
        when the iteration reaches it."""
        return (segment.filter_rows(compiled, now) for segment in self.segments)

    def _search_one_by_one(
        self, vector: Vector, k: int, compiled: CompiledFilter, filtered: Iterable[FilteredRows]
    ) -> list[RowHit]:
        """Search the older segments first: a row that is replaced in one of them meanwhile is found in a later one."""
        pairs = zip(self.segments, filtered, strict=True)
        return self._best((segment.search(vector, k, compiled, *rows) for segment, rows in pairs), k)

    def _search_filtered(
        self, vector: Vector, k: int, compiled: CompiledFilter, filtered: Sequence[FilteredRows]
    ) -> list[RowHit]:
        """Search rows that were filtered before. The order of the segments does not matter then, so two threads may
        share them: fetching rows from all over memory is mostly waiting, which two cores do in parallel."""
        if sum(count for _, count in filtered) < MIN_SHARED_ROWS:
            return self._search_one_by_one(vector, k, compiled, filtered)
        pairs = list(zip(self.segments, filtered, strict=True))
        return self._best(map_in_two_threads(lambda pair: pair[0].search(vector, k, compiled, *pair[1]), pairs), k)

    def _best(self, ranked: Iterable[RankedRows], k: int) -> list[RowHit]:
        """Return the `k` best of the rows that were found in each segment."""
        row_hits: list[RowHit] = []
        for segment, first, (scores, rows) in zip(self.segments, self._first_rows, ranked, strict=True):
            for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
                row_hits.append((-score, segment.id(row), first + row))
        return sorted(row_hits)[:k]

    def _search_in_one_call(
        self, vector: Vector, k: int, exclude: frozenset[str], matches: int, visible: Visible, recall_k: int
    ) -> tuple[list[RowHit], bool]:
        """Return the best `k` of the visible rows, of which there are `matches`, and whether the call found rows that
        are not visible.

        The result has fewer rows where too few of the nearest rows are visible. It has none where fewer than `k` match,
        where more neighbours are needed than the largest of CALL_SIZES, and where a segment had more of the neighbours
        than expected, so that too few of its lists were searched.
        """
        rows = self._first_rows[-1] + len(self.segments[-1])
        size, recalled_size = (needed(n, min(1.0, matches / max(1, rows))) + len(exclude) for n in (k, recall_k))
        if matches < k or recalled_size > CALL_SIZES[-1] or (self._on_gpu and size > MAX_GPU_K):
            return [], False
        # The queries that a list was measured with are rows, which also find themselves: measured for k, it has k + 1.
        at = bisect_left(CALL_SIZES, recalled_size - 1)
        keep = self._keep_row_by_row if size <= MAX_CHECKED_ROW_BY_ROW else self._keep_by_segment
        ranked = self._indexes[at].search(vector, size)
        row_hits, rows_of_each, met_hidden = keep(ranked, k, exclude, visible, recalled_size)
        counts = zip(rows_of_each, self._expected_rows[at], strict=True)
        as_expected = all(count <= expected_count + 1 for count, expected_count in counts)
        return row_hits if as_expected else [], met_hidden

    def _keep_row_by_row(
        self, ranked: RankedRows, k: int, exclude: frozenset[str], visible: Visible, recalled_size: int
    ) -> tuple[list[RowHit], list[int], bool]:
        """Return the first `k` rows that are visible and not excluded; how many of the first `recalled_size` rows
        looked at are in each segment; and whether any row looked at is not visible."""
        row_hits: list[RowHit] = []
        met_hidden = False
        rows_of_each = [0] * len(self.segments)
        for number, (score, label) in enumerate(zip(ranked[0].tolist(), ranked[1].tolist(), strict=True)):
            if len(row_hits) == k:
                break
            place = bisect_right(self._first_rows, label) - 1
            rows_of_each[place] += number < recalled_size
            segment, row = self.segments[place], label - self._first_rows[place]
            if not visible.has(place, row):
                met_hidden = True
            elif (note_id := segment.id(row)) not in exclude:
                row_hits.append((-score, note_id, label))
        return row_hits, rows_of_each, met_hidden

    def _keep_by_segment(
        self, ranked: RankedRows, k: int, exclude: frozenset[str], visible: Visible, recalled_size: int
    ) -> tuple[list[RowHit], list[int], bool]:
        """Return what `_keep_row_by_row` does; the rows of each segment are looked up together."""
        scores, labels = ranked
        ids, is_visible = [""] * len(labels), np.empty(len(labels), np.bool_)
        places = np.searchsorted(self._first_rows, labels, "right") - 1
        for place in np.flatnonzero(np.bincount(places)).tolist():
            at = np.flatnonzero(places == place)
            rows = labels[at] - self._first_rows[place]
            is_visible[at] = visible.mask(place, rows)
            for number, note_id in zip(at.tolist(), self.segments[place].ids_at(rows), strict=True):
                ids[number] = note_id
        kept = [number for number in np.flatnonzero(is_visible).tolist() if ids[number] not in exclude][:k]
        looked_at = kept[-1] + 1 if len(kept) == k else len(labels)
        row_hits = list(
            zip((-scores[kept]).tolist(), [ids[number] for number in kept], labels[kept].tolist(), strict=True)
        )
        rows_of_each = np.bincount(places[: min(looked_at, recalled_size)], minlength=len(self.segments)).tolist()
        return row_hits, rows_of_each, not is_visible[:looked_at].all()


class Visible(Protocol):
    """The rows that a search may find. `place`: index of a segment among all segments."""

    def has(self, place: int, row: int) -> bool:
        """Return whether a row of a segment may be found."""

    def mask(self, place: int, rows: RowNumbers) -> Mask:
        """Return which of some rows of a segment may be found."""


@dataclass(frozen=True, slots=True)
class _Alive:
    """The rows that are no tombstones and have not expired at `now`."""

    segments: tuple[Segment, ...]
    now: float

    def has(self, place: int, row: int) -> bool:
        return self.segments[place].is_visible(row, self.now)

    def mask(self, place: int, rows: RowNumbers) -> Mask:
        return self.segments[place].are_visible(rows, self.now)


@dataclass(frozen=True, slots=True)
class _InBitmaps:
    """The rows of a bitmap for each segment, None for no row."""

    bitmaps: Sequence[Bits | None]

    def has(self, place: int, row: int) -> bool:
        bits = self.bitmaps[place]
        return bits is not None and has(bits, row)

    def mask(self, place: int, rows: RowNumbers) -> Mask:
        bits = self.bitmaps[place]
        return np.zeros(len(rows), np.bool_) if bits is None else mask_of(bits, rows)


def expected(k: int, share: float) -> int:
    """Return how many of `k` random rows lie in a part that has `share` of all rows (binomial distribution), with the
    margin of DEVIATIONS."""
    return min(k, ceil(k * share + DEVIATIONS * sqrt(k * share * (1 - share))))


def needed(k: int, share: float) -> int:
    """Return how many random rows to take so that `k` lie in a part that has `share` of all rows (negative binomial
    distribution), with the margin of DEVIATIONS; 0 where the part is empty."""
    return ceil((k + DEVIATIONS * sqrt(k * (1 - share))) / share) if share else 0
