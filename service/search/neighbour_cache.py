"""NeighbourCache: the nearest notes of a note, kept in memory as long as no change can have made them others.

A change makes a list another one where it names a note of the list, or where its vector is nearer than the last note of
the list. So a list that was found some changes ago is compared with these alone, and beside any rate of changes most
lists stay as they are (docs/decisions/0036-kept-neighbours.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.filters import Filter
from service.index.native import Vectors, exact_search
from service.interfaces import NoteIndex
from service.records import ChangedNotes, Hit, StoredNote, Vector
from service.search.budget import Budget
from service.telemetry import Telemetry

MAX_CHANGES = 1024
"""Changes with which a list is compared: a search takes longer than 27 microseconds, which so many take."""
ROUNDING = 1e-5
"""Bound on what two ways to sum an inner product of unit vectors differ by, in float32."""
LIST_OVERHEAD_BYTES, HIT_BYTES = 700, 150
"""About what Python's objects take: those around a list with its key, and those of one hit with its id."""
Key = tuple[str, int, Filter]
"""Note, k, and the filter of a search."""


class RecentChanges:
    """The last changes of an index, MAX_CHANGES or more, numbered from 0 on: their notes' ids and vectors. `count`: how
    many there were."""

    def __init__(self) -> None:
        self.count = 0
        self._first = 0
        """Number of the oldest change that is known."""
        self._vectors: Vectors = np.zeros((0, 0), np.float32)
        """Shape (2 * MAX_CHANGES, D) from the first vector on: those of the changes from `_first` on. 0 for a note that
        was removed."""
        self._last_change: dict[str, int] = {}
        """Number of the last change of each note, by id; some are older than `_first`."""

    def add(self, notes: ChangedNotes | None) -> None:
        """Take in some changes; None for more than are known."""
        if notes is None or len(notes) > MAX_CHANGES:
            self.count += 1
            self._first = self.count
            self._vectors = np.zeros((0, 0), np.float32)
            self._last_change = {}
            return
        if self.count + len(notes) - self._first > 2 * MAX_CHANGES:
            self._forget_before(self.count - MAX_CHANGES)
        for note_id, note in notes.items():
            self._add_vector(note.vector if isinstance(note, StoredNote) else None)
            self._last_change[note_id] = self.count
            self.count += 1

    def may_change(self, since: int, ids: Sequence[str], vector: Vector, score: float) -> bool:
        """Return whether a change from number `since` on names one of `ids`, or has an inner product of `score` or more
        with `vector`."""
        if since < self._first:
            return True
        if any(self._last_change.get(note_id, -1) >= since for note_id in ids):
            return True
        rows = self._vectors[since - self._first : self.count - self._first]
        if rows.shape[1:] != vector.shape:
            return bool(len(rows))
        scores, _ = exact_search(rows, vector, 1)
        return bool(len(scores)) and float(scores[0]) >= score - ROUNDING

    def _add_vector(self, vector: Vector | None) -> None:
        """Put a vector in the row of the change `count`. Of another vector space it may have other dimensions: no list
        has its note."""
        if vector is not None and not self._vectors.size:
            self._vectors = np.zeros((2 * MAX_CHANGES, len(vector)), np.float32)
        row = self._vectors[self.count - self._first : self.count - self._first + 1]
        row[:] = vector if vector is not None and row.shape[1:] == vector.shape else 0.0

    def _forget_before(self, number: int) -> None:
        kept = self._vectors[number - self._first : self.count - self._first].copy()
        self._vectors[: len(kept)] = kept
        self._first = number
        self._last_change = {note_id: at for note_id, at in self._last_change.items() if at >= number}


@dataclass(frozen=True, slots=True)
class NeighbourList:
    """The nearest notes of one that has the given vector (D,), before a change `since` which no earlier one is left to
    compare."""

    vector: Vector
    hits: list[Hit]
    since: int

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return LIST_OVERHEAD_BYTES + self.vector.nbytes + HIT_BYTES * len(self.hits)


class NeighbourCache:
    """Searches one tenant's index for the neighbours of its notes, and keeps what it found. Where the budget is spent,
    the lists that were not asked for longest go first."""

    def __init__(self, index: NoteIndex, budget: Budget, telemetry: Telemetry) -> None:
        self._index = index
        self._budget = budget
        self._changes = RecentChanges()
        self._lists: dict[Key, NeighbourList] = {}
        self._from_memory = telemetry.neighbour_lists.labels("memory")
        self._from_index = telemetry.neighbour_lists.labels("index")
        index.on_change(self.apply)

    async def search(self, note_id: str, k: int, where: Filter) -> list[Hit] | None:
        """Return what NoteIndex.search finds for a note's vector, other notes alone; None where the note has no row.
        Raises IndexBehind."""
        key = note_id, k, where
        if kept := self._current(key):
            self._from_memory.inc()
            return kept.hits
        self._from_index.inc()
        since = self._changes.count  # a change that comes during the search may be missing in it
        vector = await self._index.vector(note_id)
        if vector is None:
            return None
        hits = await self._index.search(vector, k, replace(where, exclude=where.exclude | {note_id}))
        if not where.narrows and not where.exact:
            self._keep(key, NeighbourList(vector, hits, since))
        return hits

    def apply(self, notes: ChangedNotes | None) -> None:
        """Take in changes of the index; None: drop all lists."""
        self._changes.add(notes)
        if notes is None:
            for key in list(self._lists):
                self._drop(key)

    def forget(self, note_id: str, k: int, where: Filter) -> None:
        """Drop a list, one of whose notes has expired: that is no change."""
        self._drop((note_id, k, where))

    def _current(self, key: Key) -> NeighbourList | None:
        """Return a kept list to which no change since has made a difference, and drop any other one."""
        kept = self._lists.get(key)
        if kept is None:
            return None
        if kept.since < self._changes.count:
            note_id, k, _ = key
            ids = [note_id, *(hit.id for hit in kept.hits)]
            least_score = kept.hits[-1].score if len(kept.hits) == k else -1.0
            if self._changes.may_change(kept.since, ids, kept.vector, least_score):
                self._drop(key)
                return None
            kept = replace(kept, since=self._changes.count)
        del self._lists[key]
        self._lists[key] = kept  # behind those that were not asked for since
        return kept

    def _keep(self, key: Key, found: NeighbourList) -> None:
        self._drop(key)
        self._lists[key] = found
        self._budget.used += found.size
        while self._budget.used > self._budget.max_bytes and self._lists:
            self._drop(next(iter(self._lists)))

    def _drop(self, key: Key) -> None:
        if dropped := self._lists.pop(key, None):
            self._budget.used -= dropped.size
