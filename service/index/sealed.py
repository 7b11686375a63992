"""Sealed: many rows that never change, but for their tombstones. Found through an inverted file (FAISS IVF), whose
number of lists to look through is measured when it is built; a few rows, or the few that pass a rare filter, exactly.

Shapes: N rows, D dimension.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import faiss
import numpy as np
import numpy.typing as npt

from service.index.gpu import Gpu
from service.index.packed_strings import PackedStrings
from service.index.segment import Segment, Vectors, exact, found, swig
from service.index.tags import Bits, Columns, Mask, RowNumbers, packed_bits, rows_of
from service.interfaces import Arrays
from service.records import Vector

IVF_ROWS = 8192
"""Fewer rows are compared one by one."""
LISTS_PER_ROOT = 2
"""Lists of the inverted file: so many times the root of the rows, but no more than LEAST_PER_LIST allows."""
MIN_ROWS_PER_LIST = 40
"""Rows that FAISS wants for each list that it trains."""
TRAINING_ROWS_PER_LIST = 64
RECALL = 0.998
"""Of the rows that belong to an answer, the share that the chosen number of lists has found."""
TRIED_QUERIES = 128
TRIED_K = (10, 30, 100, 300, 1000)
GPU_K = 1000
"""On a card, which is seldom short of time, lists are looked through as for so many, the most that are asked for."""
EXACT_MATCHES, EXACT_SHARE = 2048, 1 / 16
"""So few that pass a filter are compared one by one, or such a share of the rows in the lists that would be looked
through: to get a row and compare it takes as long as to ask of so many whether they pass."""
FEW_TAGGED, BITS_KEPT = 0.005, 128
"""The rows of a tag that a larger share of them has are kept as bits, those of so many tags."""
CHUNK = 16384
"""Rows that are copied at a time."""


@dataclass(frozen=True, slots=True)
class Source:
    """A segment as it was when its rows were chosen: those of `rows` go on to another one."""

    segment: Segment
    rows: RowNumbers

    @classmethod
    def of(cls, segment: Segment) -> Source:
        return cls(segment, np.flatnonzero(segment.alive[: len(segment)]))


class SealedSegment(Segment):
    """`name`: of no other segment, whenever it was made. `lists_by_k`: see `build`."""

    def __init__(
        self,
        name: str,
        columns: Columns,
        alive: Mask,
        ids: PackedStrings,
        tags: Tags,
        index: Any,
        lists_by_k: dict[int, int],
        gpu: Gpu | None,
    ) -> None:
        super().__init__(columns, alive)
        self.name = name
        self._ids = ids
        self._tags = tags
        self._bits = packed_bits(self.alive)
        self._index = index
        self._lists_by_k = lists_by_k
        self._whole: dict[int, Any] = {}
        """By how many lists are looked through; each takes 30 us to make."""
        self._on_gpu = gpu.copy(index, self._lists_for(GPU_K), self) if gpu and lists_by_k else None
        self.has_lists = bool(lists_by_k) and self._on_gpu is None

    @classmethod
    def of(cls, sources: Sequence[Source], dimension: int, gpu: Gpu | None) -> tuple[SealedSegment, RowNumbers]:
        """The rows of some sources, those of one list beside each other; and where each went, in the sources' order."""
        index, lists_by_k, places = build(sources, sum(len(source.rows) for source in sources), dimension)
        order = np.argsort(places)
        made = cls(
            uuid4().hex,
            Columns.joined(source.segment.columns[source.rows] for source in sources)[order],
            np.ones(len(places), np.bool_),
            PackedStrings.joined([source.segment.packed_ids(source.rows) for source in sources]).take(order),
            Tags.of(sources, places),
            index,
            lists_by_k,
            gpu,
        )
        return made, places

    def arrays(self) -> Arrays:
        """All of it that never changes."""
        lists = np.array(list(self._lists_by_k.items()), np.int64).reshape(-1, 2)
        index = swig.serialize_index(self._index)
        named = {"index": index, "lists_by_k": lists}
        return {**self.columns.arrays(), **self._ids.arrays(), **self._tags.arrays(), **named}

    @classmethod
    def restored(cls, name: str, arrays: Arrays, alive: Mask, gpu: Gpu | None) -> SealedSegment:
        """From what `arrays` gave, and which of its rows are alive."""
        tags = Tags(arrays["tags"], arrays["tag_ends"], arrays["tag_rows"], len(alive))
        index = _read_index(arrays["index"])
        columns, ids = Columns.of(arrays), PackedStrings.restored(arrays)
        return cls(name, columns, alive, ids, tags, index, dict(arrays["lists_by_k"].tolist()), gpu)

    def __len__(self) -> int:
        return len(self.alive)

    def row_of(self, note_id: str) -> int | None:
        row = self._ids.row(note_id)
        return row if row is not None and self.alive[row] else None

    def id(self, row: int) -> str:
        return self._ids[row]

    def packed_ids(self, rows: RowNumbers) -> PackedStrings:
        return self._ids.take(rows)

    def vectors(self, rows: RowNumbers) -> Vectors:
        found: Vectors = self._index.reconstruct_batch(np.asarray(rows, np.int64))
        return found

    def whole(self, k: int) -> Any:
        if self._on_gpu is not None:
            return self._on_gpu
        if not self._lists_by_k:
            return self._index
        if (lists := self._lists_for(k)) not in self._whole:
            self._whole[lists] = _looking_through(self._index, lists)
        return self._whole[lists]

    def mark_deleted(self, row: int) -> None:
        super().mark_deleted(row)
        self._bits[row >> 3] &= 0xFF ^ (1 << (row & 7))

    def tag_pairs(self) -> tuple[npt.NDArray[np.int32], RowNumbers]:
        return self._tags.pairs()

    def _tagged(self, tag: int, rows: int) -> Bits:
        return self._tags.bits(tag)

    def _alive_now(self) -> tuple[Bits, int]:
        return self._bits.copy(), len(self)

    def _nearest(
        self, vector: Vector, k: int, chosen: Bits | None, matches: int, exhaustive: bool
    ) -> tuple[Vectors, RowNumbers]:
        lists = self._lists_for(k, 0.0 if exhaustive else matches / len(self)) if self._lists_by_k else 0
        looked_at = lists * len(self) / self._index.nlist if lists else 0
        if chosen is not None and matches <= max(k, EXACT_MATCHES, EXACT_SHARE * looked_at):
            rows = rows_of(chosen)
            scores, places = exact(self.vectors(rows), vector, k)
            return scores, rows[places]
        bits = self._bits if chosen is None and self.dead else chosen
        selector = None if bits is None else swig.IDSelectorBitmap(bits)
        query = np.asarray(vector, np.float32)[None]
        while True:
            scores, rows = self._index.search(query, k, params=_options(lists, selector))
            scores, rows = found(scores[0], rows[0])
            if len(rows) == k or not lists or lists == self._index.nlist:
                return scores, rows
            lists = min(self._index.nlist, 4 * lists)

    def _lists_for(self, k: int, share: float = 1.0) -> int:
        """Lists to look through for `k` rows, between what was measured. Where only `share` of the rows may be found,
        as many as leave as many to choose from, wherever they are: those that pass a filter need not be near."""
        measured = sorted(self._lists_by_k.items())
        at = min(max(1, bisect_left(measured, (k, 0))), len(measured) - 1)
        (k0, lists0), (k1, lists1) = measured[at - 1 : at + 1]
        part = min(max(0.0, math.log(k / k0) / math.log(k1 / k0)), 1.0)
        enough = math.ceil(lists0 * (lists1 / lists0) ** part * max(1.0, k / k1) / max(share, 1e-6) - 1e-9)
        return int(min(self._index.nlist, enough))


