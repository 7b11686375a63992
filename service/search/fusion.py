"""Fusion of sources: one list of candidates from the vectors and from other evidence that notes are related."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from service.filters import Filter
from service.interfaces import NoteIndex
from service.ranking.strategies import Numbers
from service.records import Hit
from service.search.sources import POOL_PER_RECALLED, POOL_SIZE, Candidates, ContentSource, by_score


class Evidence(Protocol):
    """Evidence, beside the vectors, that notes are related to the examples of one request. `pool_size`: how many
    candidates it proposes."""

    pool_size: int

    async def candidates(self, count: int, where: Filter, known: Sequence[str]) -> list[str]:
        """Return ids of the `count` most related notes that pass a filter, in no order. `known`: ids of the candidates
        so far, which it may return again."""

    async def adjust(self, ids: Sequence[str], scores: Numbers) -> Numbers:
        """Return the scores of candidates, (N,), with what the evidence adds to them, which is never less than 0."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates of all sources, the best first. `least`: no note outside the pool has a higher score, except those
    that the index has missed; infinite where no such bound is known. `exhausted`: there are no other candidates."""

    hits: Sequence[Hit]
    least: float
    exhausted: bool


async def find_nearest(content: ContentSource, where: Filter) -> Candidates:
    """Return the candidates that the vectors contribute to a pool."""
    return await content.find(POOL_SIZE, where, POOL_SIZE // POOL_PER_RECALLED)


class FusedSource:
    """Source of candidates by the vectors and by other evidence.

    The pool has the best candidates of each; their scores are content scores that all evidence adjusts. Notes outside
    the pool have their content scores alone. `nearest`: what `find_nearest` returned for the content and the same
    filter.
    """

    def __init__(
        self, index: NoteIndex, content: ContentSource, evidence: Sequence[Evidence], nearest: Candidates
    ) -> None:
        self._index = index
        self._content = content
        self._evidence = evidence
        self._nearest = nearest
        self._pool: Pool | None = None
        self.unit = content.unit

    async def find(
        self, depth: int, where: Filter, recall_k: int | None = None, *, with_rows: bool = False
    ) -> Candidates:
        if self._pool is None:
            self._pool = await self._make_pool(where)
        pool = self._pool
        sure = [hit for hit in pool.hits if hit.score >= pool.least]
        if pool.exhausted or depth <= len(sure):
            return Candidates(pool.hits[:depth], pool.exhausted and depth >= len(pool.hits))
        nearest = await self._content.find(depth, where, recall_k)
        inside = {hit.id for hit in pool.hits}
        # The pool may have missed a note that a deeper search finds: it is placed after what a shallow search returns.
        further = [Hit(hit.id, min(hit.score, pool.least)) for hit in nearest.hits if hit.id not in inside]
        hits = sorted([*pool.hits, *further], key=lambda hit: (-hit.score, hit.id not in inside, hit.id))
        if not nearest.exhausted:  # a note that was not found yet may come before one with a lower score
            least = min(pool.least, nearest.hits[-1].score if nearest.hits else math.inf)
            hits = [hit for hit in hits if hit.score >= least]
        if nearest.cut:  # no deeper search will find more than these
            return Candidates(hits, nearest.exhausted, cut=True)
        return Candidates(hits[:depth], nearest.exhausted and depth >= len(hits))

    async def _make_pool(self, where: Filter) -> Pool:
        nearest = self._nearest.hits[:POOL_SIZE]
        scores = {hit.id: hit.score for hit in nearest}
        exhausted = self._nearest.exhausted and len(nearest) == len(self._nearest.hits)
        for evidence in self._evidence:
            proposed = await evidence.candidates(evidence.pool_size, where, list(scores))
            scores |= await self._content_scores([note_id for note_id in proposed if note_id not in scores])
        ids = list(scores)
        adjusted = np.fromiter(scores.values(), np.float64, len(ids))
        for evidence in self._evidence:
            adjusted = await evidence.adjust(ids, adjusted)
        hits = by_score(map(Hit, ids, adjusted.tolist()))
        return Pool(hits, nearest[-1].score if nearest else math.inf, exhausted)

    async def _content_scores(self, ids: Sequence[str]) -> dict[str, float]:
        """Return the content scores of notes by their ids. Notes that the index does not have are left out."""
        rows = await self._index.rows(ids)
        return dict(zip(rows.ids, (await self._content.scores(rows.vectors)).tolist(), strict=True))
