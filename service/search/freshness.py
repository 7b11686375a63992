"""Freshness: which notes have changed and are not in the index yet.

A change is in the store's log before it is acknowledged. So one query is enough for a read that has just arrived: what
does the log have after the position of the index? For all other notes the index and the caches are as fresh as the
store (docs/decisions/0031-reads.md).
"""

from __future__ import annotations

from service.errors import IndexBehind
from service.interfaces import NoteIndex, NoteStore
from service.read_time import ReadTime
from service.records import ORIGIN, LogTail, position_key
from service.shared_probe import SharedProbe

MAX_BEHIND = 64
"""Maximum number of log entries by which the index may be behind; beyond it, each note is checked in the store."""
CATCH_UP_SECONDS = 0.02
"""Maximum wait of a read for the index to reach a known position: an acknowledged change is already on its way to the
index, while a query may wait longer, for the store to write the next change to the disk."""
NO_CHANGES = LogTail(frozenset(), 0.0, ORIGIN)
"""Result where the index is known to have every change, which only an embedded server allows. Its time is 0, so that
callers use the clock of this machine, which is the store's."""


class Freshness:
    """Compares the index of a tenant with the log. Where the processes on this machine are the only ones that use the
    store, what they know is usually enough; else the store is queried. Reads that arrive before a query is sent share
    it."""

    def __init__(self, store: NoteStore, index: NoteIndex) -> None:
        self._store = store
        self._index = index
        self._query = SharedProbe(lambda: store.log_tail(index.position, MAX_BEHIND), pause_seconds=0.0)

    def is_current(self) -> bool:
        """Return whether the index is known to have every acknowledged change, without asking the store or waiting."""
        known = self._store.known_position
        return known is not None and self._has(known)

    async def changes(self, time_left: ReadTime) -> LogTail | None:
        """Return the changes that were acknowledged before this call and may be missing in the index; None where the
        log cannot tell, since the index is far behind, or ahead of a log that has lost entries. Raises
        StoreUnavailable."""
        if (known := self._store.known_position) and await self.reaches(known):
            return NO_CHANGES
        return await time_left.wait(self._query.answer())

    async def reaches(self, position: str) -> bool:
        """Return whether the index has reached a position, or reaches it within CATCH_UP_SECONDS."""
        if self._has(position):
            return True
        try:
            await self._index.wait_for(position, CATCH_UP_SECONDS)
        except IndexBehind:
            return False
        return True

    def _has(self, position: str) -> bool:
        """Return whether the index has reached a position."""
        return position_key(self._index.position) >= position_key(position)