class Tags:
    """Which of N rows have a tag: the rows in the order of their tags' codes. `codes` (T,) of the tags; those of tag i
    are `rows[ends[i] : ends[i + 1]]`."""

    def __init__(self, codes: npt.NDArray[np.int32], ends: RowNumbers, rows: npt.NDArray[np.int32], count: int) -> None:
        self._codes = codes
        self._ends = ends
        self._rows = rows
        self._count = count
        self._bits: dict[int, Bits] = {}
        """Of the tags that were asked for and that many rows have: to make them takes longer than a search."""

    @classmethod
    def of(cls, sources: Sequence[Source], places: RowNumbers) -> Tags:
        """`places`: see Sealed.of."""
        tags, rows, first = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], 0
        for source in sources:
            place = np.full(len(source.segment.alive), -1, np.int64)
            place[source.rows] = places[first : first + len(source.rows)]
            codes, of = source.segment.tag_pairs()
            kept = place[of] >= 0
            tags.append(codes[kept])
            rows.append(place[of][kept])
            first += len(source.rows)
        every = np.concatenate(tags)
        order = np.argsort(every, kind="stable")
        own, counts = np.unique(every, return_counts=True)
        ends = np.cumsum([0, *counts.tolist()])
        return cls(own, ends, np.concatenate(rows)[order].astype(np.int32), first)

    def arrays(self) -> Arrays:
        return {"tags": self._codes, "tag_ends": self._ends, "tag_rows": self._rows}

    def bits(self, tag: int) -> Bits:
        """Which rows have it. Not to be written to."""
        if (kept := self._bits.get(tag)) is not None:
            return kept
        at = int(np.searchsorted(self._codes, tag))
        known = at < len(self._codes) and self._codes[at] == tag
        rows = self._rows[self._ends[at] : self._ends[at + 1]] if known else self._rows[:0]
        if len(rows) <= FEW_TAGGED * self._count:
            bits = np.zeros(-(-self._count // 8), np.uint8)
            np.bitwise_or.at(bits, rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8))
            return bits
        mask = np.zeros(self._count, np.bool_)
        mask[rows] = True
        bits = packed_bits(mask)
        if len(self._bits) >= BITS_KEPT:
            self._bits.clear()
        self._bits[tag] = bits
        return bits  # another search may have cleared what is kept

    def pairs(self) -> tuple[npt.NDArray[np.int32], RowNumbers]:
        return np.repeat(self._codes, np.diff(self._ends)), self._rows.astype(np.int64)


def build(sources: Sequence[Source], rows: int, dimension: int) -> tuple[Any, dict[int, int], RowNumbers]:
    """The FAISS index of the sources' rows; by k how many of its lists to look through, none where it has none; and the
    number of each row in it. Those of one list are numbered one after the other: what passes a filter then lies in
    memory from front to back."""
    index: Any = faiss.IndexFlatIP(dimension)
    if rows < IVF_ROWS:
        for vectors in _chunks(sources):
            index.add(vectors)
        return index, {}, np.arange(rows)
    lists = min(int(LISTS_PER_ROOT * rows**0.5), rows // MIN_ROWS_PER_LIST)
    index = faiss.IndexIVFFlat(index, dimension, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = True
    index.train(_sample(sources, rows, TRAINING_ROWS_PER_LIST * lists))
    places = _add_to_lists(index, sources)
    index.make_direct_map()
    return index, _lists_by_k(index), places


def _add_to_lists(index: Any, sources: Sequence[Source]) -> RowNumbers:
    """The rows' numbers. Each list gets its whole memory at once: one that grows row by row has up to twice of what it
    needs."""
    of_row = np.concatenate([index.quantizer.search(vectors, 1)[1][:, 0] for vectors in _chunks(sources)])
    for number, count in enumerate(np.bincount(of_row, minlength=index.nlist).tolist()):
        index.invlists.resize(number, count)
        index.invlists.resize(number, 0)
    places = np.empty_like(of_row)
    places[np.argsort(of_row, kind="stable")] = np.arange(len(of_row))
    begin = 0
    for vectors in _chunks(sources):
        end = begin + len(vectors)
        given = np.ascontiguousarray(vectors), places[begin:end], of_row[begin:end]  # FAISS gets their addresses
        index.add_core(len(vectors), *map(swig.swig_ptr, given))
        begin = end
    return places


def _chunks(sources: Sequence[Source]) -> Iterator[Vectors]:
    for source in sources:
        for begin in range(0, len(source.rows), CHUNK):
            yield source.segment.vectors(source.rows[begin : begin + CHUNK])


def _sample(sources: Sequence[Source], rows: int, most: int) -> Vectors:
    """About `most` rows, evenly from all."""
    step = max(1, rows // most)  # never fewer than `most` of those that there are
    return np.concatenate([source.segment.vectors(source.rows[::step]) for source in sources])


def _lists_by_k(index: Any) -> dict[int, int]:
    """For each of TRIED_K the fewest lists that have found RECALL of what all lists have, for rows of its own."""
    step = max(1, index.ntotal // TRIED_QUERIES)
    queries = index.reconstruct_batch(np.arange(0, index.ntotal, step))
    found = {}
    lists = 1
    every = swig.SearchParametersIVF(nprobe=index.nlist)
    _, nearest = index.search(queries, TRIED_K[-1] + 1, params=every)
    for k in TRIED_K:
        wanted = nearest[:, : k + 1]
        while lists < index.nlist:
            _, rows = index.search(queries, k + 1, params=swig.SearchParametersIVF(nprobe=lists))
            hits = [len(np.intersect1d(got, want)) - 1 for got, want in zip(rows, wanted, strict=True)]
            if np.mean(hits) >= RECALL * k:
                break
            lists = min(index.nlist, -(-lists * 5 // 4))
        found[k] = lists
    return found


def _looking_through(index: Any, lists: int) -> Any:
    """The same lists, of which so many are looked through where a search does not say."""
    same = faiss.IndexIVFFlat(index.quantizer, index.d, index.nlist, index.metric_type)
    same.replace_invlists(index.invlists, False)
    same.ntotal, same.nprobe = index.ntotal, lists
    return same


def _read_index(written: npt.NDArray[np.uint8]) -> Any:
    """As FAISS wrote it, piece by piece: its own way copies all of it once more."""
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        at += size
        return written[at - size : at].tobytes()

    return swig.read_index(swig.PyCallbackIOReader(read))


def _options(lists: int, selector: Any) -> Any:
    """Of a search in so many lists, 0: in an index that has none."""
    return swig.SearchParametersIVF(sel=selector, nprobe=lists) if lists else swig.SearchParameters(sel=selector)
