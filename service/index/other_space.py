"""OtherSpaceNotes: notes whose vectors are of another model than the serving one, in the order of their last writes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping
from heapq import heappop, heappush
from threading import Lock

from service.records import PositionKey, position_key

MIN_STALE = 1000
"""Stale entries, of notes rewritten or removed since, that a list may have: with more of them it is rebuilt, once they
are also more than half of it."""


class OtherSpaceNotes:
    """Notes of other vector spaces, by the log positions of their last writes. Changed by one thread, read by any.

    The cost of a change does not grow with the number of notes: after a change of model, all notes of the store are
    here, and each leaves once the new model has read it.
    """

    def __init__(self, positions: Mapping[str, str] = {}, expiries: Mapping[str, float] = {}) -> None:
        """Begin with some notes, given as for `put`."""
        self._keys: dict[str, PositionKey] = {}
        self._expiries: dict[str, float] = {}
        self._by_expiry: list[tuple[float, str]] = []
        """Heap of the notes that expire, with stale entries that `_expiries` no longer has."""
        self._by_key: list[tuple[PositionKey, str]] = []
        """The notes in the order of their positions, with stale entries that `_keys` no longer has."""
        self._sorted = True
        self._lock = Lock()
        self.put(positions, expiries)

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, positions: Mapping[str, str], expiries: Mapping[str, float] = {}) -> None:
        """Add notes, or move present ones to later positions. `positions`: by note id. `expiries`: seconds since the
        epoch, by the ids of the notes that expire."""
        if not positions:
            return
        with self._lock:
            for note_id, position in positions.items():
                entry = position_key(position), note_id
                self._sorted = self._sorted and (not self._by_key or self._by_key[-1] <= entry)
                self._by_key.append(entry)
                self._keys[note_id] = entry[0]
                self._expiries.pop(note_id, None)
            self._expiries |= expiries
            for note_id, expires_at in expiries.items():
                heappush(self._by_expiry, (expires_at, note_id))
            self._drop_stale()

    def remove(self, note_ids: Collection[str]) -> None:
        """Remove notes; unknown ids are ignored."""
        if not note_ids or not self._keys:
            return
        with self._lock:
            for note_id in note_ids:
                self._keys.pop(note_id, None)
                self._expiries.pop(note_id, None)
            self._drop_stale()

    def expire(self, now: float) -> bool:
        """Remove the notes that have expired at `now`; return whether there were any."""
        expired = set()
        with self._lock:
            while self._by_expiry and self._by_expiry[0][0] <= now:
                expires_at, note_id = heappop(self._by_expiry)
                if self._expiries.get(note_id) == expires_at:
                    expired.add(note_id)
        self.remove(expired)
        return bool(expired)

    def written(self, first: PositionKey, last: PositionKey, count: int) -> dict[str, PositionKey]:
        """Return the first `count` notes written after `first` and up to `last`: their position keys by id, in
        order."""
        written: dict[str, PositionKey] = {}
        self.sort()
        with self._lock:
            place = bisect_right(self._by_key, first, key=lambda entry: entry[0])
            while len(written) < count and place < len(self._by_key) and self._by_key[place][0] <= last:
                key, note_id = self._by_key[place]
                if self._keys.get(note_id) == key:
                    written[note_id] = key
                place += 1
        return written

    def sort(self) -> None:
        """Sort the notes if some were added out of order, as by a scan: half a second for 300,000."""
        with self._lock:
            if not self._sorted:
                self._by_key.sort()
                self._sorted = True

    def positions(self) -> dict[str, PositionKey]:
        """Return a copy of the position keys of all notes, by id."""
        with self._lock:
            return self._keys.copy()

    def expiries(self) -> dict[str, float]:
        """Return a copy of the times of expiry, by the ids of the notes that expire."""
        with self._lock:
            return self._expiries.copy()

    def _drop_stale(self) -> None:
        stale = len(self._by_key) - len(self._keys)
        if stale > max(MIN_STALE, len(self._keys)):
            self._by_key = sorted((key, note_id) for note_id, key in self._keys.items())
            self._sorted = True
        if len(self._by_expiry) - len(self._expiries) > max(MIN_STALE, len(self._expiries)):
            self._by_expiry = sorted((expires_at, note_id) for note_id, expires_at in self._expiries.items())
