"""EventFollower: reads the stream of events of a tenant into the co-occurrence of notes and the counts of reports.

Both are derived from the stream alone, and built anew at each start by reading the stream from its beginning: there
is no snapshot that could be wrong, and the stream is bounded. A removed note and a forgotten reader are entries of the
stream too, written in the step that removes them, so that every replica comes to the same state.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from service.behaviour.co_occurrence import CoOccurrence
from service.behaviour.report import RecommendationCounts
from service.errors import StoreUnavailable, TenantRemoved
from service.events import EventEntry
from service.interfaces import Clock, EventStore
from service.records import ORIGIN, position_key

READ_SIZE = 500
"""Entries that are read at a time: a few milliseconds of the event loop."""
BLOCK_SECONDS = 2.0
"""How long a read waits for a first entry."""
RETRY_SECONDS = (0.05, 1.0)
"""First and longest pause after the store was away."""
GATHER_SECONDS = 0.02
"""Pause after a read that found some entries: single events that come one by one are read together."""
TRIM_SECONDS = 60.0
"""Time between two cuts of a stream to its bounds; each write cuts it too."""
EXPIRE_SECONDS, EXPIRE_COUNT = 1.0, 2000
"""Time between two looks at histories for reads that are too old, and how many are looked at: less than a millisecond
where none is too old."""
MAX_HELD_SECONDS = 0.01
"""How long entries are taken in, or reads removed, before other tasks may run."""
SHOWN = "shown"
"""Type of the event that a note was shown to a reader."""
log = structlog.get_logger(__name__)


class EventFollower:
    """Follows the events of `store`. `weights`: what an event of each type counts: above 0 it is a read, below 0 it
    takes the reader's read of the note back. `seconds`: how long an event counts."""

    def __init__(
        self,
        store: EventStore,
        make: Callable[[], CoOccurrence],
        weights: Mapping[str, float],
        seconds: float,
        clock: Clock,
    ) -> None:
        self.co_occurrence = make()
        self.counts = RecommendationCounts()
        self.position = ORIGIN
        """Position of the last entry that was taken in."""
        self.ready = False
        """Whether the follower has come to the end that the stream had when it began to read."""
        self.stream_bytes = 0
        """Bytes of the stream, when they were last asked for."""
        self._store = store
        self._make = make
        self._weights = weights
        self._seconds = seconds
        self._clock = clock
        self._identity = ""
        self._target = ORIGIN
        self._stopped = False
        self._expire_at = 0.0
        self._trim_at = 0.0
        self._first_arrival = 0
        """Second in which the first entry that the stream still has was written."""

    def stop(self) -> None:
        """End `run` after the read that is under way, even if the Redis client swallows a cancellation."""
        self._stopped = True

    async def run(self) -> None:
        """Follow the stream until stopped, or the store is removed. After a failure it tries again."""
        pause = RETRY_SECONDS[0]
        self._begin_anew()
        while not self._stopped:
            try:
                await self._read()
                await self._keep_to_bounds(asyncio.get_running_loop().time())
                pause = RETRY_SECONDS[0]
            except TenantRemoved:
                return
            except StoreUnavailable:
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_SECONDS[1])
            except Exception:
                log.exception("behaviour_failed", detail="building it anew from the stream of events")
                await asyncio.sleep(RETRY_SECONDS[1])
                self._begin_anew()

    async def _keep_to_bounds(self, now: float) -> None:
        """Cut the stream, and drop reads that are too old or whose events were cut, now and then."""
        if now >= self._trim_at:
            self.stream_bytes, first = await self._store.trim()
            self._first_arrival = _arrival(first)
            self.counts.expire(self._clock() - self._seconds)
            self._trim_at = now + TRIM_SECONDS
        if now >= self._expire_at:
            await self._expire()
            self._expire_at = now + EXPIRE_SECONDS

    async def _expire(self) -> None:
        """Look at EXPIRE_COUNT histories for reads that are too old; other tasks run in between. Half of a turn is left
        for the lists of readers, which are written anew at its end."""
        left = EXPIRE_COUNT
        while left and not self._stopped:
            before = self._clock() - self._seconds
            left = self.co_occurrence.expire(before, left, self._first_arrival, MAX_HELD_SECONDS / 2)
            await asyncio.sleep(0)

    def _begin_anew(self) -> None:
        """Forget everything, so that the stream is read from its beginning."""
        self.co_occurrence, self.counts, self.position, self.ready = self._make(), RecommendationCounts(), ORIGIN, False
        self._identity = self._target = ""
        self._first_arrival, self._trim_at = 0, 0.0

    async def _read(self) -> None:
        if not self._target:
            self._target = await self._store.last()
        entries, identity = await self._store.read(self.position, READ_SIZE, BLOCK_SECONDS if self.ready else 0.001)
        if self._identity not in ("", identity):  # the store was restored, emptied or exchanged
            log.warning("events_exchanged", detail="building behaviour anew")
            self._begin_anew()
            return
        self._identity = identity
        began = time.perf_counter()
        for entry in entries:
            if entry.kind == "purge" and position_key(entry.position) > position_key(self._target):
                self._begin_anew()
                return
            await self._apply(entry)
            self.position = entry.position
            if time.perf_counter() - began > MAX_HELD_SECONDS:
                await asyncio.sleep(0)
                began = time.perf_counter()
        if not self.ready and (not entries or position_key(self.position) >= position_key(self._target)):
            self.ready = True
            kept = self.co_occurrence
            log.info("behaviour_built", reads=kept.reads, readers=kept.readers, notes=kept.notes)
        if self.ready and entries:
            await asyncio.sleep(GATHER_SECONDS)

    async def _apply(self, entry: EventEntry) -> None:
        kept = self.co_occurrence
        if entry.kind == "note":
            while True:
                if not kept.remove_note(entry.note_id, MAX_HELD_SECONDS):  # it may have many readers
                    break
                await asyncio.sleep(0)
        elif entry.kind == "reader":
            kept.forget(entry.reader)
        elif entry.kind == "event":
            weight = self._weights.get(entry.type, 0.0)  # a type that is not declared any more counts nothing
            if weight > 0 and entry.at >= self._clock() - self._seconds:  # else `expire` would only drop it
                kept.add(entry.reader, entry.note_id, entry.at, weight, _arrival(entry.position))
            elif weight < 0:
                kept.remove(entry.reader, entry.note_id, entry.at)
            self.counts.add(entry.note_id, entry.at, entry.details, shown=entry.type == SHOWN, clicked=weight > 0)


def _arrival(position: str) -> int:
    """Return the second, since the epoch, in which the entry at a position was written."""
    return position_key(position)[0] // 1000
