"""Ranker: makes a selection of candidates, and searches deeper until enough notes are left that the store still has."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.filters import Filter
from service.interfaces import NoteIndex
from service.ranking.selection import Selection, SelectionOptions
from service.ranking.strategies import Vectors
from service.records import Hit
from service.search.sources import MAX_DEPTH, Candidates, Source
from service.search.verified import VerifiedNotes

BLOCK_SIZE = 128
"""Candidates of the first block that options choose among. Each further block doubles the depth, up to MAX_DEPTH."""
MAX_CHOSEN_IN_LOOP = 32
"""Bound on a selection that is made in the event loop, in which each note compares a block: ten take 0.3 ms."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """A selection, and whether it has min(count, matches) notes."""

    selection: Selection
    complete: bool


class Ranker:
    """Selects notes for one request. `min_score`: None for no bound. `notes`: those that were read from the store."""

    def __init__(
        self,
        index: NoteIndex,
        source: Source,
        where: Filter,
        min_score: float | None,
        options: SelectionOptions,
        notes: VerifiedNotes,
    ) -> None:
        self._index = index
        self._source = source
        self._where = where
        self._min_score = min_score
        self._options = options
        self._notes = notes

    async def rank(self, count: int, *, verify: bool) -> Ranking:
        """Select `count` notes, fewer where there are fewer. `verify`: check that the store has each. Raises
        ExamplesMissing, IndexBehind."""
        return await (self._rank_plainly if self._options.plain else self._rank_by_blocks)(count, verify)

    async def _rank_plainly(self, count: int, verify: bool) -> Ranking:
        """Take the nearest notes; search for twice as many while too few are left."""
        depth = count
        while True:
            candidates = await self._find(depth)
            if verify:
                await self._notes.read([hit.id for hit in candidates.hits])
            selection = Selection(self._options).extended(candidates.hits, None, self._notes.known, count)
            if len(selection) >= count or candidates.exhausted or self._notes.degraded:
                return Ranking(selection, complete=True)
            depth *= 2

    async def _rank_by_blocks(self, count: int, verify: bool) -> Ranking:
        """Choose among the nearest BLOCK_SIZE candidates, then among the next, until enough are chosen. No block
        depends on `count`."""
        selection, seen = Selection(self._options), set[str]()
        depth = BLOCK_SIZE
        while True:
            candidates = await self._find(depth)
            block = [hit for hit in candidates.hits if hit.id not in seen]
            seen |= {hit.id for hit in block}
            selection = await self._extend(selection, block, count, verify)
            if len(selection) >= count or candidates.exhausted or self._notes.degraded:
                return Ranking(selection, complete=True)
            if depth >= MAX_DEPTH:
                return Ranking(selection, complete=False)
            depth *= 2

    async def _extend(self, selection: Selection, block: list[Hit], count: int, verify: bool) -> Selection:
        """Extend the selection by a block. A note that was not read yet is taken for one that passes the filter and the
        caps; where it does not, once it is read, the choice is made again."""
        vectors: Vectors | None = None
        if self._options.needs_vectors:
            block, vectors = await self._with_vectors(block)
        if self._options.boosts:
            await self._notes.read([hit.id for hit in block])
        in_loop = count <= MAX_CHOSEN_IN_LOOP
        while True:
            arguments = block, vectors, self._notes.known, count
            extended = (
                selection.extended(*arguments) if in_loop else await asyncio.to_thread(selection.extended, *arguments)
            )
            if not verify or not await self._notes.read(extended.ids):
                return extended

    async def _find(self, depth: int) -> Candidates:
        """Return the candidates that score no less than the bound."""
        candidates = await self._source.find(depth, self._where)
        if self._min_score is None:
            return candidates
        hits = [hit for hit in candidates.hits if hit.score >= self._min_score]
        return Candidates(hits, candidates.exhausted or len(hits) < len(candidates.hits))

    async def _with_vectors(self, block: Sequence[Hit]) -> tuple[list[Hit], Vectors | None]:
        """Return the candidates whose vector the index has, and their vectors, (N, D)."""
        vectors = await self._index.vectors([hit.id for hit in block])
        pairs = [(hit, vector) for hit, vector in zip(block, vectors, strict=True) if vector is not None]
        return [hit for hit, _ in pairs], np.stack([vector for _, vector in pairs]) if pairs else None
