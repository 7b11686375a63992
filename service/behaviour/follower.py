"""EventFollower: builds the co-occurrence of notes and the counts of reports from a tenant's stream of events.

Both are derived from the stream alone, and rebuilt at each start by reading it from its beginning: there is no snapshot
that could be wrong, and the stream is bounded. Removals of notes and readers are entries of the stream too, written in
the step that removes them, so that every replica reaches the same state.

A purge removes entries that followers may not have read yet, so after one the stream is read from its beginning again.
Until that is done, the earlier state stays in use. The same is done after a failover to a server that lacks entries
which were read before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import structlog

from service.behaviour.co_occurrence import CoOccurrence
from service.behaviour.report import RecommendationCounts
from service.errors import StoreUnavailable, TenantRemoved
from service.events import EventEntry, EventStreamEnd
from service.interfaces import Clock, EventStore
from service.records import ORIGIN, position_key
from service.setting_fields import SHOWN

READ_SIZE = 500
"""Entries that are read at a time: a few milliseconds of the event loop."""
BLOCK_SECONDS = 2.0
"""Maximum wait of a read for a first entry."""
RETRY_SECONDS = (0.05, 1.0)
"""First and longest back-off while the store is unavailable."""
GATHER_SECONDS = 0.02
"""Pause after a read that returned entries, so that events that come one by one are read together."""
TRIM_SECONDS = 60.0
"""Time between two trims of the stream to its bounds; each write trims it too."""
EXPIRE_SECONDS, EXPIRE_COUNT = 1.0, 2000
"""Time between two checks of histories for expired reads, and the number of histories per check: less than a
millisecond if no read has expired."""
MAX_HELD_SECONDS = 0.01
"""Time for which entries are applied, or reads removed, before other tasks may run."""
log = structlog.get_logger(__name__)


class BehaviourState(NamedTuple):
    """State built from a stream of events: which notes are read together, and counts of recommendations."""

    co_occurrence: CoOccurrence
    counts: RecommendationCounts

    @property
    def bytes(self) -> int:
        """Approximate memory of the state."""
        return self.co_occurrence.bytes + self.counts.bytes


class EventFollower:
    """Follows the events of `store`. `weights`: weight of each type of event: above 0 the event is a read, below 0 it
    takes the reader's read of the note back. `seconds`: how long an event counts."""

    def __init__(
        self,
        store: EventStore,
        make: Callable[[], CoOccurrence],
        weights: Mapping[str, float],
        seconds: float,
        clock: Clock,
    ) -> None:
        self.state = BehaviourState(make(), RecommendationCounts())
        """State that searches and reports use. After a purge it is the earlier one until the new one is complete."""
        self.position = ORIGIN
        """Position of the last entry that was applied."""
        self.stream_bytes = 0
        """Size of the stream in bytes, as of its last trim."""
        self._store = store
        self._make = make
        self._weights = weights
        self._seconds = seconds
        self._clock = clock
        self._filling = self.state
        """State to which entries are applied."""
        self.complete = False
        """Whether `_filling` has reached the end that the stream had when filling began; `state` and `_filling` are
        then the same."""
        self._identity = ""
        self._added: int | None = None
        """Number of entries ever added to the stream when its end was last reached; None before."""
        self._read_since = 0
        """Number of entries that were read since then."""
        self._target = ""
        self._applied = asyncio.Condition()
        """Notified when entries were applied."""
        self._stopped = False
        self._expire_at = 0.0
        self._trim_at = 0.0
        self._first_arrival = 0
        """Second in which the first remaining entry of the stream was written."""

    @property
    def ready(self) -> bool:
        """Whether `state` may be used: it is complete, or is the complete one from before a purge."""
        return self.complete or self.state is not self._filling

    @property
    def reads(self) -> int:
        """Number of reads in the state to which entries are applied."""
        return self._filling.co_occurrence.reads

    @property
    def bytes(self) -> int:
        """Approximate memory of the state, and of the one that is to replace it."""
        return self.state.bytes + (0 if self.state is self._filling else self._filling.bytes)

    async def wait_for(self, position: str, seconds: float) -> bool:
        """Wait until `state` has all entries up to `position`; return False if that takes longer than `seconds`."""
        key = position_key(position)
        try:
            async with asyncio.timeout(seconds), self._applied:
                await self._applied.wait_for(lambda: self.complete and position_key(self.position) >= key)
        except TimeoutError:
            return False
        return True

    def stop(self) -> None:
        """End `run` after the read in progress, even if the Redis client swallows a cancellation."""
        self._stopped = True

    async def run(self) -> None:
        """Follow the stream until stopped, or until the store is removed. After a failure, try again."""
        pause = RETRY_SECONDS[0]
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
                log.exception("behaviour_failed", detail="rebuilding behaviour from its events")
                await asyncio.sleep(RETRY_SECONDS[1])
                if self.state is self._filling:
                    self._forget_everything()
                else:  # the failure was in what replaces the state after a purge
                    self._begin_anew()

    async def _keep_to_bounds(self, now: float) -> None:
        """From time to time, trim the stream, and drop reads that have expired or whose events were trimmed."""
        if now >= self._trim_at:
            self.stream_bytes, first = await self._store.trim()
            self._first_arrival = _arrival(first)
            self._filling.counts.expire(self._clock() - self._seconds)
            self._trim_at = now + TRIM_SECONDS
        if now >= self._expire_at:
            await self._expire()
            self._expire_at = now + EXPIRE_SECONDS

    async def _expire(self) -> None:
        """Drop expired reads from EXPIRE_COUNT histories; other tasks run in between. Half of MAX_HELD_SECONDS is left
        for the lists of readers, which `expire` rewrites at its end."""
        left = EXPIRE_COUNT
        while left and not self._stopped:
            before = self._clock() - self._seconds
            left = self._filling.co_occurrence.expire(before, left, self._first_arrival, MAX_HELD_SECONDS / 2)
            await asyncio.sleep(0)

    def _begin_anew(self) -> None:
        """Read the stream from its beginning again, into an empty state that replaces `state` once it is complete."""
        self._filling, self.complete = BehaviourState(self._make(), RecommendationCounts()), False
        self.position, self._target = ORIGIN, ""
        self._added, self._read_since = None, 0
        self._first_arrival, self._trim_at = 0, 0.0

    def _forget_everything(self) -> None:
        """Read the stream from its beginning again, and discard the earlier state at once."""
        self._begin_anew()
        self.state, self._identity = self._filling, ""

    async def _read(self) -> None:
        if not self._target:
            self._target = await self._store.last()
        block_seconds = BLOCK_SECONDS if self.complete else 0.001
        entries, end = await self._store.read(self.position, READ_SIZE, block_seconds)
        if self._identity not in ("", end.store):  # the store was restored, emptied or exchanged
            log.warning("events_exchanged", detail="the store was replaced: rebuilding behaviour from its events")
            self._forget_everything()
            return
        self._identity = end.store
        if self._has_lost(entries, end):
            log.error("events_lost", detail="the store has lost events: rebuilding behaviour from those that it has")
            self._begin_anew()
            return
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
        if not self.complete and (not entries or position_key(self.position) >= position_key(self._target)):
            self.state, self.complete = self._filling, True
            kept = self.state.co_occurrence
            log.info("behaviour_built", reads=kept.reads, readers=kept.readers, notes=kept.notes)
        async with self._applied:
            self._applied.notify_all()
        if self.complete and entries:
            await asyncio.sleep(GATHER_SECONDS)

    def _has_lost(self, entries: Sequence[EventEntry], end: EventStreamEnd) -> bool:
        """Return whether the stream lacks an entry that was read before, as after a failover to a server that did not
        have it yet: the stream ends before that entry, or fewer entries were added since its last known end than were
        read since. `entries`, `end`: those of the last read."""
        reached = position_key(entries[-1].position if entries else self.position)
        last = position_key(end.last)
        self._read_since += len(entries)
        if any(entry.kind == "purge" for entry in entries):
            self._added = None  # the number counts the entries of another stream
        if last != reached:
            return last < reached
        added, self._added, read_since, self._read_since = self._added, end.added, self._read_since, 0
        return added is not None and end.added is not None and read_since > end.added - added

    async def _apply(self, entry: EventEntry) -> None:
        kept, counts = self._filling
        if entry.kind == "note":
            while True:
                if not kept.remove_note(entry.note_id, MAX_HELD_SECONDS):  # it may have many readers
                    break
                await asyncio.sleep(0)
        elif entry.kind == "reader":
            kept.forget(entry.reader)
        elif entry.kind == "event":
            weight = self._weights.get(entry.type, 0.0)  # a type that is not declared any more counts nothing
            recent = entry.at >= self._clock() - self._seconds  # else `expire` would only drop it
            if weight > 0 and recent:
                kept.add(entry.reader, entry.note_id, entry.at, weight, _arrival(entry.position))
            elif weight < 0:
                kept.remove(entry.reader, entry.note_id, entry.at)
            shown = entry.type == SHOWN  # it may have a weight, too, and is no click
            if recent:
                counts.add(entry.note_id, entry.at, entry.details, shown=shown, clicked=weight > 0 and not shown)


def _arrival(position: str) -> int:
    """Return the second, since the epoch, in which the entry at a position was written."""
    return position_key(position)[0] // 1000
