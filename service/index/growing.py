"""Head: the newest rows, in arrays of a fixed size, searched exactly. When it is full, another one begins.

Vectors are in the memory of a flat FAISS index, all of which is there from the beginning: FAISS itself would move them
as they become more, under whoever searches. How many there are it is told once a row is whole.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from service.index.packed_strings import PackedStrings, packed, unpacked
from service.index.segment import Segment, Vectors, exact, swig
from service.index.tags import Bits, Columns, RowNumbers, TagDictionary, packed_bits
from service.interfaces import Arrays
from service.records import StoredNote, Vector


class GrowingSegment(Segment):
    """Room for `capacity` rows of `dimension` numbers."""

    grows = True

    def __init__(self, capacity: int, dimension: int, codes: TagDictionary) -> None:
        super().__init__(Columns.empty(capacity), np.zeros(capacity, np.bool_))
        self.dead = 0
        self._first_expiry = np.inf
        self._codes = codes
        self._index: Any = swig.IndexFlatIP(dimension)
        self._index.codes.resize(capacity * self._index.code_size)
        memory = swig.rev_swig_ptr(self._index.codes.data(), capacity * self._index.code_size)
        self._vectors: Vectors = memory.view(np.float32).reshape(capacity, dimension)
        self._ids: list[str] = []
        self._row_of: dict[str, int] = {}
        self._tags: list[frozenset[int]] = []
        self._rows_of_tag: defaultdict[int, set[int]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def full(self) -> bool:
        return len(self) == len(self.alive)

    def row_of(self, note_id: str) -> int | None:
        return self._row_of.get(note_id)

    def id(self, row: int) -> str:
        return self._ids[row]

    def packed_ids(self, rows: RowNumbers) -> PackedStrings:
        return PackedStrings.of([self._ids[row] for row in rows.tolist()])

    def vectors(self, rows: RowNumbers) -> Vectors:
        return self._vectors[rows]

    def whole(self, k: int) -> Any:
        return self._index

    def append(self, stored: StoredNote, vector: Vector) -> None:
        """A new row, which may be found once all of it is there. One of the same id is to be buried after that."""
        row = len(self)
        self._vectors[row] = vector
        self._tags.append(frozenset())
        self.describe(row, stored)
        self.alive[row] = True
        self._ids.append(stored.note.id)
        self._row_of[stored.note.id] = row
        self._index.ntotal = len(self)

    def without_dead(self) -> GrowingSegment:
        """Another one, with the rows that are alive."""
        kept = np.flatnonzero(self.alive)
        new = GrowingSegment(len(self.alive), self._vectors.shape[1], self._codes)
        new._vectors[: len(kept)] = self._vectors[kept]
        for column, old in zip(new.columns.all, self.columns.all, strict=True):
            column[: len(kept)] = old[kept]
        new.alive[: len(kept)] = True
        new._ids = [self._ids[row] for row in kept.tolist()]
        new._row_of = {note_id: row for row, note_id in enumerate(new._ids)}
        new._tags = [self._tags[row] for row in kept]
        for row, tags in enumerate(new._tags):
            for tag in tags:
                new._rows_of_tag[tag].add(row)
        new._first_expiry = self._first_expiry
        new._index.ntotal = len(new)
        return new

    def arrays(self) -> Arrays:
        """A copy of its rows, those that are dead included."""
        rows = len(self)
        tags, tag_rows = self.tag_pairs()
        changing = {**self.columns.arrays(), "alive": self.alive, "vectors": self._vectors}
        copied = {name: values[:rows].copy() for name, values in changing.items()}
        return {**copied, **packed("ids", self._ids), "tags": tags, "tag_rows": tag_rows}

    @classmethod
    def restored(cls, capacity: int, dimension: int, codes: TagDictionary, arrays: Arrays) -> GrowingSegment:
        """From what `arrays` gave, with room for `capacity` rows, or as many as there were."""
        ids, alive = unpacked("ids", arrays), arrays["alive"]
        rows = len(ids)
        head = cls(max(capacity, rows), dimension, codes)
        head._vectors[:rows] = arrays["vectors"]
        for column, values in zip(head.columns.all, Columns.of(arrays).all, strict=True):
            column[:rows] = values
        head.alive[:rows] = alive
        head.dead = int(rows - np.count_nonzero(alive))
        head._ids = ids
        head._row_of = {ids[row]: row for row in np.flatnonzero(alive).tolist()}
        of_row: defaultdict[int, set[int]] = defaultdict(set)
        for tag, row in zip(arrays["tags"].tolist(), arrays["tag_rows"].tolist(), strict=True):
            head._rows_of_tag[tag].add(row)
            of_row[row].add(tag)
        head._tags = [frozenset(of_row[row]) for row in range(rows)]
        head._index.ntotal = rows
        head._first_expiry = float(head.columns.expires[:rows][alive].min(initial=np.inf))
        return head

    def describe(self, row: int, stored: StoredNote) -> None:
        """What filters ask about it."""
        self.columns.describe(row, stored)
        self._first_expiry = min(self._first_expiry, float(self.columns.expires[row]))
        old, tags = self._tags[row], self._codes.tags_of(stored)
        for tag in tags:
            self._rows_of_tag[tag].add(row)
        for tag in old - tags:
            self._rows_of_tag[tag].discard(row)
        self._tags[row] = tags

    def mark_deleted(self, row: int) -> None:
        """Its tags stay, for a search that has begun."""
        if self._row_of[self._ids[row]] == row:  # not that of what replaces it
            del self._row_of[self._ids[row]]
        super().mark_deleted(row)

    def tag_pairs(self) -> tuple[npt.NDArray[np.int32], RowNumbers]:
        pairs = [(tag, row) for row, tags in enumerate(self._tags) for tag in tags]
        tags, rows = np.array(pairs, np.int64).reshape(-1, 2).T
        return tags.astype(np.int32), rows

    def _tagged(self, tag: int, rows: int) -> Bits:
        mask = np.zeros(len(self.alive), np.bool_)
        mask[list(self._rows_of_tag.get(tag, ()))] = True
        return packed_bits(mask[:rows])

    def _nearest(
        self, vector: Vector, k: int, chosen: Bits | None, matches: int, exhaustive: bool
    ) -> tuple[Vectors, RowNumbers]:
        assert chosen is not None
        return exact(self._vectors[: 8 * len(chosen)], vector, k, chosen)

    def _alive_now(self) -> tuple[Bits, int]:
        alive = self.alive.copy()  # before the length is read: a row comes before the tombstone of what it replaces
        rows = len(self)
        return packed_bits(alive[:rows]), rows
