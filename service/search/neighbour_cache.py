"""NeighbourCache: keeps the nearest notes of a note in memory until a change may alter the list.

A change may alter a list if it names a note of the list, or if its vector is at least as near as the last note of the
list. So a list is compared with the changes since it was found, and at any rate of changes most lists stay valid
(docs/decisions/0036-kept-neighbours.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.filters import Filter
from service.index.native import exact_search
from service.interfaces import NoteIndex
from service.records import Centre, ChangedNotes, Hit, StoredNote, Vector, Vectors
from service.search.shared_lru import SharedLru
from service.telemetry import Telemetry

MAX_CHANGES, MIN_CHANGES = 512, 16
"""Bounds on n, where the last n to 2 n changes of a tenant are kept. Between the bounds, n is the number of the
tenant's lists: lists older than the kept changes then cost at most one search per change, and the changes take about as
much memory as the lists, or as MIN_CHANGES of them. A batch of the log has no more than MAX_CHANGES (READ_BATCH_SIZE).
"""
ROUNDING = 1e-4
"""Tolerance for comparing the inner product of a change with the last score of a list: more than the difference between
two float32 computations of one product of unit vectors of 1,000 numbers."""
LIST_BYTES, HIT_BYTES, CHANGE_BYTES = 600, 150, 110
"""Approximate sizes of the Python objects: of those around a list with its key, of one hit, and of one change, the last
two without the characters of their ids."""
UNCONDITIONAL = Filter()
CHANGES = "changes"
"""Key of a tenant's recent changes, which are cached beside its lists; the key of a list is a pair."""


class RecentChanges:
    """Ids and vectors of the last changes of an index. Changes are numbered: `first` is the oldest kept one, `end` the
    next one to come."""

    def __init__(self, first: int, dimension: int) -> None:
        self.first = self.end = first
        self._vectors: Vectors = np.zeros((0, dimension), np.float32)
        """(rows, D): vectors of the changes from `first` on, 0 where a note was removed; then rows for further
        changes."""
        self._last_change: dict[str, int] = {}
        """Number of each note's last change among the kept ones."""
        self._id_bytes = 0
        """Approximate bytes of `_last_change`."""

    @property
    def nbytes(self) -> int:
        """Approximate bytes of memory."""
        return self._vectors.nbytes + self._id_bytes

    def add(self, notes: ChangedNotes, max_changes: int) -> None:
        """Add at most `max_changes` changes, and keep as many of the changes before. A vector of another dimension than
        D is of another vector space, so that the index has no row for its note."""
        self._make_room(len(notes), max_changes)
        for note_id, note in notes.items():
            vector = note.vector if isinstance(note, StoredNote) else None
            has_row = vector is not None and len(vector) == self._vectors.shape[1]
            self._vectors[self.end - self.first] = vector if has_row else 0.0
            if note_id not in self._last_change:
                self._id_bytes += CHANGE_BYTES + len(note_id)
            self._last_change[note_id] = self.end
            self.end += 1

    def concern(self, since: int, ids: Sequence[str], vector: Vector, score: float) -> bool:
        """Return whether a change from number `since` on names one of `ids`, or has an inner product of `score` or more
        with `vector` (D,). Return True as well where some of these changes are no longer kept."""
        if since < self.first or any(self._last_change.get(note_id, -1) >= since for note_id in ids):
            return True
        products, _ = exact_search(self._vectors[since - self.first : self.end - self.first], vector, 1)
        return len(products) > 0 and float(products[0]) >= score - ROUNDING

    def _make_room(self, count: int, max_changes: int) -> None:
        """Make room for `count` more changes, up to 2 * max_changes rows in all; beyond these drop the oldest changes.
        An array with more rows, from a time with more lists, is reallocated."""
        known = self.end - self.first
        if known + count <= len(self._vectors) <= 2 * max_changes:
            return
        vectors = self._vectors[:known]
        if known + count > 2 * max_changes:
            known = max_changes
            self.first = self.end - known
            self._last_change = {note_id: at for note_id, at in self._last_change.items() if at >= self.first}
            self._id_bytes = sum(CHANGE_BYTES + len(note_id) for note_id in self._last_change)
        rows = min(2 * max_changes, 2 * (known + count))
        self._vectors = np.zeros((rows, vectors.shape[1]), np.float32)
        self._vectors[:known] = vectors[len(vectors) - known :]


@dataclass(slots=True)
class NeighbourList:
    """The nearest notes of a note, found by a query from which `centre` was subtracted. `since`: number of the first
    change that the list has not been compared with."""

    hits: list[Hit]
    centre: Centre
    since: int

    @property
    def nbytes(self) -> int:
        """Approximate bytes of memory."""
        return LIST_BYTES + sum(HIT_BYTES + len(hit.id) for hit in self.hits)


@dataclass(frozen=True, slots=True)
class NeighbourQuery:
    """A search for the neighbours of a note, by `vector` (D,), from which `centre` was subtracted. `since`:
    number of the first change after the query was made: a search may miss changes that are made while it runs."""

    vector: Vector
    where: Filter
    centre: Centre
    since: int


