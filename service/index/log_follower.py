"""LogFollower: reads the change log and applies it to the index; builds the index where the log does not reach back.

Every write reaches the index through the log and in no other way, also this process's own: whoever wrote waits for the
position that the store returned (docs/decisions/0001-one-way-into-the-index.md). Entries may be applied again after a
failure, and then lead to the same rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from service.errors import IndexBehind, StoreUnavailable, TenantRemoved
from service.index.maintenance import Maintainer
from service.index.purging import Purger
from service.index.snapshots import SnapshotKeeper
from service.index.state import READ_BATCH_SIZE, IndexedNotes, IndexState
from service.index.threads import IndexWriter
from service.interfaces import Clock, NoteStore
from service.records import StoredNote, position_key

BLOCK_SECONDS = 1.0
"""How long a read of the log waits for a first entry."""
EXPIRY_SECONDS = 0.5
"""Least time between two removals of expired notes."""
MAX_NOTES_IN_LOOP = 8
"""Changed notes that the event loop takes in: each takes it a tenth of a millisecond; one of the longest text, one."""
RETRY_SECONDS = (0.05, 1.0)
"""First and longest pause after the store was away."""
PROGRESS_SECONDS = 5.0
"""Time between two log lines about an index that is being built."""
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Readiness:
    """Whether the index has reached the end that the log had when it was first read. `detail` says it in words.

    `target` is that end of the log; None before the log was read.
    """

    ready: bool = False
    detail: str = "not built yet"
    target: str | None = None

    def mark_unready(self, detail: str) -> None:
        """Make the index unready until it reaches the end that the log has at its next read."""
        self.ready, self.target, self.detail = False, None, detail

    def advance(self, position: str, log_end: str) -> None:
        """Take note that the index is at `position` of a log that ends at `log_end`."""
        self.target = self.target or log_end
        self.ready = self.ready or position_key(position) >= position_key(self.target)
        self.detail = "follows the log" if self.ready else f"at {position} of {self.target} of the log"


class LogFollower:
    """Keeps the notes of `state` equal to those of the store. `make_notes` returns empty ones for a new build; `writer`
    changes them."""

    def __init__(
        self,
        store: NoteStore,
        state: IndexState,
        make_notes: Callable[[], IndexedNotes],
        keeper: SnapshotKeeper,
        maintainer: Maintainer,
        purger: Purger,
        writer: IndexWriter,
        clock: Clock,
    ) -> None:
        self.readiness = Readiness()
        self._store = store
        self._state = state
        self._make_notes = make_notes
        self._keeper = keeper
        self._maintainer = maintainer
        self._purger = purger
        self._writer = writer
        self._clock = clock
        self._tried_snapshot = False
        self._expired_at = -math.inf
        """When expired notes were last removed, of time.monotonic(): a clock that jumps back must not put it off."""
        self._stopped = False
        self._applying = asyncio.Lock()
        """Held from reading a note until the index has it: no older reading is applied after a newer one."""
        self._batches = 0

    @property
    def begun_batches(self) -> int | None:
        """Number of batches of changes that were begun; None while one is being applied."""
        return None if self._applying.locked() else self._batches

    @contextlib.asynccontextmanager
    async def applying_nothing(self, seconds: float) -> AsyncIterator[None]:
        """Have no changes applied while the block lasts. Raises IndexBehind after `seconds` of waiting for that."""
        try:
            async with asyncio.timeout(seconds):
                await self._applying.acquire()
        except TimeoutError:
            raise IndexBehind("the end of a batch of changes", self._state.position) from None
        try:
            yield
        finally:
            self._applying.release()

    async def catch_up(self) -> None:
        """Build the index and follow the log until it is ready. If the store is away, return; `readiness` says so.
        Raises TenantRemoved."""
        try:
            await self._build()
            while not self.readiness.ready:
                await self._read_log()
        except StoreUnavailable as error:
            self.readiness.detail = str(error)

    def stop(self) -> None:
        """End `run` after the read of the log that is under way, even if the Redis client swallows a cancellation."""
        self._stopped = True

    async def run(self) -> None:
        """Follow the log until stopped, or the store is removed. After a failure it tries again, and `readiness` says
        why."""
        pause = RETRY_SECONDS[0]
        while not self._stopped:
            try:
                await (self._read_log() if self._state.built else self._build())
                pause = RETRY_SECONDS[0]
            except TenantRemoved as error:
                self.readiness.mark_unready(str(error))
                return
            except StoreUnavailable as error:
                self.readiness.mark_unready(str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_SECONDS[1])
            except Exception:
                log.exception("index_failed", detail="rebuilding from the store")
                self._state.built = False
                self.readiness.mark_unready("rebuilding after a failure, which the log line index_failed tells")
                await asyncio.sleep(RETRY_SECONDS[1])

    async def expire(self) -> None:
        """Remove the notes that have expired, which searches leave out already."""
        self._expired_at = time.monotonic()
        if await self._writer.run(partial(self._state.notes.expire, self._clock())):
            self._maintainer.notify()

    async def resync(self, note_ids: Sequence[str]) -> None:
        """Replace notes in the index by what the store has. Raises StoreUnavailable."""
        for begin in range(0, len(note_ids), READ_BATCH_SIZE):
            batch = note_ids[begin : begin + READ_BATCH_SIZE]
            async with self._applying:
                self._batches += 1
                stored = await self._store.get(batch, with_vectors=True)
                self._store.forget_written()
                notes = dict(zip(batch, stored, strict=True))
                await self._writer.run(partial(self._state.notes.replace, notes))
                self._state.notify_listeners(notes)
        self._state.unlogged_changes += 1
        self._maintainer.notify()

    async def _read_log(self) -> None:
        """Apply the next entries. The store reads the log's bounds after them, so that entries that were cut off in
        between are noticed."""
        state = self._state
        entries, bounds = await self._store.read_log(state.position, READ_BATCH_SIZE, BLOCK_SECONDS)
        exchanged = bounds.store != state.store_identity  # by a restore, perhaps of a backup that ends at this position
        if exchanged or not bounds.reach(state.position):
            await self._store.identity()  # a store that was removed has lost nothing
            state.check_log(state.position, bounds)
            log.warning("log_gap", position=state.position, first=bounds.first, last=bounds.last, exchanged=exchanged)
            reason = "the store was restored or exchanged" if exchanged else "the log does not reach back to this index"
            self.readiness.mark_unready(f"rebuilding: {reason}")
            await self._rebuild()
            state.unlogged_changes += exchanged  # a snapshot of the earlier store is none of this one
            return
        if entries:
            async with self._applying:
                self._batches += 1
                notes = await self._store.get_logged(entries)
                short = len(notes) <= MAX_NOTES_IN_LOOP
                unmoved = state.notes.unmoved(notes, self._clock()) if short else ()  # not worth it in a bulk load
                await (self._writer.run_short if short else self._writer.run)(partial(state.notes.update, notes))
                self._maintainer.notify()
                if any(entry.purges for entry in entries):
                    self._purger.request()
                # Within the lock: what is told to have changed must not be older than what `resync` told.
                await state.move_to(entries[-1].position, notes, unmoved)
        if time.monotonic() >= self._expired_at + EXPIRY_SECONDS:
            await self.expire()
        self.readiness.advance(state.position, bounds.last)

    async def _build(self) -> None:
        """Build the index from the snapshot, which is tried once, or else from the store."""
        restored = not self._tried_snapshot and await self._restore()
        self._tried_snapshot = True
        if not restored:
            await self._rebuild()

    async def _restore(self) -> bool:
        """Show the notes of the snapshot, and return whether there is one that can be used."""
        notes = self._make_notes()
        snapshot = await self._keeper.load(notes)
        if snapshot is None:
            return False
        self.readiness.target = snapshot.log_end
        await self._state.publish(notes, snapshot.store_identity, snapshot.position)
        self.readiness.advance(snapshot.position, snapshot.log_end)
        log.info("snapshot_loaded", vectors=len(notes.index), position=snapshot.position)
        return True

    async def _rebuild(self) -> None:
        """Read all notes of the store, and show them once they are complete."""
        state = self._state
        identity = await self._store.identity()
        position = (await self._store.log_bounds()).last
        await self._keeper.keep_log(position)  # else other replicas may have it cut off during the scan
        notes = self._make_notes()
        progress = BuildProgress(await self._store.size())
        state.rebuilding = True
        try:
            async for batch in self._store.scan():
                progress.add(len(batch))
                self.readiness.detail = progress.text
                readable = [note for note in batch if isinstance(note, StoredNote)]
                await self._writer.run(partial(notes.add, readable))
                while await self._maintainer.run_jobs(notes):
                    pass
            await self._writer.run(notes.other_space.sort)
            self._store.forget_written()
            await state.publish(notes, identity, position)
        finally:
            state.rebuilding = False
            self._maintainer.notify()
        self.readiness.ready, self.readiness.target = False, None
        self.readiness.advance(position, (await self._store.log_bounds()).last)
        log.info(
            "index_built",
            vectors=len(notes.index),
            other_space=len(notes.other_space),
            unreadable=len(self._store.unreadable),
            position=position,
        )


class BuildProgress:
    """Logs every PROGRESS_SECONDS how far the building of an index from `size` notes has come."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._read = 0
        self._began = self._logged_at = time.monotonic()

    @property
    def text(self) -> str:
        return f"{self._read} of about {self._size} notes read"

    def add(self, count: int) -> None:
        """Take note that so many more notes were read."""
        self._read += count
        now = time.monotonic()
        if now >= self._logged_at + PROGRESS_SECONDS:
            self._logged_at = now
            rate = max(1, self._read) / (now - self._began)
            left = max(0, self._size - self._read) / rate
            log.info("index_building", notes=self._read, of=self._size, a_second=round(rate), seconds_left=round(left))
