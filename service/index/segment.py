"""Segment: some rows of the index, and how they are searched. Any number of threads may search while one writes.

A row that is replaced or removed becomes a tombstone: its bit is cleared, and nothing else changes. So a search that
runs meanwhile sees the row or does not, and never half of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import reduce
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from service.index.packed_strings import PackedStrings
from service.index.tags import Bits, Columns, CompiledFilter, Mask, RowNumbers, count_of, has, packed_bits, rows_of
from service.records import Vector

swig: Any = faiss  # its type stubs describe the C++ classes, not the Python ones around them
Vectors = npt.NDArray[np.float32]
NOTHING = np.zeros(0, np.float32), np.zeros(0, np.int64)
"""No scores of no rows."""


class Segment(ABC):
    """`alive` (rows,): which are no tombstones. Row numbers are of this segment alone."""

    grows = False
    """Whether rows may come while it is searched."""
    has_lists = False
    """Whether only a part of the rows is looked at, as large as `whole` is told."""

    def __init__(self, columns: Columns, alive: Mask) -> None:
        self.columns = columns
        self.alive = alive
        self.dead = int(len(alive) - np.count_nonzero(alive))
        self._first_expiry = float(columns.expires.min(initial=np.inf))
        """No living row expires before it."""

    @abstractmethod
    def __len__(self) -> int:
        """Rows, tombstones included."""

    @abstractmethod
    def row_of(self, note_id: str) -> int | None:
        """Of a living row."""

    @abstractmethod
    def id(self, row: int) -> str: ...

    @abstractmethod
    def packed_ids(self, rows: RowNumbers) -> PackedStrings: ...

    @abstractmethod
    def vectors(self, rows: RowNumbers) -> Vectors:
        """(len(rows), D)"""

    @abstractmethod
    def tag_pairs(self) -> tuple[npt.NDArray[np.int32], RowNumbers]:
        """Every code of a tag with a row that has it."""

    @abstractmethod
    def _tagged(self, tag: int, rows: int) -> Bits:
        """Which of the first `rows` rows have it. Not to be written to."""

    @abstractmethod
    def _nearest(
        self, vector: Vector, k: int, chosen: Bits | None, matches: int, exhaustive: bool
    ) -> tuple[Vectors, RowNumbers]:
        """Scores and rows of the `k` nearest among the `matches` rows that are `chosen` (None: all that are alive), of
        which there are as many, the best first. `exhaustive`: all are compared."""

    @abstractmethod
    def whole(self, k: int) -> Any:
        """The FAISS index in which the `k` nearest of all its rows are looked for, tombstones included."""

    @abstractmethod
    def _alive_now(self) -> tuple[Bits, int]:
        """Which rows are alive, of those that there are at this moment, and how many there are: a copy, which nobody
        changes."""

    def ids(self) -> list[str]:
        """Of the rows that are alive."""
        return [self.id(row) for row in rows_of(self._alive_now()[0]).tolist()]

    @property
    def living(self) -> int:
        dead = self.dead  # read first: rows come before the tombstones of what they replace
        return len(self) - dead

    def is_visible(self, row: int, now: float) -> bool:
        """Whether it may be found."""
        return bool(self.alive[row]) and (now < self._first_expiry or bool(self.columns.expires[row] > now))

    def find(
        self, vector: Vector, k: int, asked: CompiledFilter, chosen: Bits | None, matches: int
    ) -> tuple[Vectors, RowNumbers]:
        """Scores and rows of the `k` nearest, best first: of those that `filter_rows` gave, but for what is excluded."""
        rows_left_out = [row for row in map(self.row_of, asked.exclude) if row is not None]
        # A row that came after the others were chosen is not among them.
        left_out = [row for row in rows_left_out if chosen is None or has(chosen, row)]
        wanted = min(k, matches - len(left_out))
        if wanted < 1:
            return NOTHING
        scores, rows = self._nearest(vector, wanted + len(left_out), chosen, matches, asked.exact)
        for row in left_out:
            kept = rows != row
            scores, rows = scores[kept], rows[kept]
        return scores[:wanted], rows[:wanted]

    def mark_deleted(self, row: int) -> None:
        """Make a tombstone of a living row."""
        self.alive[row] = False
        self.dead += 1

    def expire(self, now: float) -> list[str]:
        """Bury the rows whose time is over; their ids."""
        if now < self._first_expiry:
            return []
        alive, expires = self.alive[: len(self)], self.columns.expires[: len(self)]
        gone = np.flatnonzero(alive & (expires <= now))
        ids = [self.id(row) for row in gone.tolist()]
        for row in gone.tolist():
            self.mark_deleted(row)
        self._first_expiry = float(expires[alive].min(initial=np.inf))
        return ids

    def filter_rows(self, asked: CompiledFilter, now: float) -> tuple[Bits | None, int]:
        """The rows that may be found, whatever is excluded, and how many they are. None: all that are alive, and none
        come."""
        expiring = now >= self._first_expiry
        if not asked.narrows and not expiring and not self.grows:
            return None, self.living
        bits, rows = self._alive_now()
        for mask in self.columns[:rows].accepted(asked):
            bits &= packed_bits(mask)
        if expiring:
            bits &= packed_bits(self.columns.expires[:rows] > now)
        if asked.tags:
            bits &= reduce(np.bitwise_or, [self._tagged(tag, rows) for tag in asked.tags])
        for tag in asked.all_tags:
            bits &= self._tagged(tag, rows)
        return bits, count_of(bits)


def exact(vectors: Vectors, vector: Vector, k: int, chosen: Bits | None = None) -> tuple[Vectors, RowNumbers]:
    """The `k` best of some vectors (N, D), of those `chosen` alone if any are: scores and places, best first, fewer
    where there are fewer. ValueError where `vector` has not D numbers. FAISS does it: what NumPy multiplies with has
    threads that wait by turning round."""
    scores, places = np.empty(k, np.float32), np.empty(k, np.int64)
    every, query = np.ascontiguousarray(vectors), np.ascontiguousarray(vector, np.float32)  # FAISS gets their addresses
    given = [swig.swig_ptr(array) for array in (query, every)]
    count, dimension = every.shape
    if query.shape != (dimension,):
        raise ValueError(f"a vector of {query.shape} cannot be compared with vectors of {dimension}")
    selector = () if chosen is None else (swig.IDSelectorBitmap(chosen),)
    swig.knn_inner_product(*given, dimension, 1, count, k, swig.swig_ptr(scores), swig.swig_ptr(places), *selector)
    return found(scores, places)


def found(scores: Vectors, rows: RowNumbers) -> tuple[Vectors, RowNumbers]:
    """Of one query, without the places that FAISS left empty: the last ones."""
    if len(rows) and rows[-1] < 0:
        some = int(np.count_nonzero(rows >= 0))
        return scores[:some], rows[:some]
    return scores, rows
