"""Sources of candidates for a request, with scores, the best first. ContentSource compares vectors; fusion.py adds
other evidence."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from service.filters import Filter
from service.interfaces import NoteIndex
from service.ranking.strategies import (
    Numbers,
    Query,
    best_scores,
    cosines,
    linear_query,
    max_weight,
    scaled_sigmoid,
    total_weight,
)
from service.records import Hit, IndexRows, Vectors

POOL_SIZE, WORDS_POOL_SIZE = 256, 128
"""Numbers of candidates that the vectors and behaviour each propose, and that words propose. They are fixed, since the
score of a candidate must not depend on how many notes are requested. With 256 by words no more related notes were found
(docs/log/words.md)."""
POOL_PER_RECALLED = 8
"""Candidates of a pool for each one that is found with the full recall of a plain search; the nearest ones are. The
others give re-ranking more to choose from, and may be missed more often. At 20,000 notes the nearest 128 then have a
recall of 98.5%, in less than half the time that 99.8% takes."""
MAX_COMPARED_IN_LOOP = 10_000
"""Maximum number of cosines, one for each row and example, that are computed in the event loop; more are left to a
thread."""
MAX_SORTED_IN_LOOP = 1000
"""Maximum candidates of `best_score` that are sorted in the event loop; more are left to a thread."""
SCORE_BATCH_SIZE = 4096
"""Rows that `best_score` reads from the index and compares at a time: a hundred examples may have 100,000 candidates,
whose vectors take 140 MB."""
MAX_DEPTH = 4096
"""Bound on the candidates of a source where options make a search go deeper than k; published at GET /limits."""
MIN_DEPTH = 1024
"""Notes that `best_score` may look at near each example, however many examples share MAX_DEPTH: more than a list for
paging has."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates of a source, the best first. `exhausted`: there are no others. `rows`: the rows of the hits, in the
    same order; None where they have not been read from the index. `cut`: the search has reached its bound on
    depth, so the hits may lack notes that are better than some of them, and a deeper search finds none."""

    hits: Sequence[Hit]
    exhausted: bool
    rows: IndexRows | None = None
    cut: bool = False


class Source(Protocol):
    """Finds candidates for one request. `unit`: factor that makes its scores comparable with a cosine."""

    unit: float

    async def find(
        self, depth: int, where: Filter, recall_k: int | None = None, *, with_rows: bool = False
    ) -> Candidates:
        """Return up to about `depth` candidates, of which the nearest `recall_k` are found with the recall of a search
        for that many (None: all). A deeper search begins with the candidates of a shallower one, as far as the index
        finds them. `with_rows`: also return their rows, where the source has these at hand."""


class ContentSource:
    """Source of candidates by their vectors. Raises NoDirection where the examples cancel out."""

    def __init__(self, index: NoteIndex, query: Query) -> None:
        self._index = index
        self._linear = None if query.strategy == "best_score" else linear_query(query)
        self._query = query
        self.unit = 1 / total_weight(query) if query.strategy == "sum_scores" else 1.0

    async def find(
        self, depth: int, where: Filter, recall_k: int | None = None, *, with_rows: bool = False
    ) -> Candidates:
        if self._linear is None:
            return await self._find_best_scores(depth, where)
        arguments, rows = (self._linear.direction, depth, where, recall_k), None
        if with_rows:
            hits, rows = await self._index.search_rows(*arguments)
        else:
            hits = await self._index.search(*arguments)
        exhausted = len(hits) < depth
        if self._linear.scale != 1.0:
            hits = [Hit(hit.id, hit.score * self._linear.scale) for hit in hits]
        return Candidates(hits, exhausted, rows)

    async def scores(self, vectors: Vectors) -> Numbers:
        """Return the scores of vectors (N, D), shape (N,)."""
        examples = 1 if self._linear else len(self._query.positive) + len(self._query.negative)
        if len(vectors) * examples <= MAX_COMPARED_IN_LOOP:
            return self._compare(vectors)
        return await asyncio.to_thread(self._compare, vectors)

    def _compare(self, vectors: Vectors) -> Numbers:
        if self._linear is None:
            return best_scores(self._query, vectors)
        return self._linear.scale * cosines(vectors, self._linear.direction[None])[:, 0]

    async def _find_best_scores(self, depth: int, where: Filter) -> Candidates:
        """Search near each positive example, or far from each negative one where there is none, and keep the candidates
        that score no less than any note that was not found could (the threshold algorithm of Fagin et al. 2003). The
        deepest search keeps all: its depth is the same for every k, so that pages continue each other."""
        positive, negative = self._query.positive, self._query.negative
        examples, sign = (positive, 1.0) if len(positive) else (negative, -1.0)
        deepest = max(MAX_DEPTH // len(examples), MIN_DEPTH)
        depth, lists = min(depth, deepest), []
        for vector in examples.vectors:
            lists.append(await self._index.search(sign * vector, depth, where))
            await asyncio.sleep(0)  # a search may run in the event loop, and there may be a hundred of them
        exhausted = any(len(hits) < depth for hits in lists)  # such a list has every match
        cut = depth == deepest and not exhausted
        hits = await self._score(list(dict.fromkeys(hit.id for hits in lists for hit in hits)))
        if not hits:
            return Candidates([], exhausted)
        threshold = -np.inf
        if not exhausted and not cut:
            weights = examples.weights / max_weight(self._query)
            # No note that is in none of the lists has a larger weighted cosine to a positive example, or a smaller one
            # to all negative examples, than this.
            cosine = max(w * sign * near[-1].score for w, near in zip(weights.tolist(), lists, strict=True))
            threshold = sign * float(scaled_sigmoid(np.array(cosine)))
        in_loop = len(hits) <= MAX_SORTED_IN_LOOP
        ranked = by_score(hits, threshold) if in_loop else await asyncio.to_thread(by_score, hits, threshold)
        return Candidates(ranked, exhausted, cut=cut)

    async def _score(self, ids: Sequence[str]) -> list[Hit]:
        """Return hits for those of the notes that are in the index, in the order of `ids`."""
        hits: list[Hit] = []
        for start in range(0, len(ids), SCORE_BATCH_SIZE):
            rows = await self._index.rows(ids[start : start + SCORE_BATCH_SIZE])
            hits += map(Hit, rows.ids, (await self.scores(rows.vectors)).tolist())
        return hits


def by_score(hits: Iterable[Hit], threshold: float = -np.inf) -> list[Hit]:
    """Return the hits that score `threshold` or more by descending score, equal ones by id."""
    return sorted((hit for hit in hits if hit.score >= threshold), key=lambda hit: (-hit.score, hit.id))
