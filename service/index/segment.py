"""Segment: some rows of the index, and how they are searched. Any number of threads may search while one writes.

A row that is replaced or removed becomes a tombstone: its entry in `alive` becomes False, and nothing else changes. So
a search that runs meanwhile sees the row or does not, and never half of it. `is_visible` (for one row) and
`filter_rows` (for all) decide which rows a search may find.

The fields of a row, which filters test, change in place, and only in the segment that grows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from service.filters import AllOf, AnyOf, Clause, Not, TagClause, TimeRange
from service.index.bitmaps import Bits, Mask, RowNumbers, count_of, has, packed_bits, rows_of, without_rows
from service.index.gpu import GpuIndex
from service.index.native import FaissIndex, RankedRows
from service.index.packed_strings import HashedStrings, PackedStrings
from service.index.tags import Columns, CompiledFilter, TagCodes, TagPairs
from service.records import PositionKey, Vector, Vectors

MAX_RANKED_EXCLUSIONS = 64
"""Maximum number of excluded rows of a segment that a search finds and then drops. More are removed from the bitmap
before the search."""
MAX_LOOKED_UP = 8
"""Bound on the ids that are looked up one by one; more are faster together."""
NO_ROWS: RankedRows = np.zeros(0, np.float32), np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Codes:
    """A FAISS index of codes, whose scores are approximate, and how many candidates to take by them, so that the
    neighbours are among these. `saved_rows`: how many rows could be compared in the time that this saves."""

    index: FaissIndex
    candidates: float
    saved_rows: float


class Segment(ABC):
    """Rows numbered from 0 on. `alive` (rows,) is False for tombstones, which `dead` counts."""

    grows = False
    """Whether rows may be added while the segment is searched."""
    has_lists = False
    """Whether `faiss_index(k)` searches only some inverted lists, as many as `k` neighbours need."""

    def __init__(self, columns: Columns, alive: Mask) -> None:
        self.columns = columns
        self.alive = alive
        self.dead = int(len(alive) - np.count_nonzero(alive))
        self._first_expiry = float(columns.expires.min(initial=np.inf))
        """No living row expires before this time."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows, tombstones included."""

    @abstractmethod
    def row_of(self, note_id: str) -> int | None:
        """Return the living row of a note."""

    @abstractmethod
    def id(self, row: int) -> str:
        """Return the id of a row's note."""

    @abstractmethod
    def ids_at(self, rows: RowNumbers) -> list[str]:
        """Return the ids of the notes of some rows, in their order."""

    @abstractmethod
    def packed_ids(self, rows: RowNumbers) -> PackedStrings:
        """Return the ids of some rows, in their order."""

    @abstractmethod
    def vectors(self, rows: RowNumbers) -> Vectors:
        """Return the vectors of some rows, shape (len(rows), D)."""

    @abstractmethod
    def tag_pairs(self) -> TagPairs:
        """Return every tag code with every row that has it."""

    @abstractmethod
    def living_tags(self) -> TagCodes:
        """Return the codes of all tags that any living row has; some may come twice."""

    @abstractmethod
    def faiss_index(self, k: int) -> FaissIndex | GpuIndex:
        """Return the index in which the `k` nearest of all rows are searched, tombstones included."""

    def codes(self, k: int, mean_k: float) -> Codes | None:
        """Return codes of the rows, by which the `k` nearest may be found faster than in `faiss_index(k)`, with the
        number of candidates for `mean_k` neighbours; None where the segment has no codes or they save no time."""
        return None

    @abstractmethod
    def _rows_tagged(self, tag: int, rows: int) -> Bits:
        """Return which of the first `rows` rows have a tag. The bitmap may be shared: do not write to it."""

    @abstractmethod
    def _rows_tagged_any(self, tags: Sequence[int], rows: int) -> Bits:
        """Return which of the first `rows` rows have any of some tags. The bitmap may be shared: do not write to it."""

    @abstractmethod
    def _search_rows(self, vector: Vector, k: int, rows: Bits | None, count: int, exact: bool) -> RankedRows:
        """Search the `k` nearest among the `count` rows of a bitmap (None: all living rows); `count` is `k` or more.
        `exact`: compare all of them."""

    @abstractmethod
    def _copy_alive(self) -> tuple[Bits, int]:
        """Return a copy of the living rows at this moment, and the number of rows that it covers."""

    @abstractmethod
    def rows_of_ids(self, note_ids: HashedStrings) -> dict[str, int]:
        """Return the living row of each of the notes that has one, by the note's id."""

    def ids(self) -> list[str]:
        """Return the ids of all living rows."""
        alive, _ = self._copy_alive()
        return [self.id(row) for row in rows_of(alive).tolist()]

    @property
    def living(self) -> int:
        """Number of rows that are not tombstones."""
        # Read first: a note that is replaced meanwhile is then counted twice rather than not at all.
        dead = self.dead
        return len(self) - dead

    def is_visible(self, row: int, now: float) -> bool:
        """Return whether searches at `now` may return the row."""
        return bool(self.alive[row]) and (now < self._first_expiry or bool(self.columns.expires[row] > now))

    def are_visible(self, rows: RowNumbers, now: float) -> Mask:
        """Return which of some rows searches at `now` may return."""
        alive = self.alive[rows]
        return alive if now < self._first_expiry else alive & (self.columns.expires[rows] > now)

    def filter_rows(self, compiled: CompiledFilter, now: float) -> tuple[Bits | None, int]:
        """Return the living rows that pass a filter and have not expired at `now`, and their number. The ids that it
        excludes are still among them: `search` leaves them out. None stands for all living rows of a segment that does
        not grow."""
        if not compiled.narrows and now < self._first_expiry and not self.grows:
            return None, self.living
        return self.passing_rows(compiled, *self.unexpired_rows(now))

    def unexpired_rows(self, now: float) -> tuple[Bits, int]:
        """Return the living rows that have not expired at `now`, as a new bitmap, and the number of rows that it
        covers."""
        some_expired = now >= self._first_expiry  # read first: it rises once the expired rows are tombstones
        unexpired, rows = self._copy_alive()
        if some_expired:
            unexpired &= packed_bits(self.columns.expires[:rows] > now)
        return unexpired, rows

    def passing_rows(self, compiled: CompiledFilter, selected: Bits, rows: int) -> tuple[Bits, int]:
        """Return those of the rows `selected` that pass a filter, and their number. The bitmap covers `rows` rows; it
        is written to. The ids that the filter excludes are still among them."""
        for mask in self.columns[:rows].matching(compiled):
            selected &= packed_bits(mask)
        if compiled.any_tags:
            selected &= reduce(np.bitwise_or, [self._rows_tagged(tag, rows) for tag in compiled.any_tags])
        for tag in compiled.all_tags:
            selected &= self._rows_tagged(tag, rows)
        if compiled.clause is not None:
            selected &= self._passing(compiled.clause, compiled.clause_tags, rows)
        return selected, count_of(selected)

    def _passing(self, clause: Clause, tags: Mapping[TagClause, Sequence[int]], rows: int) -> Bits:
        """Return which of the first `rows` rows pass a clause, given the tags of its conditions. Bits beyond `rows`
        have no meaning. The bitmap may be shared: do not write to it."""
        if isinstance(clause, Not):
            return ~self._passing(clause.part, tags, rows)
        if isinstance(clause, TimeRange):
            return packed_bits(self.columns[:rows].within(clause))
        if isinstance(clause, AllOf | AnyOf):
            combine, none = (np.bitwise_and, 0xFF) if isinstance(clause, AllOf) else (np.bitwise_or, 0)
            bits = np.full(-(-rows // 8), none, np.uint8)
            return reduce(combine, (self._passing(part, tags, rows) for part in clause.parts), bits)
        return self._rows_tagged_any(tags[clause], rows)

    def search(self, vector: Vector, k: int, compiled: CompiledFilter, rows: Bits | None, count: int) -> RankedRows:
        """Return scores and rows of the `k` nearest, best first, among the `count` rows that `filter_rows` returned,
        without the excluded ids; fewer than `k` where there are fewer."""
        excluded = self._excluded_rows(compiled, rows)
        if len(excluded) > MAX_RANKED_EXCLUSIONS:
            rows = without_rows(self._copy_alive()[0] if rows is None else rows, np.array(excluded))
            count = count_of(rows)
            excluded = []
        k = min(k, count - len(excluded))
        if k < 1:
            return NO_ROWS
        scores, found_rows = self._search_rows(vector, k + len(excluded), rows, count, compiled.exact)
        for row in excluded:
            kept = found_rows != row
            scores, found_rows = scores[kept], found_rows[kept]
        return scores[:k], found_rows[:k]

    def _excluded_rows(self, compiled: CompiledFilter, rows: Bits | None) -> list[int]:
        """Return the living rows of the excluded notes, as far as `rows` has them: a row that was added after the
        filter was applied is not in `rows`."""
        if len(compiled.exclude) > MAX_LOOKED_UP:
            own = list(self.rows_of_ids(compiled.hashed_exclude).values())
        else:
            own = [row for note_id in compiled.exclude if (row := self.row_of(note_id)) is not None]
        return own if rows is None else [row for row in own if has(rows, row)]

    def written(
        self, compiled: CompiledFilter, after: PositionKey, until: PositionKey, count: int, now: float
    ) -> dict[str, PositionKey]:
        """Return, by id, the positions of the first `count` rows written after `after` and up to `until`, among those
        that `filter_rows` returns."""
        selected, _ = self.filter_rows(compiled, now)
        bits = self._copy_alive()[0] if selected is None else selected
        rows = rows_of(bits & packed_bits(self.columns.written_between(after, until))[: len(bits)])
        ms = self.columns.written_ms[rows]
        if len(rows) > count:  # sorting a million rows would take longer than all else
            rows = rows[ms <= np.partition(ms, count - 1)[count - 1]]
        columns = self.columns[rows]
        first = np.lexsort((columns.written_sequence, columns.written_ms))[:count]
        positions = zip(columns.written_ms[first].tolist(), columns.written_sequence[first].tolist(), strict=True)
        return dict(zip(map(self.id, rows[first].tolist()), positions, strict=True))

    def mark_deleted(self, row: int) -> None:
        """Make a living row a tombstone."""
        self.alive[row] = False
        self.dead += 1

    def expire(self, now: float) -> list[str]:
        """Make tombstones of the living rows that have expired at `now`, and return their ids."""
        if now < self._first_expiry:
            return []
        alive, expires = self.alive[: len(self)], self.columns.expires[: len(self)]
        expired = np.flatnonzero(alive & (expires <= now)).tolist()
        ids = [self.id(row) for row in expired]
        for row in expired:
            self.mark_deleted(row)
        self._first_expiry = float(expires[alive].min(initial=np.inf))
        return ids
