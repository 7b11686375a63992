"""Building the FAISS index of a sealed segment from the rows of the segments that it replaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from service.index.bitmaps import RowNumbers
from service.index.native import (
    FaissIndex,
    add_to_lists,
    fast_scan,
    flat_index,
    nearest_lists,
    reserve_lists,
    trained_codes,
    trained_ivf,
)
from service.index.probing import Probing, measure
from service.index.segment import Segment
from service.records import Vectors

IVF_ROWS = 8192
"""A segment of fewer rows has no inverted file and is searched exactly."""
LISTS_PER_ROOT = 2
"""Inverted lists as a multiple of the square root of the rows. Twice as many took as long to search and three times as
long to train (docs/decisions/0011-segments.md)."""
MIN_ROWS_PER_LIST = 40
"""Minimum rows per inverted list, on average: FAISS warns of centroids with fewer than 39 training vectors."""
TRAINING_ROWS_PER_LIST = 64
"""Rows that the centroids are trained on, for each list."""
COPY_BATCH_SIZE = 16384
"""Rows whose vectors are copied at a time."""
CODE_TRAINING_ROWS = 4096
"""Rows that the codes are trained on: 256 for each of the 16 values of a code."""


@dataclass(frozen=True, slots=True)
class Source:
    """A segment that is to be merged, and its rows that were alive when the merge was planned."""

    segment: Segment
    rows: RowNumbers

    @classmethod
    def of(cls, segment: Segment) -> Source:
        """Return the Source of a segment's living rows."""
        return cls(segment, np.flatnonzero(segment.alive[: len(segment)]))


@dataclass(frozen=True, slots=True)
class InvertedLists:
    """Search settings of an inverted file: the number of lists (`probing`), and the `codes` to search by first; None
    where codes save no time."""

    probing: Probing
    codes: FaissIndex | None


def build_index(
    sources: Sequence[Source], row_count: int, dimension: int
) -> tuple[FaissIndex, InvertedLists | None, RowNumbers]:
    """Build the FAISS index of the sources' rows.

    Returns the index, its InvertedLists (None for a flat index), and the new number of each row in the sources' order.
    The rows of one list are numbered in sequence, so that the rows that pass a filter are read from front to back.
    """
    if row_count < IVF_ROWS:
        flat = flat_index(dimension)
        for vectors in _vector_batches(sources):
            flat.add(vectors)
        return flat, None, np.arange(row_count)
    lists = min(int(LISTS_PER_ROOT * row_count**0.5), row_count // MIN_ROWS_PER_LIST)
    sample = sampled_vectors(sources, TRAINING_ROWS_PER_LIST * lists)
    ivf = trained_ivf(sample, lists)
    coded = trained_codes(ivf, sample[:: max(1, len(sample) // CODE_TRAINING_ROWS)])
    new_rows = _fill_lists([ivf] if coded is None else [ivf, coded], sources)
    ivf.make_direct_map()
    codes = coded and fast_scan(coded)
    probing = measure(ivf, codes)
    return ivf, InvertedLists(probing, codes if probing.candidates_by_k else None), new_rows


def _fill_lists(indexes: Sequence[FaissIndex], sources: Sequence[Source]) -> RowNumbers:
    """Add the sources' rows to the inverted lists of indexes with the same centroids, and return the rows' new
    numbers."""
    ivf = indexes[0]
    list_of_row = np.concatenate([nearest_lists(ivf, vectors, 1)[:, 0] for vectors in _vector_batches(sources)])
    for index in indexes:
        reserve_lists(index, np.bincount(list_of_row, minlength=ivf.nlist).tolist())
    new_rows = np.empty_like(list_of_row)
    new_rows[np.argsort(list_of_row, kind="stable")] = np.arange(len(list_of_row))
    begin = 0
    for vectors in _vector_batches(sources):
        end = begin + len(vectors)
        for index in indexes:
            add_to_lists(index, vectors, new_rows[begin:end], list_of_row[begin:end])
        begin = end
    return new_rows


def _vector_batches(sources: Sequence[Source]) -> Iterator[Vectors]:
    for source in sources:
        for begin in range(0, len(source.rows), COPY_BATCH_SIZE):
            yield source.segment.vectors(source.rows[begin : begin + COPY_BATCH_SIZE])


def sampled_rows(sources: Sequence[Source], size: int) -> Iterator[tuple[Segment, RowNumbers]]:
    """Yield each segment with some of its rows: in all `size` rows, evenly spread; all where there are fewer."""
    total, first = sum(len(source.rows) for source in sources), 0
    chosen = np.linspace(0, total, min(size, total), endpoint=False).astype(np.int64)
    for source in sources:
        begin, end = np.searchsorted(chosen, (first, first + len(source.rows))).tolist()
        yield source.segment, source.rows[chosen[begin:end] - first]
        first += len(source.rows)


def sampled_vectors(sources: Sequence[Source], size: int) -> Vectors:
    """Return the vectors of the rows that sampled_rows yields."""
    return np.concatenate([segment.vectors(rows) for segment, rows in sampled_rows(sources, size)])
