"""The short path of related notes: those of one stored note in the order of their cosines, from memory.

It answers a request without further examples, options of the order, pages or other sources, which is what a community
asks most. Where it has no answer, the whole search (search.py) gives one, which asks the store about each note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.filters import Filter
from service.interfaces import Clock, NoteIndex
from service.read_time import ReadTime
from service.search.freshness import Freshness
from service.search.item_cache import ItemCache, RenderedItem
from service.search.neighbour_cache import NeighbourCache


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest notes with their cosines, best first: min(k, matches) of them. `log_position`: that of the index."""

    hits: Sequence[tuple[RenderedItem, float]]
    log_position: str


class NearestNotes:
    """Finds the nearest notes of one tenant."""

    def __init__(
        self, index: NoteIndex, freshness: Freshness, neighbours: NeighbourCache, items: ItemCache, clock: Clock
    ) -> None:
        self._index = index
        self._freshness = freshness
        self._neighbours = neighbours
        self._items = items
        self._clock = clock

    async def find(
        self, note_id: str, k: int, where: Filter, min_score: float | None, time_left: ReadTime
    ) -> Nearest | None:
        """Return the notes nearest to a stored one; None where only the whole search has an answer.

        Of notes that did not change lately the index knows whether they pass the filter, so that the store need not be
        asked about each. Raises StoreUnavailable, IndexBehind.
        """
        changes = await self._freshness.changes(time_left)
        if changes is None:
            return None
        position = self._index.position
        hits = await self._neighbours.search(note_id, k, where)
        if hits is None:
            return None
        if min_score is not None:
            hits = [hit for hit in hits if hit.score >= min_score]
        ids = [note_id, *(hit.id for hit in hits)]
        if not changes.ids.isdisjoint(ids):
            return None
        items = await self._items.get(ids, time_left)
        now = max(changes.time, self._clock())
        present = [item for item in items if item and (item.expires_at is None or item.expires_at > now)]
        if len(present) < len(items):
            self._neighbours.forget(note_id, k)
            return None
        return Nearest([(item, hit.score) for item, hit in zip(present[1:], hits, strict=True)], position)
