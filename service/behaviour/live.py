"""LiveBehaviour: stores and follows the events of one tenant, and answers which notes they relate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from service.behaviour.co_occurrence import CoOccurrence, CoOccurrenceOptions, Read, Related, summed
from service.behaviour.follower import EventFollower
from service.behaviour.report import Dimension, Rate, rates
from service.errors import BehaviourBehind
from service.events import Event, EventEntry, EventOutcome
from service.interfaces import Clock, EventStore
from service.tasks import cancel_until_done
from service.telemetry import Telemetry

log = structlog.get_logger()

MAX_SUMMED_IN_LOOP = 100
"""Bound on the successors of all examples that are merged in the event loop: up to half a millisecond, or a few if they
have as many readers as count. More are merged in a thread: forty thousand take a tenth of a second."""
MAX_EVENT_BODIES = 2
"""Bound on the bodies of events as NDJSON that one process accepts concurrently for a tenant, published at GET /limits:
each may keep the store busy for seconds, and takes memory that the bodies of all tenants share."""
MAX_ERASURES = 1
"""Bound on the erasures of readers' events that one process runs concurrently for a tenant, published at GET /limits:
each scans the whole stream."""
FORGET_SECONDS = 1.0
"""Bound on the wait of a removal for the follower to apply it, which takes milliseconds unless the stream is being read
from its beginning."""
MAX_READER_EXPORTS = 4
"""Bound on the exports of one reader's events that one process sends concurrently for a tenant, published at GET
/limits. They answer people who ask for the data kept about them, so they do not wait for other exports."""


@dataclass(frozen=True, slots=True)
class BehaviourStatus:
    """State of a tenant's behaviour. `ready`: it was built from the whole stream; while a purged stream is read again,
    the state from before stays in use. `bytes`: approximate memory in this process."""

    ready: bool
    position: str
    reads: int
    readers: int
    notes: int
    bytes: int
    stream_bytes: int


class LiveBehaviour:
    """Events of one tenant. `weights`: weights of the declared types of events; see EventFollower. `seconds`: how long
    an event counts. `kappa`: number of readers at which behaviour adds half of its weight to a score."""

    def __init__(
        self,
        store: EventStore,
        options: CoOccurrenceOptions,
        weights: Mapping[str, float],
        seconds: float,
        telemetry: Telemetry,
        clock: Clock,
        kappa: float = 4.0,
    ) -> None:
        self.types = tuple(weights)
        self.kappa = kappa
        self._store = store
        self._telemetry = telemetry
        self._clock = clock
        self._follower = EventFollower(store, lambda: CoOccurrence(options), weights, seconds, clock)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start following the events in the background."""
        self._task = asyncio.get_running_loop().create_task(self._follower.run(), name="follow-events")

    async def stop(self) -> None:
        self._follower.stop()
        await cancel_until_done(self._task)

    async def add(self, events: Sequence[Event], now: float) -> list[EventOutcome]:
        """Store events in the order of their times, and return the outcome of each, in the order of `events`; accepted
        events are durable. Raises StoreUnavailable, TenantRemoved.

        `now`: the time given to events that were sent without one. A time later than `now` is stored as `now`, and its
        event comes before those sent without a time: these happened when they were sent, whatever a reader's clock
        says.
        """

        def order(place: int) -> tuple[float, bool, float]:
            at = events[place].at
            return min(at, now), at == now, at

        by_time = sorted(range(len(events)), key=order)  # a buffer may send the newest first
        outcomes = await self._store.add([replace(events[i], at=min(events[i].at, now)) for i in by_time])
        for outcome in set(outcomes):
            self._telemetry.events.labels(outcome).inc(outcomes.count(outcome))
        outcome_at = dict(zip(by_time, outcomes, strict=True))
        return [outcome_at[place] for place in range(len(events))]

    def read_events_of(self, reader: str) -> AsyncIterator[list[EventEntry]]:
        """Yield the events of a reader that the store has, in batches. Raises StoreUnavailable."""
        return self._store.read_events_of(reader)

    async def forget(self, reader: str) -> int:
        """Remove durably all events of a reader so far; return their number, once this replica no longer counts them,
        or after FORGET_SECONDS where it is reading the stream from its beginning. Other replicas stop counting them
        when they read the removal from the stream: within milliseconds, or, after a purge, once they have read the
        stream again. Raises StoreUnavailable, TenantRemoved.
        """
        removed = await self._store.forget(reader)
        if not await self._follower.wait_for(await self._store.last(), FORGET_SECONDS):
            log.warning("forgotten_reader_counts", detail="until the stream of events was read again")
        return removed

    def all_reads(self) -> Iterator[list[Read]]:
        """Yield the reads that are held, reader by reader. Raises BehaviourBehind until the whole stream was read, and
        while it is read again after a purge: the earlier state still has readers who were forgotten meanwhile."""
        follower, co_occurrence = self._follower, self._follower.state.co_occurrence
        histories = co_occurrence.all_reads()
        while True:
            if not follower.complete or follower.state.co_occurrence is not co_occurrence:
                raise BehaviourBehind(follower.reads)
            if (history := next(histories, None)) is None:
                return
            yield history

    async def candidates(self, note_ids: Collection[str]) -> list[Related]:
        """Return all notes that were read after any of `note_ids`, without these, best first: up to
        CoOccurrenceOptions.top for each of `note_ids`."""
        now, co_occurrence, lists = self._clock(), self._follower.state.co_occurrence, []
        for note_id in dict.fromkeys(note_ids):
            lists.append(co_occurrence.related(note_id, now))
            await asyncio.sleep(0)  # a note of many readers takes a millisecond
        if sum(map(len, lists)) <= MAX_SUMMED_IN_LOOP:
            return summed(lists, note_ids)
        return await asyncio.to_thread(summed, lists, note_ids)

    async def rates(self, by: Collection[Dimension], since: float) -> tuple[list[Rate], int]:
        """Return how often recommended notes were shown and clicked since the day of `since`, grouped by the dimensions
        `by`; and how many of these rates were left out."""
        return await asyncio.to_thread(rates, self._follower.state.counts.groups(), by, since)

    def unmatched(self, since: float) -> int:
        """Return the number of clicks of recommended notes, since the day of `since`, without an event that says the
        note was shown."""
        return self._follower.state.counts.unmatched(since)

    def status(self) -> BehaviourStatus:
        follower = self._follower
        kept = follower.state.co_occurrence
        return BehaviourStatus(
            ready=follower.ready,
            position=follower.position,
            reads=kept.reads,
            readers=kept.readers,
            notes=kept.notes,
            bytes=follower.bytes,
            stream_bytes=follower.stream_bytes,
        )
