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

from service.index.columns import Asked, Columns, Mask, RowNumbers
from service.index.ids import Ids
from service.interfaces import Vector

swig: Any = faiss  # its type stubs describe the C++ classes, not the Python ones around them
Vectors = npt.NDArray[np.float32]
NOTHING = np.zeros(0, np.float32), np.zeros(0, np.int64)
"""No scores of no rows."""


class Segment(ABC):
    """`alive` (rows,): which are no tombstones. Row numbers are of this segment alone."""

    grows = False
    """Whether rows may come while it is searched."""

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
    def packed_ids(self, rows: RowNumbers) -> Ids: ...

    @abstractmethod
    def vectors(self, rows: RowNumbers) -> Vectors:
        """(len(rows), D)"""

    @abstractmethod
    def tag_pairs(self) -> tuple[npt.NDArray[np.int32], RowNumbers]:
        """Every code of a tag with a row that has it."""

    @abstractmethod
    def _tagged(self, tag: int, rows: int) -> Mask:
        """Which of the first `rows` rows have it."""

    @abstractmethod
    def _nearest(
        self, vector: Vector, k: int, mask: Mask | None, matches: int, exhaustive: bool
    ) -> tuple[Vectors, RowNumbers]:
        """Scores and rows of the `k` nearest among the `matches` rows of `mask` (None: all that are alive), of which
        there are as many, the best first. `exhaustive`: all are compared."""

    @abstractmethod
    def _alive_now(self) -> Mask:
        """Which rows are alive, of those that there are at this moment: a copy, which nobody changes."""

    def ids(self) -> list[str]:
        """Of the rows that are alive."""
        return [self.id(row) for row in np.flatnonzero(self._alive_now()).tolist()]

    @property
    def living(self) -> int:
        dead = self.dead  # read first: rows come before the tombstones of what they replace
        return len(self) - dead

    def find(self, vector: Vector, k: int, asked: Asked, now: float) -> tuple[Vectors, RowNumbers, int]:
        """Scores and rows of the `k` nearest that may be found, best first, and how many may be found."""
        mask = self._mask(asked, now)
        matches = self.living if mask is None else int(np.count_nonzero(mask))
        rows_left_out = [row for row in map(self.row_of, asked.exclude) if row is not None]
        # A row that came after the mask was made is not in it.
        left_out = [row for row in rows_left_out if mask is None or (row < len(mask) and mask[row])]
        left = max(0, matches - len(left_out))
        wanted = min(k, left)
        if wanted < 1:
            return NOTHING[0], NOTHING[1], left
        scores, rows = self._nearest(vector, wanted + len(left_out), mask, matches, asked.exact)
        if left_out:
            kept = ~np.isin(rows, left_out)
            scores, rows = scores[kept], rows[kept]
        return scores[:wanted], rows[:wanted], left

    def bury(self, row: int) -> None:
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
            self.bury(row)
        self._first_expiry = float(expires[alive].min(initial=np.inf))
        return ids

    def _mask(self, asked: Asked, now: float) -> Mask | None:
        """The rows that may be found, whatever is excluded; None when these are all that are alive, and none come."""
        expiring = now >= self._first_expiry
        if not asked.narrows and not expiring and not self.grows:
            return None
        mask = self._alive_now()
        rows = len(mask)
        columns = self.columns[:rows]
        columns.narrow(mask, asked)
        if expiring:
            mask &= columns.expires > now
        if asked.tags:
            mask &= reduce(np.logical_or, [self._tagged(tag, rows) for tag in asked.tags])
        for tag in asked.all_tags:
            mask &= self._tagged(tag, rows)
        return mask


def exact(vectors: Vectors, rows: RowNumbers, vector: Vector, k: int) -> tuple[Vectors, RowNumbers]:
    """The `k` best of `rows`, whose vectors (len(rows), D) are given: scores and rows, best first."""
    scores = vectors @ np.asarray(vector, np.float32)
    best = np.arange(len(rows)) if k >= len(rows) else np.argpartition(-scores, k - 1)[:k]
    best = best[np.argsort(-scores[best], kind="stable")]
    return scores[best], rows[best]
