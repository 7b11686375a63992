"""ExactHead: the mutable part of the index, searched exactly. FAISS holds the vectors, numpy columns what filters ask.

A replaced or removed row becomes a tombstone: its bit in the row mask is cleared, and FAISS never looks at it. When
tombstones are a quarter of the rows they are squeezed out. Knows nothing of threads, Redis or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from model.note import hashtag_key
from service.interfaces import Filter, Found, Hit, StoredNote, Vector

swig: Any = faiss  # its type stubs describe the C++ classes, not the Python ones around them
COMPACT_SHARE = 0.25
COMPACT_ROWS = 1024
"""Fewer tombstones than this are never worth a compaction."""


class ExactHead:
    """See VectorIndex. `dimension`: of every vector in it."""

    def __init__(self, dimension: int) -> None:
        self._faiss: Any = faiss.IndexFlatIP(dimension)
        self._rows = Rows()

    def __len__(self) -> int:
        return len(self._rows.row_of)

    @property
    def tombstones(self) -> int:
        return len(self._rows.ids) - len(self)

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        """See VectorIndex. A note whose vector did not change keeps its row."""
        fresh: dict[str, tuple[StoredNote, Vector]] = {}
        for note in notes:
            if note.vector is None or note.vector.shape != (self._faiss.d,):
                raise ValueError(f"note {note.note.id!r} has no vector of dimension {self._faiss.d}")
            old = self.vector(note.note.id)
            if note.note.id in fresh or old is None or not np.array_equal(old, note.vector):
                fresh[note.note.id] = note, note.vector
            else:
                self._rows.describe(self._rows.row_of[note.note.id], note)
        if fresh:
            self._rows.bury(fresh)
            self._faiss.add(np.stack([vector for _, vector in fresh.values()]))
            self._rows.append([note for note, _ in fresh.values()])
            self._compact()

    def remove(self, ids: Sequence[str]) -> None:
        """See VectorIndex."""
        self._rows.bury(ids)
        self._compact()

    def expire(self, now: float) -> list[str]:
        """See VectorIndex."""
        expired = self._rows.expired(now)
        self.remove(expired)
        return expired

    def vector(self, note_id: str) -> Vector | None:
        """See VectorIndex."""
        row = self._rows.row_of.get(note_id)
        if row is None:
            return None
        vector: Vector = self._faiss.reconstruct(row)
        return vector

    def search(self, vector: Vector, k: int, where: Filter, now: float) -> Found:
        """See VectorIndex."""
        mask = self._rows.mask(where, now)
        matches = int(np.count_nonzero(mask))
        if not matches or k < 1:
            return Found([], matches)
        selector = swig.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        scores, rows = self._faiss.search(
            np.asarray(vector, np.float32)[None], min(k, matches), params=swig.SearchParameters(sel=selector)
        )
        hits = [Hit(self._rows.ids[r], float(s)) for s, r in zip(scores[0], rows[0], strict=True) if r >= 0]
        return Found(sorted(hits, key=lambda hit: (-hit.score, hit.id)), matches)

    def _compact(self) -> None:
        """Squeeze the tombstones out, when they are many; the memory is given back."""
        if self.tombstones < max(COMPACT_ROWS, COMPACT_SHARE * len(self._rows.ids)):
            return
        kept = np.flatnonzero(self._rows.alive)
        vectors = self._faiss.reconstruct_batch(kept)
        self._faiss = faiss.IndexFlatIP(self._faiss.d)
        self._faiss.add(vectors)
        self._rows = self._rows.select(kept)


class Rows:
    """What filters ask about each row, as columns; row numbers are FAISS's."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.row_of: dict[str, int] = {}
        self._alive = Column(np.bool_)
        self._category = Column(np.int32)
        self._author = Column(np.int32)
        self._created = Column(np.float64)
        self._expires = Column(np.float64)
        self._codes: dict[str | None, int] = {None: -1}
        self._tags: list[frozenset[str]] = []
        self._tagged: dict[str, set[int]] = {}

    @property
    def alive(self) -> npt.NDArray[np.bool_]:
        return self._alive.values

    def append(self, notes: Sequence[StoredNote]) -> None:
        """One new row for each note; an older row of the same id must have been buried."""
        for note in notes:
            row = len(self.ids)
            self.ids.append(note.note.id)
            self.row_of[note.note.id] = row
            self._tags.append(frozenset())
            self._alive.append(True)
            for column in (self._category, self._author, self._created, self._expires):
                column.append(0)
            self.describe(row, note)

    def describe(self, row: int, note: StoredNote) -> None:
        """Set what filters ask about a row."""
        self._category.values[row] = self._code(note.category)
        self._author.values[row] = self._code(note.note.author)
        self._created.values[row] = note.note.created_at or 0.0
        self._expires.values[row] = np.inf if note.note.expires_at is None else note.note.expires_at
        tags = frozenset(map(hashtag_key, note.hashtags))
        self._untag(row)
        self._tags[row] = tags
        for tag in tags:
            self._tagged.setdefault(tag, set()).add(row)

    def bury(self, ids: Iterable[str]) -> None:
        """Make tombstones of the rows of these ids, where there are any."""
        for note_id in ids:
            row = self.row_of.pop(note_id, None)
            if row is not None:
                self._alive.values[row] = False
                self._untag(row)

    def expired(self, now: float) -> list[str]:
        """Ids of the living rows whose time is over."""
        return [self.ids[row] for row in np.flatnonzero(self.alive & (self._expires.values <= now))]

    def mask(self, where: Filter, now: float) -> npt.NDArray[np.bool_]:
        """True for each row that may be found."""
        mask: npt.NDArray[np.bool_] = self.alive & (self._expires.values > now)
        if where.category is not None:
            mask &= self._category.values == self._codes.get(where.category, -2)
        if where.author is not None:
            mask &= self._author.values == self._codes.get(where.author, -2)
        if where.created_after is not None:
            mask &= self._created.values > where.created_after
        if where.hashtags:
            tagged = set().union(*(self._tagged.get(hashtag_key(tag), set()) for tag in where.hashtags))
            wanted = np.zeros_like(mask)
            wanted[list(tagged)] = True
            mask &= wanted
        if where.exclude:
            mask[[self.row_of[i] for i in where.exclude if i in self.row_of]] = False
        return mask

    def select(self, rows: npt.NDArray[np.int64]) -> Rows:
        """Only these rows, renumbered in their order; all of them alive."""
        new = Rows()
        new.ids = [self.ids[row] for row in rows]
        new.row_of = {note_id: row for row, note_id in enumerate(new.ids)}
        new._codes = self._codes
        new._tags = [self._tags[row] for row in rows]
        for row, tags in enumerate(new._tags):
            for tag in tags:
                new._tagged.setdefault(tag, set()).add(row)
        for name in ("_alive", "_category", "_author", "_created", "_expires"):
            setattr(new, name, getattr(self, name).select(rows))
        return new

    def _code(self, text: str | None) -> int:
        return self._codes.setdefault(text, len(self._codes))

    def _untag(self, row: int) -> None:
        for tag in self._tags[row]:
            self._tagged[tag].discard(row)
            if not self._tagged[tag]:
                del self._tagged[tag]
        self._tags[row] = frozenset()


class Column:
    """A numpy array that grows by doubling."""

    def __init__(self, dtype: Any) -> None:
        self._array: npt.NDArray[Any] = np.empty(64, dtype)
        self._length = 0

    @property
    def values(self) -> npt.NDArray[Any]:
        """(length,) view, writable."""
        return self._array[: self._length]

    def append(self, value: Any) -> None:
        if self._length == len(self._array):
            self._array = np.resize(self._array, 2 * self._length)
        self._array[self._length] = value
        self._length += 1

    def select(self, rows: npt.NDArray[np.int64]) -> Column:
        column = Column(self._array.dtype)
        column._array = self.values[rows] if len(rows) else column._array
        column._length = len(rows)
        return column
