"""Building the FAISS index of a sealed segment from the rows of the segments that it replaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from service.index.bitmaps import RowNumbers
from service.index.native import (
    FaissIndex,
    Vectors,
    add_to_lists,
    assign_lists,
    flat_index,
    reserve_lists,
    search_lists,
    trained_ivf,
)
from service.index.segment import Segment

IVF_ROWS = 8192
"""A segment of fewer rows has no inverted file and is searched exactly."""
LISTS_PER_ROOT = 2
"""Inverted lists as a multiple of the square root of the rows. Twice as many took as long to search and three times as
long to train (docs/decisions/0011-segments.md)."""
MIN_ROWS_PER_LIST = 40
"""Rows that an inverted list has at least: FAISS warns of centroids with fewer than 39 training vectors."""
TRAINING_ROWS_PER_LIST = 64
"""Rows that the centroids are trained on, for each list."""
RECALL = 0.998
"""Share of the true neighbours that the measured number of lists finds."""
MEASURED_QUERIES = 128
"""Rows of a new segment that are searched for to measure how many lists have their neighbours."""
MEASURED_K = (10, 30, 100, 300, 1000)
"""Numbers of neighbours for which that is measured; between them it is interpolated."""
COPY_BATCH_SIZE = 16384
"""Rows whose vectors are copied at a time."""


@dataclass(frozen=True, slots=True)
class Source:
    """A segment that is to be merged, and its rows that were alive when the merge was planned."""

    segment: Segment
    rows: RowNumbers

    @classmethod
    def of(cls, segment: Segment) -> Source:
        """Return a segment with its living rows."""
        return cls(segment, np.flatnonzero(segment.alive[: len(segment)]))


def build_index(
    sources: Sequence[Source], row_count: int, dimension: int
) -> tuple[FaissIndex, dict[int, int], RowNumbers]:
    """Build the FAISS index of the sources' rows.

    Returns the index, the number of lists by k (empty where it has none), and the new number of each row in the
    sources' order. The rows of one list are numbered in sequence, so that what passes a filter is read from front to
    back.
    """
    if row_count < IVF_ROWS:
        flat = flat_index(dimension)
        for vectors in _vector_batches(sources):
            flat.add(vectors)
        return flat, {}, np.arange(row_count)
    lists = min(int(LISTS_PER_ROOT * row_count**0.5), row_count // MIN_ROWS_PER_LIST)
    ivf = trained_ivf(_sample(sources, row_count, TRAINING_ROWS_PER_LIST * lists), lists)
    new_rows = _fill_lists(ivf, sources)
    ivf.make_direct_map()
    return ivf, _measure_lists(ivf), new_rows


def _fill_lists(ivf: FaissIndex, sources: Sequence[Source]) -> RowNumbers:
    """Add the sources' rows to their inverted lists, and return their new numbers."""
    list_of_row = np.concatenate([assign_lists(ivf, vectors) for vectors in _vector_batches(sources)])
    reserve_lists(ivf, np.bincount(list_of_row, minlength=ivf.nlist).tolist())
    new_rows = np.empty_like(list_of_row)
    new_rows[np.argsort(list_of_row, kind="stable")] = np.arange(len(list_of_row))
    begin = 0
    for vectors in _vector_batches(sources):
        end = begin + len(vectors)
        add_to_lists(ivf, vectors, new_rows[begin:end], list_of_row[begin:end])
        begin = end
    return new_rows


def _vector_batches(sources: Sequence[Source]) -> Iterator[Vectors]:
    for source in sources:
        for begin in range(0, len(source.rows), COPY_BATCH_SIZE):
            yield source.segment.vectors(source.rows[begin : begin + COPY_BATCH_SIZE])


def _sample(sources: Sequence[Source], row_count: int, size: int) -> Vectors:
    """Return `size` vectors or somewhat more, evenly spread over all rows; all where there are fewer."""
    step = max(1, row_count // size)
    return np.concatenate([source.segment.vectors(source.rows[::step]) for source in sources])


def _measure_lists(ivf: FaissIndex) -> dict[int, int]:
    """Return for each of MEASURED_K the fewest lists in which rows of the index, as queries, find RECALL of the
    neighbours that all lists have. A query does not count as its own neighbour."""
    step = max(1, ivf.ntotal // MEASURED_QUERIES)
    queries = ivf.reconstruct_batch(np.arange(0, ivf.ntotal, step))
    true_neighbours = search_lists(ivf, queries, MEASURED_K[-1] + 1, ivf.nlist)
    lists_by_k = {}
    lists = 1
    for k in MEASURED_K:
        while lists < ivf.nlist:
            neighbours = search_lists(ivf, queries, k + 1, lists)
            pairs = zip(neighbours, true_neighbours[:, : k + 1], strict=True)
            hits = [len(np.intersect1d(found_rows, true_rows)) - 1 for found_rows, true_rows in pairs]
            if np.mean(hits) >= RECALL * k:
                break
            lists = min(ivf.nlist, -(-lists * 5 // 4))
        lists_by_k[k] = lists
    return lists_by_k
