"""Ranker: selects notes among candidates, and searches deeper until enough are left that the store still has."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from service.filters import Filter
from service.interfaces import NoteIndex
from service.ranking.selection import Selection, SelectionOptions
from service.records import Hit, IndexRows
from service.search.sources import MAX_DEPTH, POOL_PER_RECALLED, Candidates, Source
from service.search.verified import VerifiedNotes

BLOCK_SIZE = 128
"""Number of candidates in the first block, where options need blocks. Each further block doubles the depth, up to
MAX_DEPTH."""
MAX_SELECTION_COMPARISONS = 32 * BLOCK_SIZE
"""Maximum number of comparisons of a selection that is made in the event loop: each chosen note is compared with all
notes of a block. Ten chosen from 128 take 0.3 ms, from 8,000 17 ms."""
MAX_BOOSTS_IN_LOOP = 1000
"""Maximum number of boosts, one for each of the request's and each note of a block, that are computed in the event
loop: the last block may have 2,048 notes, a request 20 boosts."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """A selection. `complete`: as many notes as requested were chosen, or no further note of the store could be."""

    selection: Selection
    complete: bool

    def cut(self, count: int) -> Ranking:
        """Return the ranking with `count` notes at most; it is not complete where it had more."""
        if len(self.selection) <= count:
            return self
        return Ranking(self.selection.cut(count), complete=False)


class Ranker:
    """Selects notes for one request. `min_score`: None for no bound. `notes`: notes that were read from the store."""

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
            selection = await self._take(candidates.hits, count, verify)
            if len(selection) >= count or candidates.exhausted or candidates.cut or self._notes.degraded:
                return self._ranking(selection, count, candidates)
            depth *= 2

    async def _take(self, hits: Sequence[Hit], count: int, verify: bool) -> Selection:
        """Take the first `count` hits. `verify`: only those that the store has, of which no more are read than needed:
        `best_score` may have thousands of candidates for ten notes."""
        end = count
        while True:
            if verify:
                await self._notes.read([hit.id for hit in hits[:end]])
            selection = Selection(self._options).extended(hits[:end], None, self._notes.known, count)
            if len(selection) >= count or end >= len(hits):
                return selection
            end *= 2

    async def _rank_by_blocks(self, count: int, verify: bool) -> Ranking:
        """Choose among the nearest BLOCK_SIZE candidates, then among the next, until enough are chosen. Blocks do not
        depend on `count`."""
        selection, seen = Selection(self._options), set[str]()
        depth = BLOCK_SIZE
        while True:
            candidates = await self._find(depth, depth // POOL_PER_RECALLED, with_rows=True)
            block, rows = await self._unseen(candidates, seen)
            seen.update(hit.id for hit in candidates.hits)
            selection = await self._extend(selection, block, rows, count, verify)
            ended = len(selection) >= count or candidates.exhausted or candidates.cut or self._notes.degraded
            if ended or depth >= MAX_DEPTH:
                return self._ranking(selection, count, candidates)
            depth *= 2

    def _ranking(self, selection: Selection, count: int, candidates: Candidates) -> Ranking:
        """Return the ranking of a selection among the last candidates. It may lack notes where further candidates
        exist, or notes whose vectors are from another model."""
        is_exhausted = candidates.exhausted and not self._index.other_space
        return Ranking(selection, complete=len(selection) >= count or is_exhausted)

    async def _unseen(self, candidates: Candidates, seen: Collection[str]) -> tuple[Sequence[Hit], IndexRows]:
        """Return the candidates of a block, those that earlier blocks did not have, and their rows; candidates that
        have left the index meanwhile are dropped."""
        hits, rows = candidates.hits, candidates.rows
        if seen:
            places = [place for place, hit in enumerate(hits) if hit.id not in seen]
            hits, rows = [hits[place] for place in places], rows and rows.take(places)
        if rows is None:
            rows = await self._index.rows([hit.id for hit in hits])
            if len(rows.ids) < len(hits):
                present = set(rows.ids)
                hits = [hit for hit in hits if hit.id in present]
        return hits, rows

    async def _extend(
        self, selection: Selection, block: Sequence[Hit], rows: IndexRows, count: int, verify: bool
    ) -> Selection:
        """Extend the selection by a block. A note that was not read yet is assumed to be as in the index; where the
        store's version differs, the selection is made again."""
        if self._options.boosts:
            await self._notes.read([hit.id for hit in block])
        boosts = len(self._options.boosts) * len(block)
        in_loop = count * len(block) <= MAX_SELECTION_COMPARISONS and boosts <= MAX_BOOSTS_IN_LOOP
        while True:
            arguments = block, rows, self._notes.known, count
            extended = (
                selection.extended(*arguments) if in_loop else await asyncio.to_thread(selection.extended, *arguments)
            )
            if not verify or not await self._notes.read(extended.ids) or self._are_as_indexed(extended.ids, rows):
                return extended

    def _are_as_indexed(self, ids: Sequence[str], rows: IndexRows) -> bool:
        """Return whether the store has all these chosen notes, and those of the block with the same category and author
        as `rows`."""
        place_of = {note_id: place for place, note_id in enumerate(rows.ids)}
        for note_id in ids:
            stored, place = self._notes.known.get(note_id), place_of.get(note_id)
            if stored is None:
                return False
            if place is not None and (stored.category, stored.note.author) != (
                rows.category(place),
                rows.author(place),
            ):
                return False
        return True

    async def _find(self, depth: int, recall_k: int | None = None, *, with_rows: bool = False) -> Candidates:
        """Return the candidates that score `min_score` or more."""
        candidates = await self._source.find(depth, self._where, recall_k, with_rows=with_rows)
        if self._min_score is None:
            return candidates
        hits = [hit for hit in candidates.hits if hit.score >= self._min_score]
        rows = candidates.rows and candidates.rows.take(range(len(hits)))
        none_better = len(hits) < len(candidates.hits) and not candidates.cut
        return Candidates(hits, candidates.exhausted or none_better, rows, candidates.cut)
