"""Fusion of sources: one list of candidates from the vectors and from other evidence that notes are related."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from service.filters import Filter
from service.interfaces import NoteIndex
from service.ranking.strategies import Numbers
from service.records import Hit
from service.search.sources import POOL_PER_RECALLED, POOL_SIZE, Candidates, ContentSource


class Evidence(Protocol):
    """Evidence, beside the vectors, that notes are related to the examples of one request. `pool_size`: how many
    candidates it puts forward."""

    pool_size: int

    async def candidates(self, count: int, where: Filter, known: Sequence[str]) -> list[str]:
        """Return ids of the `count` most related notes that pass a filter, in no order. `known`: ids of the candidates
        so far, which it may return again."""

    async def adjust(self, ids: Sequence[str], scores: Numbers) -> Numbers:
        """Return the scores of candidates, (N,), with what the evidence adds to them."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates of all sources: their scores times -1 and their ids, the best first. `exhausted`: there are no
    others."""

    ranked: Sequence[tuple[float, str]]
    exhausted: bool


async def find_nearest(content: ContentSource, where: Filter) -> Candidates:
    """Return the candidates that the vectors put into a pool."""
    return await content.find(POOL_SIZE, where, POOL_SIZE // POOL_PER_RECALLED)


class FusedSource:
    """Source of candidates of the vectors and of other evidence.

    The pool, which is the best of each, is ordered by the content's scores as all evidence adjusts them. Behind it come
    further notes by their vectors alone. `nearest`: what `find_nearest` returned for the content and the same filter.
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
        hits = [Hit(note_id, -negated) for negated, note_id in pool.ranked[:depth]]
        if pool.exhausted or depth <= len(pool.ranked):
            return Candidates(hits, pool.exhausted and depth >= len(pool.ranked))
        nearest = await self._content.find(depth, where, recall_k)
        ids, last = {hit.id for hit in hits}, hits[-1].score
        further = [Hit(hit.id, min(hit.score, last)) for hit in nearest.hits if hit.id not in ids]
        return Candidates([*hits, *further], nearest.exhausted)

    async def _make_pool(self, where: Filter) -> Pool:
        nearest = self._nearest
        scores = {hit.id: hit.score for hit in nearest.hits[:POOL_SIZE]}
        exhausted = nearest.exhausted and len(nearest.hits) <= POOL_SIZE
        for evidence in self._evidence:
            proposed = await evidence.candidates(evidence.pool_size, where, list(scores))
            scores |= await self._content_scores([note_id for note_id in proposed if note_id not in scores])
        ids = list(scores)
        adjusted = np.fromiter(scores.values(), np.float64, len(ids))
        for evidence in self._evidence:
            adjusted = await evidence.adjust(ids, adjusted)
        return Pool(sorted(zip((-adjusted).tolist(), ids, strict=True)), exhausted)

    async def _content_scores(self, ids: Sequence[str]) -> dict[str, float]:
        """Return the content scores of notes by their ids. Notes that the index does not have are left out."""
        rows = await self._index.rows(ids)
        return dict(zip(rows.ids, self._content.scores(rows.vectors).tolist(), strict=True))
