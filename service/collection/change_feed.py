"""The change feed: what was written and removed after a log position, for other systems."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.collection.log_reach import check_reaches
from service.concurrency import ConcurrencyLimit
from service.errors import IndexBehind
from service.interfaces import NoteIndex, NoteStore
from service.read_time import ReadTime
from service.records import LogEntry, position_key

MAX_CHANGES = 1000
"""Bound on the changes of one answer, published at GET /limits."""
MAX_CHANGE_SECONDS = 30.0
"""Bound on the wait for a change, published at GET /limits."""
MAX_CHANGE_WAITERS = 1000
"""Bound on the requests of one tenant at one process that wait for a change, published at GET /limits."""
STEP_SECONDS = 1.0
"""Time between two checks by a waiting request whether the process ends."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes in the order of the log. `position`: log position after which the next changes come. `more`: whether
    there are further ones already."""

    entries: Sequence[LogEntry]
    position: str
    more: bool


class ChangeFeed:
    """The change feed of one tenant. `waiters` limits the requests that wait."""

    def __init__(self, store: NoteStore, index: NoteIndex, waiters: ConcurrencyLimit) -> None:
        self._store = store
        self._index = index
        self._waiters = waiters

    async def read(
        self, after: str | None, limit: int, seconds: float = 0.0, is_ending: Callable[[], bool] = lambda: False
    ) -> Changes:
        """Return up to `limit` changes after the position `after`, by default the end of the log. If there are none,
        wait for one until `seconds` after the call, or until `is_ending` returns True. Raises LogCut, TooManyWaiting,
        StoreUnavailable."""
        until = asyncio.get_running_loop().time() + seconds
        if after is None:
            after = (await ReadTime().wait(self._store.log_bounds())).last
        changes = await self._read(after, limit)
        if changes.entries or not seconds:
            return changes
        with self._waiters.slot():
            await self._wait_beyond(changes.position, until, is_ending)
        return await self._read(changes.position, limit)

    async def _read(self, after: str, limit: int) -> Changes:
        entries, bounds = await ReadTime().wait(self._store.read_log(after, limit, 0.0))
        check_reaches(bounds, after)
        position = entries[-1].position if entries else after
        changes = [entry for entry in entries if entry.id]
        return Changes(changes, position, position_key(position) < position_key(bounds.last))

    async def _wait_beyond(self, position: str, until: float, is_ending: Callable[[], bool]) -> None:
        """Wait until the index, which follows the log, is beyond a position, so that waiting requests do not poll the
        store. Return also at `until`, by the loop's clock, and if the index is or was rebuilt, since the store may then
        no longer have the position."""
        milliseconds, sequence = position_key(position)
        while not is_ending() and (left := until - asyncio.get_running_loop().time()) > 0:
            try:
                await self._index.wait_for(f"{milliseconds}-{sequence + 1}", min(left, STEP_SECONDS))
                return
            except IndexBehind:
                if not self._index.status().ready or position_key(self._index.position) < (milliseconds, sequence):
                    return
