"""JointIndex: one search over all segments.

Segments that have codes are searched by these: FAISS returns more candidates than requested, which are then compared by
their vectors. All other segments are searched by their vectors directly. Either way scores are inner products of
vectors (docs/decisions/0033-codes.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import ceil
from typing import Any

import numpy as np

from service.index.bitmaps import RowNumbers
from service.index.gpu import Gpu
from service.index.native import RankedRows, concatenated, exact_search, without_padding
from service.index.segment import Segment
from service.records import Vector, Vectors

MIN_SAVED_ROWS = 4096
"""Minimum number of row comparisons that codes must save: about the cost of a second FAISS call and the work around
it."""


class JointIndex:
    """One index over `segments`. `neighbours`: how many of the `call_size` nearest rows each segment is expected to
    hold, which determines how many of its lists are searched.

    Rows are numbered across all segments, the oldest segment first.
    """

    def __init__(self, segments: Sequence[Segment], neighbours: Sequence[int], call_size: int, gpu: Gpu | None) -> None:
        first_rows = list(accumulate(map(len, segments[:-1]), initial=0))
        rows = max(1, sum(map(len, segments)))
        codes = [
            segment.codes(count, call_size * len(segment) / rows)
            for segment, count in zip(segments, neighbours, strict=True)
        ]
        if sum(segment_codes.saved_rows for segment_codes in codes if segment_codes) < MIN_SAVED_ROWS:
            codes = [None] * len(segments)
        numbered = list(zip(segments, first_rows, codes, strict=True))
        others = [
            (segment, first, segment.faiss_index(count))
            for (segment, first, segment_codes), count in zip(numbered, neighbours, strict=True)
            if not segment_codes
        ]
        coded = [(segment, first, segment_codes.index) for segment, first, segment_codes in numbered if segment_codes]
        self._others = _Group(others, gpu.concatenate if gpu else concatenated)
        self._coded = _Group(coded, concatenated) if coded else None
        self._candidates = ceil(sum(segment_codes.candidates for segment_codes in codes if segment_codes))
        """Number of candidates to take by their codes."""

    def search(self, query: Vector, size: int) -> RankedRows:
        """Return scores and numbers of the `size` nearest rows, best first, fewer where there are fewer."""
        query = np.ascontiguousarray(query, np.float32)
        scores, rows = self._others.search(query, size)
        if self._coded is None:
            return scores, rows
        _, candidates = self._coded.search(query, max(size, self._candidates))
        candidates = np.sort(candidates)  # vectors are fetched faster in the order of their rows
        coded_scores, places = exact_search(self._coded.vectors(candidates), query, size)
        scores = np.concatenate([coded_scores, scores])
        numbers = np.concatenate([self._coded.numbers(candidates[places]), self._others.numbers(rows)])
        best = np.argsort(-scores, kind="stable")[:size]
        return scores[best], numbers[best]


class _Group:
    """Segments that one FAISS call searches, each with the number of its first row among all segments and its FAISS
    index; `join` makes one index of these. The group numbers its rows from 0."""

    def __init__(self, segments: Sequence[tuple[Segment, int, Any]], join: Callable[[list[Any]], Any]) -> None:
        self._segments = [segment for segment, _, _ in segments]
        self._first_rows = np.array(list(accumulate(map(len, self._segments[:-1]), initial=0)), np.int64)
        self._offsets = np.array([first for _, first, _ in segments], np.int64) - self._first_rows
        """For each segment, the number of a row among all segments minus its number in the group."""
        self._index = join([index for _, _, index in segments])

    def search(self, query: Vector, size: int) -> RankedRows:
        """Return scores and group numbers of the `size` nearest rows, fewer where there are fewer."""
        scores, rows = self._index.search(query[None], size)
        return without_padding(scores[0], rows[0])

    def numbers(self, rows: RowNumbers) -> RowNumbers:
        """Return the numbers among all segments of some of the group's rows."""
        return rows + self._offsets[np.searchsorted(self._first_rows, rows, "right") - 1]

    def vectors(self, rows: RowNumbers) -> Vectors:
        """Return the vectors of some of the group's rows in ascending order, shape (len(rows), D)."""
        if len(self._segments) == 1:
            return self._segments[0].vectors(rows)
        parts = np.split(rows, np.searchsorted(rows, self._first_rows[1:]))
        vectors = [
            segment.vectors(part - first)
            for segment, part, first in zip(self._segments, parts, self._first_rows, strict=True)
            if len(part)
        ]
        return np.concatenate(vectors)