class NeighbourCache:
    """Finds the neighbours of one tenant's notes. Results of searches without conditions are cached in `lists`, beside
    the changes to compare them with."""

    def __init__(self, index: NoteIndex, lists: SharedLru[NeighbourList | RecentChanges], telemetry: Telemetry) -> None:
        self._index = index
        self._lists = lists
        self._owner = lists.new_owner()
        self._count = 0
        """Number of the next change."""
        self._dropped_at = 0
        """Number of the first change after all lists were dropped; results of queries made before that are not
        cached."""
        self._dimension = 0
        self._from_memory = telemetry.neighbour_lists.labels("memory")
        self._from_index = telemetry.neighbour_lists.labels("index")
        index.on_vector_change(self.apply)

    async def search(self, note_id: str, k: int, where: Filter) -> list[Hit] | None:
        """Return what NoteIndex.search finds for a query by a note, without the note itself; None where it has no
        row. A search raises IndexBehind before the index was first built."""
        if (hits := self.search_nowait(note_id, k, where)) is not None:
            return hits
        query = self._make_query(note_id, where)
        if query is None:
            return None
        hits = await self._index.search(query.vector, k, query.where)
        self._keep(note_id, k, where, query, hits)
        return hits

    def search_nowait(self, note_id: str, k: int, where: Filter) -> list[Hit] | None:
        """Return what `search` does where it need not wait; None otherwise, and where the note has no row."""
        if where != UNCONDITIONAL or not self._lists.max_bytes:
            return None  # the result could not be cached, and a caller that lacks its items would search again
        if kept := self._current(note_id, k):
            self._from_memory.inc()
            return kept.hits
        query = self._make_query(note_id, where)
        hits = None if query is None else self._index.search_nowait(query.vector, k, query.where)
        if query is not None and hits is not None:
            self._keep(note_id, k, where, query, hits)
        return hits

    def _make_query(self, note_id: str, where: Filter) -> NeighbourQuery | None:
        """Return the query for the neighbours of a note; None where it has no row."""
        centre, vector = self._index.centre, self._index.vector(note_id)
        if vector is None:
            return None
        without_itself = replace(where, exclude=where.exclude | {note_id})
        return NeighbourQuery(centre.query(vector), without_itself, centre, self._count)

    def _keep(self, note_id: str, k: int, where: Filter, query: NeighbourQuery, hits: list[Hit]) -> None:
        """Cache the result of a search, unless it had conditions, or all lists were dropped meanwhile."""
        if where != UNCONDITIONAL:
            return
        self._from_index.inc()
        if query.since >= self._dropped_at:
            self._dimension = len(query.vector)
            made = NeighbourList(hits, query.centre, query.since)
            self._lists.put(self._owner, (note_id, k), made, made.nbytes)

    def apply(self, notes: ChangedNotes | None) -> None:
        """Record changes of the index. None (any note may have changed), and more changes than would be kept, drop all
        lists. Without lists no changes are kept, since there is nothing to compare with them."""
        changes = self._recent_changes()
        lists = self._lists.count(self._owner) - (changes is not None)
        max_changes = min(MAX_CHANGES, max(MIN_CHANGES, lists))
        if notes is None or not lists or len(notes) > max_changes:
            self._lists.drop_all(self._owner)
            self._count += 1
            self._dropped_at = self._count
            return
        changes = changes or RecentChanges(self._count, self._dimension)
        changes.add(notes, max_changes)
        self._count = changes.end
        self._lists.put(self._owner, CHANGES, changes, changes.nbytes)

    def forget(self, note_id: str, k: int) -> None:
        """Drop a list that names a note which no longer exists: the index reports no change when a note expires."""
        self._lists.drop(self._owner, (note_id, k))

    def _current(self, note_id: str, k: int) -> NeighbourList | None:
        """Return a cached list after comparing it with all changes; drop it and return None where the centre has
        changed or a change may have altered the list."""
        kept = self._lists.get(self._owner, (note_id, k))
        if not isinstance(kept, NeighbourList):
            return None
        if kept.centre is not self._index.centre or not self._is_as_searched(note_id, k, kept):
            self.forget(note_id, k)
            return None
        kept.since = self._count
        return kept

    def _is_as_searched(self, note_id: str, k: int, kept: NeighbourList) -> bool:
        """Return whether no change since `kept.since` can have altered a list."""
        if kept.since == self._count:
            return True
        changes, query = self._recent_changes(), self._make_query(note_id, UNCONDITIONAL)
        if changes is None or query is None or len(kept.hits) < k:  # any note may enter a list with fewer than k
            return False
        ids = [note_id, *(hit.id for hit in kept.hits)]
        return not changes.concern(kept.since, ids, query.vector, kept.hits[-1].score)

    def _recent_changes(self) -> RecentChanges | None:
        """Return the kept changes; None where there are none, or they were evicted for other values."""
        kept = self._lists.get(self._owner, CHANGES)
        return kept if isinstance(kept, RecentChanges) else None
