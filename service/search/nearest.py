"""Short path for related notes: the nearest notes of one stored note, in the order of their cosines, from memory.

It answers requests without further examples, ranking options, pages or other sources, which are the most frequent ones.
Where it has no answer, the full search (search.py) gives one, which checks each note in the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.filters import Filter
from service.interfaces import Clock, NoteIndex
from service.read_time import ReadTime
from service.records import Hit
from service.search.freshness import Freshness
from service.search.item_cache import ItemCache, RenderedItem
from service.search.neighbour_cache import NeighbourCache


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest notes with their cosines, best first: min(k, matches) of them. `log_position`: that of the index."""

    hits: Sequence[tuple[RenderedItem, float]]
    log_position: str


class NearestNotes:
    """Finds the nearest notes of one tenant.

    `in_reader_process`: another process of the same service handles writes (docs/decisions/0032-readers.md). An answer
    then needs every acknowledged change in this index: without it, a new note would be missing from the answer.
    """

    def __init__(
        self,
        index: NoteIndex,
        freshness: Freshness,
        neighbours: NeighbourCache,
        items: ItemCache,
        clock: Clock,
        *,
        in_reader_process: bool = False,
    ) -> None:
        self._beside_writer = in_reader_process
        self._index = index
        self._freshness = freshness
        self._neighbours = neighbours
        self._items = items
        self._clock = clock

    async def find(
        self, note_id: str, k: int, where: Filter, min_score: float | None, time_left: ReadTime
    ) -> Nearest | None:
        """Return the notes nearest to a stored one; None where only the full search has an answer.

        For notes without recent changes the index knows whether they pass the filter, so that the store need not be
        asked about each. Raises StoreUnavailable, IndexBehind.
        """
        changes = await self._freshness.changes(time_left)
        if changes is None:
            return None
        if self._beside_writer and changes.ids:
            if not await self._freshness.reaches(changes.last):
                return None
            changes = replace(changes, ids=frozenset())
        position, batches = self._index.position, self._index.begun_batches
        hits = self._answerable(await self._neighbours.search(note_id, k, where), k, min_score)
        if hits is None:
            return None
        ids = [note_id, *(hit.id for hit in hits)]
        if not changes.ids.isdisjoint(ids):
            return None
        items = _present(await self._items.get(ids, time_left), max(changes.time, self._clock()))
        if items is None:
            self._neighbours.forget(note_id, k)
            return None
        is_unchanged = batches is not None and batches == self._index.begun_batches
        if where.narrows and not is_unchanged:
            return None  # a note may pass by a change that its item does not have yet
        return _nearest(items, hits, position)

    def find_nowait(self, note_id: str, k: int, where: Filter, min_score: float | None) -> Nearest | None:
        """Return what `find` does where it need not wait: the index has all changes, and the items are in memory. None
        otherwise."""
        if not self._freshness.is_current():
            return None
        position = self._index.position
        hits = self._answerable(self._neighbours.search_nowait(note_id, k, where), k, min_score)
        if hits is None:
            return None
        kept = self._items.get_nowait([note_id, *(hit.id for hit in hits)])
        items = kept and _present(kept, self._clock())
        return _nearest(items, hits, position) if items else None

    def _answerable(self, hits: list[Hit] | None, k: int, min_score: float | None) -> list[Hit] | None:
        """Return the hits whose score is `min_score` or more; None without hits, and where there are fewer than `k` but
        a note whose vector is from another model might be one: such an answer is not complete."""
        if hits is not None and min_score is not None:
            hits = [hit for hit in hits if hit.score >= min_score]
        return None if hits is not None and len(hits) < k and self._index.other_space else hits


def _present(items: Sequence[RenderedItem | None], now: float) -> list[RenderedItem] | None:
    """Return the items; None where one is missing or has expired at `now`."""
    present = [item for item in items if item and (item.expires_at is None or item.expires_at > now)]
    return present if len(present) == len(items) else None


def _nearest(items: Sequence[RenderedItem], hits: Sequence[Hit], position: str) -> Nearest:
    """Combine items and hits. `items`: that of the note itself, then those of the hits."""
    return Nearest([(item, hit.score) for item, hit in zip(items[1:], hits, strict=True)], position)
