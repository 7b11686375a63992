"""SealedSegment: many rows that never change, except that they may become tombstones.

They are searched through an inverted file (FAISS IVF-Flat); where no filter narrows them, first by codes of a sixteenth
of the vectors' size. How many lists and rows a search goes through is measured when the segment is built (probing.py).
A small segment, and the few rows that pass a rare filter, are searched exactly.

Shapes: N rows, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import uuid4

import numpy as np

from service.index.backend import Arrays
from service.index.bitmaps import Bits, Mask, RowNumbers, packed_bits, rows_of
from service.index.building import InvertedLists, Source, build_index
from service.index.gpu import Gpu, GpuIndex
from service.index.native import (
    FaissIndex,
    RankedRows,
    copied_index,
    exact_search,
    read_index,
    search_index,
    serialize_index,
    with_default_lists,
)
from service.index.packed_strings import HashedStrings, PackedStrings
from service.index.probing import ROWS_PER_CANDIDATE, Probing
from service.index.segment import Codes, Segment
from service.index.tags import Columns, TagCodes, TagPairs, TagPostings
from service.records import Vector, Vectors

GPU_K = 1000
"""Number of neighbours that determines how many lists a copy on a GPU searches; it has one setting for all searches."""
MAX_EXACT_ROWS, EXACT_SHARE = 2048, 1 / 16
"""Bounds on the rows that pass a filter and are compared one by one: their number, or their share of the rows in the
lists that would be searched instead. Fetching and comparing one row takes as long as testing 16 against a bitmap."""


class SealedSegment(Segment):
    """`name` is unique, also among segments of other processes. `inverted` is None where `index` has no lists."""

    def __init__(
        self,
        name: str,
        columns: Columns,
        alive: Mask,
        ids: PackedStrings,
        tags: TagPostings,
        index: FaissIndex,
        inverted: InvertedLists | None,
        gpu: Gpu | None,
    ) -> None:
        super().__init__(columns, alive)
        self.name = name
        self._ids = ids
        self._tags = tags
        self._alive_bits = packed_bits(self.alive)
        self._index = index
        self._inverted = inverted
        self._views: dict[tuple[bool, int], FaissIndex] = {}
        """Results of `with_default_lists`, by whether they are of codes and by the number of lists: each takes 30 to
        200 us to make."""
        self._on_gpu = gpu.copy(index, inverted.probing.lists_for(GPU_K)) if gpu and inverted else None
        self.has_lists = inverted is not None and self._on_gpu is None

    @classmethod
    def of(cls, sources: Sequence[Source], dimension: int, gpu: Gpu | None) -> tuple[SealedSegment, RowNumbers]:
        """Return a segment with the rows of all sources, and the new number of each row in the sources' order."""
        row_count = sum(len(source.rows) for source in sources)
        index, inverted, new_rows = build_index(sources, row_count, dimension)
        order = np.argsort(new_rows)
        segment = cls(
            name=uuid4().hex,
            columns=Columns.joined(source.segment.columns[source.rows] for source in sources)[order],
            alive=np.ones(row_count, np.bool_),
            ids=PackedStrings.joined([source.segment.packed_ids(source.rows) for source in sources]).take(order),
            tags=TagPostings.of(list(_renumbered_tags(sources, new_rows)), row_count),
            index=index,
            inverted=inverted,
            gpu=gpu,
        )
        return segment, new_rows

    @classmethod
    def restored(cls, name: str, arrays: Arrays, alive: Mask, gpu: Gpu | None) -> SealedSegment:
        """Return the segment that these `arrays` were taken from, with the given living rows."""
        index = read_index(arrays["index"])
        inverted = None
        if "by_k" in arrays:
            codes = copied_index(arrays["codes"]) if "codes" in arrays else None
            inverted = InvertedLists(Probing.restored(len(alive), index.nlist, arrays["by_k"]), codes)
        return cls(
            name=name,
            columns=Columns.of(arrays),
            alive=alive,
            ids=PackedStrings.restored(arrays),
            tags=TagPostings.restored(arrays, len(alive)),
            index=index,
            inverted=inverted,
            gpu=gpu,
        )

    def arrays(self) -> Arrays:
        """Return everything except `alive`, by its name in a snapshot: arrays that never change."""
        arrays = {
            **self.columns.arrays(),
            **self._ids.arrays(),
            **self._tags.arrays(),
            "index": serialize_index(self._index),
        }
        if self._inverted:
            arrays["by_k"] = self._inverted.probing.by_k
            if self._inverted.codes is not None:
                arrays["codes"] = serialize_index(self._inverted.codes)
        return arrays

    def __len__(self) -> int:
        return len(self.alive)

    def row_of(self, note_id: str) -> int | None:
        row = self._ids.row(note_id)
        return row if row is not None and self.alive[row] else None

    def rows_of_ids(self, note_ids: HashedStrings) -> dict[str, int]:
        return {note_id: row for note_id, row in self._ids.rows(note_ids).items() if self.alive.item(row)}

    def id(self, row: int) -> str:
        return self._ids[row]

    def ids_at(self, rows: RowNumbers) -> list[str]:
        return self._ids.at(rows)

    def packed_ids(self, rows: RowNumbers) -> PackedStrings:
        return self._ids.take(rows)

    def vectors(self, rows: RowNumbers) -> Vectors:
        vectors: Vectors = self._index.reconstruct_batch(np.asarray(rows, np.int64))
        return vectors

    def living_tags(self) -> TagCodes:
        return self._tags.living(self.alive)

    def tag_pairs(self) -> TagPairs:
        return self._tags.pairs()

    def faiss_index(self, k: int) -> FaissIndex | GpuIndex:
        if self._on_gpu is not None:
            return self._on_gpu
        if self._inverted is None:
            return self._index
        return self._view(self._index, self._inverted.probing.lists_for(k))

    def codes(self, k: int, mean_k: float) -> Codes | None:
        if self._on_gpu is not None or self._inverted is None or self._inverted.codes is None:
            return None
        probing = self._inverted.probing
        candidates = probing.candidates_for(mean_k)
        if candidates is None:
            return None
        saved_rows = probing.rows_in(probing.lists_for(k)) - ROWS_PER_CANDIDATE * candidates
        return Codes(self._view(self._inverted.codes, probing.scanned_lists(k)), candidates, saved_rows)

    def _view(self, index: FaissIndex, lists: int) -> FaissIndex:
        """Return an index on the rows of `index`, of vectors or codes, that searches `lists` lists."""
        key = index is not self._index, lists
        if key not in self._views:
            self._views[key] = with_default_lists(index, lists)
        return self._views[key]

    def mark_deleted(self, row: int) -> None:
        super().mark_deleted(row)
        self._alive_bits[row >> 3] &= 0xFF ^ (1 << (row & 7))

    def _rows_tagged(self, tag: int, rows: int) -> Bits:
        return self._tags.bits(tag)

    def _rows_tagged_any(self, tags: Sequence[int], rows: int) -> Bits:
        return self._tags.bits_of_any(tags)

    def _copy_alive(self) -> tuple[Bits, int]:
        return self._alive_bits.copy(), len(self)

    def _search_rows(self, vector: Vector, k: int, rows: Bits | None, count: int, exact: bool) -> RankedRows:
        lists = 0
        rows_in_lists = 0.0
        if self._inverted:
            lists = self._inverted.probing.lists_for(k, passing_share=0.0 if exact else count / len(self))
            rows_in_lists = self._inverted.probing.rows_in(lists)
        if rows is not None and count <= max(k, MAX_EXACT_ROWS, EXACT_SHARE * rows_in_lists):
            return self._compare(vector, k, rows_of(rows))
        if rows is None and self.dead:
            rows = self._alive_bits
        return self._search_lists(vector, k, rows, lists)

    def _compare(self, vector: Vector, k: int, rows: RowNumbers) -> RankedRows:
        """Compare the query with each of some rows, and return the `k` nearest."""
        scores, places = exact_search(self.vectors(rows), vector, k)
        return scores, rows[places]

    def _search_lists(self, vector: Vector, k: int, rows: Bits | None, lists: int) -> RankedRows:
        """Search `lists` lists; while fewer than `k` rows are found, search again in four times as many, at most
        all."""
        while True:
            scores, found_rows = search_index(self._index, vector, k, lists, rows)
            if len(found_rows) == k or not lists or lists == self._index.nlist:
                return scores, found_rows
            lists = min(self._index.nlist, 4 * lists)


def _renumbered_tags(sources: Sequence[Source], new_rows: RowNumbers) -> Iterator[TagPairs]:
    """Yield each source's pairs of tag and row, for the rows that are merged, with their new numbers."""
    begin = 0
    for source in sources:
        end = begin + len(source.rows)
        new_row_of = np.full(len(source.segment.alive), -1, np.int64)
        new_row_of[source.rows] = new_rows[begin:end]
        codes, old_rows = source.segment.tag_pairs()
        rows = new_row_of[old_rows]
        merged = rows >= 0
        yield codes[merged], rows[merged]
        begin = end
