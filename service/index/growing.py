"""GrowingSegment: the newest rows, in arrays of a fixed size, searched exactly. When it is full, another one begins.

Its vectors lie in the preallocated memory of a flat FAISS index: FAISS's own `add` would move them during searches.
FAISS sees a row (`ntotal`) only once it is complete.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from copy import copy

import numpy as np

from service.index.backend import Arrays
from service.index.bitmaps import Bits, RowNumbers, packed_bits
from service.index.native import FaissIndex, RankedRows, exact_search, preallocated_flat_index
from service.index.packed_strings import HashedStrings, PackedStrings, packed, unpacked
from service.index.segment import Segment
from service.index.tags import Columns, TagCodes, TagDictionary, TagPairs
from service.records import StoredNote, Vector, Vectors


class GrowingSegment(Segment):
    """Segment with room for `capacity` rows of `dimension` numbers."""

    grows = True

    def __init__(self, capacity: int, dimension: int, tag_dictionary: TagDictionary) -> None:
        super().__init__(Columns.empty(capacity), np.zeros(capacity, np.bool_))
        self.dead = 0
        self._first_expiry = np.inf
        self._tag_dictionary = tag_dictionary
        self._index: FaissIndex
        self._vectors: Vectors
        self._index, self._vectors = preallocated_flat_index(capacity, dimension)
        self._ids: list[str] = []
        self._row_of: dict[str, int] = {}
        self._tags: list[frozenset[int]] = []
        """Tag codes by row."""
        self._rows_by_tag: defaultdict[int, int] = defaultdict(int)
        """The rows of each tag as an integer, whose bit r tells whether row r has the tag. Integers are immutable, so
        that `frozen` copies only the dictionary."""

    @classmethod
    def restored(cls, capacity: int, dimension: int, tag_dictionary: TagDictionary, arrays: Arrays) -> GrowingSegment:
        """Return the segment that these `arrays` were taken from, with room for `capacity` rows or more."""
        ids, alive = unpacked("ids", arrays), arrays["alive"]
        rows = len(ids)
        segment = cls(max(capacity, rows), dimension, tag_dictionary)
        segment._vectors[:rows] = arrays["vectors"]
        for column, values in zip(segment.columns.all, Columns.of(arrays).all, strict=True):
            column[:rows] = values
        segment.alive[:rows] = alive
        segment.dead = int(rows - np.count_nonzero(alive))
        segment._ids = ids
        segment._row_of = {ids[row]: row for row in np.flatnonzero(alive).tolist()}
        tags_by_row: defaultdict[int, set[int]] = defaultdict(set)
        for tag, row in zip(arrays["tags"].tolist(), arrays["tag_rows"].tolist(), strict=True):
            segment._rows_by_tag[tag] |= 1 << row
            tags_by_row[row].add(tag)
        segment._tags = [frozenset(tags_by_row[row]) for row in range(rows)]
        segment._index.ntotal = rows
        segment._first_expiry = float(segment.columns.expires[:rows][alive].min(initial=np.inf))
        return segment

    def arrays(self) -> Arrays:
        """Return copies of the arrays of all rows, tombstones included, by their names in a snapshot."""
        rows = len(self)
        tags, tag_rows = self.tag_pairs()
        mutable = {**self.columns.arrays(), "alive": self.alive, "vectors": self._vectors}
        copied = {name: values[:rows].copy() for name, values in mutable.items()}
        return {**copied, **packed("ids", self._ids), "tags": tags, "tag_rows": tag_rows}

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def full(self) -> bool:
        return len(self) == len(self.alive)

    def row_of(self, note_id: str) -> int | None:
        return self._row_of.get(note_id)

    def rows_of_ids(self, note_ids: HashedStrings) -> dict[str, int]:
        row_of = self._row_of
        return {note_id: row for note_id in note_ids.texts if (row := row_of.get(note_id)) is not None}

    def id(self, row: int) -> str:
        return self._ids[row]

    def ids_at(self, rows: RowNumbers) -> list[str]:
        return [self._ids[row] for row in rows.tolist()]

    def packed_ids(self, rows: RowNumbers) -> PackedStrings:
        return PackedStrings.of([self._ids[row] for row in rows.tolist()])

    def vectors(self, rows: RowNumbers) -> Vectors:
        return self._vectors[rows]

    def tag_pairs(self) -> TagPairs:
        pairs = [(tag, row) for row, tags in enumerate(self._tags) for tag in tags]
        tags, rows = np.array(pairs, np.int64).reshape(-1, 2).T
        return tags.astype(np.int32), rows

    def living_tags(self) -> TagCodes:
        living = (self._tags[row] for row in np.flatnonzero(self.alive[: len(self)]).tolist())
        return np.array(list(set().union(*living)), np.int32)

    def faiss_index(self, k: int) -> FaissIndex:
        return self._index

    def append(self, stored: StoredNote, vector: Vector) -> None:
        """Append a row, which searches see once it is complete. The caller then deletes an older row of the note."""
        row = len(self)
        self._vectors[row] = vector
        self._tags.append(frozenset())
        self.set_fields(row, stored)
        self.alive[row] = True
        self._ids.append(stored.note.id)
        self._row_of[stored.note.id] = row
        self._index.ntotal = len(self)

    def set_fields(self, row: int, stored: StoredNote) -> None:
        """Write the fields of a row that filters test: times and tags."""
        old_tags, tags = self._tags[row], self._tag_dictionary.add_tags_of(stored)
        self.columns.write(row, stored, *self._tag_dictionary.category_and_author(stored))
        self._first_expiry = min(self._first_expiry, float(self.columns.expires[row]))
        for tag in tags:
            self._rows_by_tag[tag] |= 1 << row
        for tag in old_tags - tags:
            self._rows_by_tag[tag] &= ~(1 << row)
            if not self._rows_by_tag[tag]:  # else a count of likes would leave an entry for each past value
                del self._rows_by_tag[tag]
        self._tags[row] = tags

    def mark_deleted(self, row: int) -> None:
        """Make a living row a tombstone. Its tags stay, for searches that have begun."""
        if self._row_of[self._ids[row]] == row:  # else this is the number of the row that replaces it
            del self._row_of[self._ids[row]]
        super().mark_deleted(row)

    def without_tombstones(self) -> GrowingSegment:
        """Return a new segment with the living rows."""
        kept = np.flatnonzero(self.alive)
        new = GrowingSegment(len(self.alive), self._vectors.shape[1], self._tag_dictionary)
        new._vectors[: len(kept)] = self._vectors[kept]
        for column, old_column in zip(new.columns.all, self.columns.all, strict=True):
            column[: len(kept)] = old_column[kept]
        new.alive[: len(kept)] = True
        new._ids = [self._ids[row] for row in kept.tolist()]
        new._row_of = {note_id: row for row, note_id in enumerate(new._ids)}
        new._tags = [self._tags[row] for row in kept]
        for row, tags in enumerate(new._tags):
            for tag in tags:
                new._rows_by_tag[tag] |= 1 << row
        new._first_expiry = self._first_expiry
        new._index.ntotal = len(new)
        return new

    def frozen(self) -> GrowingSegment:
        """Return the segment as it is now, for `filter_rows`: its living rows and their fields are copied, and all else
        is shared. During this call the writer may only make tombstones."""
        # The first expiry is copied before the living rows: it rises once the expired rows are tombstones.
        frozen = copy(self)
        frozen.columns, frozen.alive = self.columns.copy(), self.alive.copy()
        frozen._rows_by_tag = self._rows_by_tag.copy()
        return frozen

    def _rows_tagged(self, tag: int, rows: int) -> Bits:
        return self._rows_tagged_any([tag], rows)

    def _rows_tagged_any(self, tags: Sequence[int], rows: int) -> Bits:
        tagged, rows_of_tag = 0, self._rows_by_tag.get
        for tag in tags:  # hundreds for a range, of which few have a row here
            if tag_rows := rows_of_tag(tag):
                tagged |= tag_rows
        size = -(-len(self.alive) // 8)
        return np.frombuffer(tagged.to_bytes(size, "little"), np.uint8)[: -(-rows // 8)]

    def _search_rows(self, vector: Vector, k: int, rows: Bits | None, count: int, exact: bool) -> RankedRows:
        assert rows is not None, "a segment that grows is searched among rows that exist"
        return exact_search(self._vectors[: 8 * len(rows)], vector, k, rows)

    def _copy_alive(self) -> tuple[Bits, int]:
        alive = self.alive.copy()  # before the length is read: a row is added before its old row is a tombstone
        rows = len(self)
        return packed_bits(alive[:rows]), rows
