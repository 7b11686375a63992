"""View: the segments of an index as they are at one moment, and a search over all of them.

FAISS is asked once for all segments, and afterwards it is seen which of the rows may be found: a call for each, with
what Python does around it, takes longer than what is called. Where too few of the nearest pass a filter, the segments
are gone through one by one, each with its own mask.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from itertools import accumulate
from math import ceil, sqrt
from typing import Any

import numpy as np

from service.filters import Filter
from service.index.gpu import Gpu
from service.index.sealed import TRIED_K
from service.index.segment import Segment, Vectors, swig
from service.index.tags import Bits, CompiledFilter, RowNumbers, TagDictionary, has
from service.records import Hit, Vector

DEVIATIONS = 3.0
"""A number that is only expected is taken so many standard deviations larger."""
AT_ONCE = (10, 20, 40, 80, 160, 320, 640, 1000)
"""So many of the nearest are asked for in one call, or fewer."""
Shown = Callable[[int, int], bool]
"""Whether a row, by its segment's place and its number there, may be found."""


class SegmentSearcher:
    """`segments`: oldest first; the last one is the head, and alone may get rows. `replaced`: how many rows were, by a
    row that could be found already, before they were buried."""

    def __init__(self, segments: tuple[Segment, ...], codes: TagDictionary, gpu: Gpu | None) -> None:
        self.segments = segments
        self.replaced = 0
        self._codes = codes
        self._turn = gpu.exclusive if gpu else nullcontext
        self._starts = list(accumulate(map(len, segments[:-1]), initial=0))
        rows = max(1, sum(map(len, segments)))
        shares = [len(each) / rows if each.has_lists else 1.0 for each in segments]
        self._of_each = [[max(TRIED_K[0], expected(k, share)) for share in shares] for k in AT_ONCE]
        """By k: of so many of the nearest in all, each segment is searched as for so many."""
        self._by_k = [
            _in_one([each.whole(k) for each, k in zip(segments, of_each, strict=True)]) for of_each in self._of_each
        ]

    def find(self, vector: Vector, k: int, where: Filter, now: float) -> list[Hit]:
        """See VectorIndex.search. Of a note that is replaced meanwhile the new row is found, the old one, or both."""
        if k < 1:
            return []
        asked = self._codes.asked(where)
        if where.exact:
            return self._one_by_one(vector, k, asked, (segment.filter_rows(asked, now) for segment in self.segments))
        if where.narrows:
            chosen = [segment.filter_rows(asked, now) for segment in self.segments]
            matches = sum(matches for _, matches in chosen)
            hits, _ = self._in_one_call(vector, k, where.exclude, matches, _among([bits for bits, _ in chosen]))
            return _best(hits, k) if len(hits) == k else self._one_by_one(vector, k, asked, chosen)
        before, living = self.replaced, sum(segment.living for segment in self.segments)
        hits, hidden = self._in_one_call(vector, k, where.exclude, living, self._showing(now))
        if len(hits) == k and not (hidden and self.replaced != before):  # what was hidden may be what came too late
            return _best(hits, k)
        return self._one_by_one(vector, k, asked, (segment.filter_rows(asked, now) for segment in self.segments))

    def _one_by_one(
        self, vector: Vector, k: int, asked: CompiledFilter, chosen: Iterable[tuple[Bits | None, int]]
    ) -> list[Hit]:
        """Older segments come first, wholly: what is replaced in one of them meanwhile is found again behind it."""
        found = [segment.find(vector, k, asked, *of) for segment, of in zip(self.segments, chosen, strict=True)]
        return _best([hit for part in zip(self.segments, found, strict=True) for hit in _hits(*part)], k)

    def _in_one_call(
        self, vector: Vector, k: int, left_out: frozenset[str], matches: int, shown: Shown
    ) -> tuple[list[Hit], bool]:
        """The best `k` of the rows that are `shown`, which are `matches`, fewer where these are not near enough, or not
        spread over the segments as rows at random; and whether others were in the way."""
        rows = self._starts[-1] + len(self.segments[-1])
        wanted = needed(k, min(1.0, matches / max(1, rows))) + len(left_out)
        if matches < k or wanted > AT_ONCE[-1]:
            return [], False
        of = bisect_left(AT_ONCE, wanted - 1)  # lists were measured for the nearest of a row beside itself
        query = np.ascontiguousarray(vector, np.float32)[None]
        with self._turn():
            scores, labels = self._by_k[of].search(query, wanted)
        hits, hidden, gave = list[Hit](), False, [0] * len(self.segments)
        for score, label in zip(scores[0].tolist(), labels[0].tolist(), strict=True):
            if label < 0 or len(hits) == k:
                break
            place = bisect_right(self._starts, label) - 1
            gave[place] += 1
            segment, row = self.segments[place], label - self._starts[place]
            if not shown(place, row):
                hidden = True
            elif (note_id := segment.id(row)) not in left_out:
                hits.append(Hit(note_id, score))
        as_expected = all(given <= most + 1 for given, most in zip(gave, self._of_each[of], strict=True))
        return hits if as_expected else [], hidden

    def _showing(self, now: float) -> Shown:
        segments = self.segments
        return lambda place, row: segments[place].is_visible(row, now)


def _among(chosen: Sequence[Bits | None]) -> Shown:
    def shown(place: int, row: int) -> bool:
        bits = chosen[place]
        return bits is not None and has(bits, row)

    return shown


def expected(k: int, share: float) -> int:
    """Of `k` rows at random, at most so many are in a part that has `share` of all (binomial)."""
    return min(k, ceil(k * share + DEVIATIONS * sqrt(k * share * (1 - share))))


def needed(k: int, share: float) -> int:
    """Of rows at random, `k` are in a part that has `share` of all, among so many (negative binomial); 0: none is."""
    return ceil((k + DEVIATIONS * sqrt(k * (1 - share))) / share) if share else 0


def _in_one(indexes: Sequence[Any]) -> Any:
    """One FAISS index, whose rows are those of all, one behind the other."""
    every = swig.IndexShards(indexes[0].d, False, True)
    for index in indexes:
        every.add_shard(index)
    return every


def _hits(segment: Segment, found: tuple[Vectors, RowNumbers]) -> list[Hit]:
    scores, rows = found
    return [Hit(segment.id(row), score) for score, row in zip(scores.tolist(), rows.tolist(), strict=True)]


def _best(hits: Sequence[Hit], k: int) -> list[Hit]:
    """Ties by id."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]
