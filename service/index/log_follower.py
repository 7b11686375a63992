"""LogFollower: reads the change log and applies it to the index; rebuilds the index where the log does not reach back.

Every write, also this process's own, reaches the index only through the log: a writer waits for the position that the
store returned (docs/decisions/0001-one-way-into-the-index.md). Applying entries is idempotent: some are applied again
after a failure.
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
from service.index.snapshot_keeper import SnapshotKeeper
from service.index.state import READ_BATCH_SIZE, IndexedNotes, IndexState
from service.index.threads import IndexWriter
from service.interfaces import Clock, NoteStore
from service.records import StoredNote, position_key, position_seconds

BLOCK_SECONDS = 1.0
"""Maximum wait of a read of the log for a first entry."""
EXPIRY_SECONDS = 0.5
"""Minimum time between two removals of expired notes."""
MAX_NOTES_IN_LOOP = 8
"""Maximum number of changed notes applied in the event loop: each takes 0.1 ms; one with the longest text, 1 ms."""
RETRY_SECONDS = (0.05, 1.0)
"""First and longest back-off while the store is unavailable."""
PROGRESS_SECONDS = 5.0
"""Time between two log lines on the progress of a build."""
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Readiness:
    """Whether the index has reached the end that the log had when it was first read. `detail` describes this in words.

    `target` is that end of the log; None before the log was read.
    """

    ready: bool = False
    detail: str = "not built yet"
    target: str | None = None

    def mark_unready(self, detail: str) -> None:
        """Mark the index as not ready until it reaches the end that the log has at its next read."""
        self.ready, self.target, self.detail = False, None, detail

    def advance(self, position: str, log_end: str) -> None:
        """Record that the index is at `position` of a log that ends at `log_end`."""
        self.target = self.target or log_end
        self.ready = self.ready or position_key(position) >= position_key(self.target)
        self.detail = "follows the log" if self.ready else f"at log position {position} of {self.target}"


class LogFollower:
    """Keeps the notes of `state` equal to those of the store. `make_notes` returns empty notes for a new build;
    `writer` runs the changes."""

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
        self.behind_since = 0.0
        """Time of the oldest change in the log, as it was last read, that the index does not have; 0 if it has all."""
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
        """time.monotonic() of the last removal of expired notes: a clock that jumps back must not delay the next."""
        self._stopped = False
        self._applying = asyncio.Lock()
        """Held from reading a note until the index has it, so that no older version is applied after a newer one."""
        self._batches = 0
        self._resyncs = 0
        self._resyncing = 0

    @property
    def begun_batches(self) -> int | None:
        """Number of batches of changes begun so far; None while one is being applied."""
        return None if self._applying.locked() else self._batches

    @property
    def begun_resyncs(self) -> int | None:
        """Number of calls of `resync` so far; None while one runs."""
        return None if self._resyncing else self._resyncs

    @contextlib.asynccontextmanager
    async def applying_nothing(self, seconds: float) -> AsyncIterator[None]:
        """Hold up changes during the `with` block. Raises IndexBehind after waiting `seconds` for a running batch."""
        try:
            async with asyncio.timeout(seconds):
                await self._applying.acquire()
        except TimeoutError:
            raise IndexBehind("the end of the current batch of changes", self._state.position) from None
        try:
            yield
        finally:
            self._applying.release()

    async def catch_up(self) -> None:
        """Build the index and follow the log until it is ready. If the store is unavailable, return; `readiness` says
        why. Raises TenantRemoved."""
        try:
            await self._build()
            while not self.readiness.ready:
                await self._read_log()
        except StoreUnavailable as error:
            self.readiness.detail = str(error)

    def stop(self) -> None:
        """End `run` after the current read of the log, even if the Redis client swallows a cancellation."""
        self._stopped = True

    async def run(self) -> None:
        """Follow the log until stopped or until the store is removed. After a failure it tries again; `readiness` gives
        the reason."""
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
                log.exception("index_failed", detail="rebuilding the index from the store")
                self._state.built = False
                self.readiness.mark_unready("rebuilding after a failure; see index_failed in the log")
                await asyncio.sleep(RETRY_SECONDS[1])

    async def expire(self) -> None:
        """Remove expired notes, which searches leave out already."""
        self._expired_at = time.monotonic()
        if await self._writer.run(partial(self._state.notes.expire, self._clock())):
            self._maintainer.notify()

    async def resync(self, note_ids: Sequence[str]) -> None:
        """Replace notes in the index by the store's versions. Raises StoreUnavailable."""
        self._resyncs += 1
        self._resyncing += 1
        try:
            for begin in range(0, len(note_ids), READ_BATCH_SIZE):
                await self._resync_batch(note_ids[begin : begin + READ_BATCH_SIZE])
        finally:
            self._resyncing -= 1
        self._state.unlogged_changes += 1
        self._maintainer.notify()

    async def _resync_batch(self, batch: Sequence[str]) -> None:
        async with self._applying:
            self._batches += 1
            stored = await self._store.get(batch, with_vectors=True)
            self._store.drop_own_writes()
            notes = dict(zip(batch, stored, strict=True))
            await self._writer.run(partial(self._state.notes.replace, notes))
            self._state.notify_listeners(notes)

    async def _read_log(self) -> None:
        """Apply the next entries. The store reads the log's bounds after the entries, so that trimming in between is
        noticed."""
        state = self._state
        entries, bounds = await self._store.read_log(state.position, READ_BATCH_SIZE, BLOCK_SECONDS)
        exchanged = bounds.store != state.store_identity  # by a restore, perhaps of a backup ending at this position
        if exchanged or not bounds.reach(state.position):
            await self._store.identity()  # raises TenantRemoved: a store that was removed has lost nothing
            state.check_log(state.position, bounds)
            if exchanged or bounds.lost(state.position):
                self._store.invalidate_known_position()
            log.warning("log_gap", position=state.position, first=bounds.first, last=bounds.last, exchanged=exchanged)
            reason = "the store was restored or replaced" if exchanged else "the log lacks changes since this index"
            self.readiness.mark_unready(f"rebuilding: {reason}")
            self.behind_since = position_seconds(state.position)
            await self._rebuild()
            state.unlogged_changes += exchanged  # so that a snapshot of the new store is made
            return
        if entries:
            self.behind_since = position_seconds(entries[0].position)
            async with self._applying:
                self._batches += 1
                notes = await self._store.get_logged(entries)
                short = len(notes) <= MAX_NOTES_IN_LOOP
                # Not worth its time in a bulk load.
                same_vectors = state.notes.same_vectors(notes, self._clock()) if short else ()
                await (self._writer.run_short if short else self._writer.run)(partial(state.notes.update, notes))
                self._maintainer.notify()
                if any(entry.purges for entry in entries):
                    self._purger.request()
                # Within the lock: listeners must not get an older version of a note than `resync` gave them.
                await state.advance_to(entries[-1].position, notes, same_vectors)
        ended = position_key(state.position) >= position_key(bounds.last)
        self.behind_since = 0.0 if ended else position_seconds(state.position)
        if time.monotonic() >= self._expired_at + EXPIRY_SECONDS:
            await self.expire()
        self.readiness.advance(state.position, bounds.last)

    async def _build(self) -> None:
        """Build the index from the snapshot, which is tried only once, or else from the store."""
        restored = not self._tried_snapshot and await self._restore()
        self._tried_snapshot = True
        if not restored:
            await self._rebuild()

    async def _restore(self) -> bool:
        """Publish the notes of the snapshot, and return whether there is a usable one."""
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
        """Read all notes of the store, and publish them once they are complete."""
        state = self._state
        identity = await self._store.identity()
        position = (await self._store.log_bounds()).last
        await self._keeper.keep_log(position)  # else other replicas may let it be trimmed during the scan
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
            self._store.drop_own_writes()
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
    """Logs the progress of building an index from about `size` notes every PROGRESS_SECONDS."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._read = 0
        self._began = self._logged_at = time.monotonic()

    @property
    def text(self) -> str:
        return f"{self._read} of about {self._size} notes read"

    def add(self, count: int) -> None:
        """Count `count` more notes as read."""
        self._read += count
        now = time.monotonic()
        if now >= self._logged_at + PROGRESS_SECONDS:
            self._logged_at = now
            rate = max(1, self._read) / (now - self._began)
            left = max(0, self._size - self._read) / rate
            log.info("index_building", notes=self._read, of=self._size, a_second=round(rate), seconds_left=round(left))
