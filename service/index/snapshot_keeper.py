"""SnapshotKeeper: saves an index and its texts to disk at intervals, and loads them at start-up (snapshot_files.py)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import structlog

from service.errors import SnapshotRefused, StoreUnavailable
from service.index.backend import Part, ReadPart, Snapshottable
from service.index.other_space import OtherSpaceNotes
from service.index.packed_strings import packed, unpacked
from service.index.snapshot_files import SharedSnapshots, SnapshotFolder, SnapshotOrigin
from service.index.state import READ_BATCH_SIZE, IndexedNotes, IndexState
from service.index.texts import LiveTexts
from service.index.threads import IndexWriter, run_in_daemon
from service.interfaces import Clock, NoteStore
from service.records import ORIGIN

MIN_PAUSE_FACTOR = 20
"""Minimum pause between two snapshots, as a multiple of the time that one took: at most 5% of the time goes into
them."""
OTHER_SPACE, UNREADABLE = "other_space", "unreadable"
"""Parts of a snapshot: positions and ids of the notes of another space, and ids of those that the store could not
decode."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RestoredSnapshot:
    """A snapshot that was loaded: its log position, the identity of its store, and the end of the log at that time."""

    position: str
    store_identity: str
    log_end: str


class SnapshotKeeper:
    """Saves snapshots of `state`, and reports to the store the position from which this replica still needs the log.

    `snapshots`: where they are kept; None for no snapshots. From SharedSnapshots one is only loaded. `writer` runs the
    calls that change the notes. `seconds` is the minimum time between two snapshots; `space` and `attributes` are those
    of SnapshotOrigin.
    """

    def __init__(
        self,
        snapshots: SnapshotFolder | SharedSnapshots | None,
        store: NoteStore,
        state: IndexState,
        writer: IndexWriter,
        clock: Clock,
        *,
        seconds: float,
        space: str,
        attributes: tuple[str, ...],
    ) -> None:
        self.saved_at = 0.0
        """Time of the last snapshot, 0 before the first."""
        self.unsaved_since = 0.0
        """Time at which a change that the last snapshot does not have was first seen; 0 if it has all."""
        self._snapshots = snapshots
        self._folder = folder = snapshots if isinstance(snapshots, SnapshotFolder) else None
        self._store = store
        self._state = state
        self._writer = writer
        self._clock = clock
        self._seconds = seconds
        self._make_origin = partial(SnapshotOrigin, space=space, attributes=attributes)
        self._replica = folder.replica if folder else uuid4().hex
        self._saved = ORIGIN, 0
        """Position and unlogged changes of the last snapshot."""
        self._unsent_position: str | None = None
        """Position that could not be reported to the store, which was unavailable; None if the last one was."""
        self._saving = asyncio.Lock()

    async def run(self) -> None:
        """Save at intervals until cancelled; without a folder, report this replica's position to the store."""
        pause = self._seconds
        while True:
            await asyncio.sleep(pause)
            began = time.monotonic()
            try:
                await self._save_or_keep_log()
            except Exception:  # the task must not end unseen: no snapshot would be made any more
                log.exception("snapshots_failed", detail="will be tried again at the next interval")
            pause = max(self._seconds, MIN_PAUSE_FACTOR * (time.monotonic() - began))

    async def _save_or_keep_log(self) -> None:
        if self._folder is None:
            self._look_for_changes()
            await self.keep_log(self._state.position)
        else:
            await self.save()

    async def keep_log(self, position: str) -> None:
        """Have the store keep the log from `position` on for this replica. If the store is unavailable, the next `save`
        tries again."""
        self._unsent_position = position
        with contextlib.suppress(StoreUnavailable):
            await self._store.keep_log(self._replica, position)
            self._unsent_position = None

    def _look_for_changes(self) -> bool:
        """Return whether anything changed since the last snapshot."""
        if (self._state.position, self._state.unlogged_changes) == self._saved:
            self.unsaved_since = 0.0
            return False
        self.unsaved_since = self.unsaved_since or self._clock()
        return True

    async def save(self) -> None:
        """Make a snapshot if anything changed since the last one, and let the store trim the log before its position. A
        failure is logged: it makes the next start slower, and no request fails because of it."""
        async with self._saving:
            state, notes = self._state, self._state.notes
            position, unlogged = state.position, state.unlogged_changes
            changed = self._look_for_changes()
            if self._folder is None or not state.built or state.rebuilding or state.purging:
                return
            if not changed:
                if self._unsent_position:
                    await self.keep_log(self._unsent_position)
                return
            origin = self._make_origin(state.store_identity)
            unreadable = list(self._store.unreadable)
            take_parts = partial(snapshot_parts, notes.index, notes.texts, notes.other_space, unreadable)
            try:
                parts = await self._writer.run(take_parts)
                await run_in_daemon(partial(self._folder.save, origin, position, parts))
                self._saved, self.saved_at, self.unsaved_since = (position, unlogged), self._clock(), 0.0
            except Exception as error:
                log.warning("snapshot_failed", detail=repr(error))
            else:
                await self.keep_log(position)

    async def discard(self) -> None:
        """Remove the folder with its snapshot, and make no more of them."""
        async with self._saving:
            folder, self._folder = self._folder, None
            if folder:
                await asyncio.to_thread(folder.remove)

    async def load(self, notes: IndexedNotes) -> RestoredSnapshot | None:
        """Fill empty notes from the snapshot. Return None where there is no snapshot or it is refused, which is logged.
        Raises StoreUnavailable."""
        if self._snapshots is None:
            return None
        identity = await self._store.identity()
        try:
            snapshot = await self._writer.run(partial(self._snapshots.load, self._make_origin(identity)))
            if snapshot is None:
                return None
            bounds = await self._store.log_bounds(snapshot.position)
            self._state.check_log(snapshot.position, bounds)
            if not bounds.reach(snapshot.position):
                raise SnapshotRefused("the log lacks changes since it was made")
            notes.other_space, unreadable = await self._writer.run(
                partial(restore, snapshot.read, notes.index, notes.texts)
            )
            await self._read_again(unreadable, notes)
        except StoreUnavailable:
            raise
        except Exception as error:  # whatever it is, the store can be read instead
            reason = str(error) if isinstance(error, SnapshotRefused) else f"its parts are inconsistent: {error!r}"
            log.warning("snapshot_refused", reason=reason, detail="building the index from the store")
            return None
        self._saved = snapshot.position, self._state.unlogged_changes
        return RestoredSnapshot(snapshot.position, identity, bounds.last)

    async def _read_again(self, unreadable: Sequence[str], notes: IndexedNotes) -> None:
        """Read again the notes that could not be decoded when the snapshot was made: this version of the service may be
        able to decode them, and no log entry will cause them to be read."""
        for begin in range(0, len(unreadable), READ_BATCH_SIZE):
            batch = unreadable[begin : begin + READ_BATCH_SIZE]
            stored = await self._store.get(batch, with_vectors=True)
            await self._writer.run(partial(notes.update, dict(zip(batch, stored, strict=True))))


def snapshot_parts(
    index: Snapshottable, texts: LiveTexts, other_space: OtherSpaceNotes, unreadable: Sequence[str]
) -> list[Part]:
    """Return all parts of a snapshot. Called by the thread that changes the notes, so work in proportion to the number
    of notes is left to the parts' `make`. Files are checked in this order, texts first, since the other parts are
    larger."""
    positions, expiries = other_space.positions(), other_space.expiries()

    def other_notes() -> list[str]:
        return [
            f"{time}-{number} {expiries.get(note_id, '')} {note_id}" for note_id, (time, number) in positions.items()
        ]

    lists = [
        Part(OTHER_SPACE, lambda: packed(OTHER_SPACE, other_notes())),
        Part(UNREADABLE, lambda: packed(UNREADABLE, unreadable)),
    ]
    return [*texts.snapshot_parts(), *index.snapshot_parts(), *lists]


def restore(read: ReadPart, index: Snapshottable, texts: LiveTexts) -> tuple[OtherSpaceNotes, list[str]]:
    """Fill an empty index and empty texts from a snapshot; return the notes of another space, and the ids of those that
    could not be decoded.

    Texts, whose hashtags are counted in Python, are restored in parallel with the index, most of which is copying
    memory.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="restore-texts") as beside:
        texts_restored = beside.submit(texts.restore, read)
        index.restore(read)
        texts_restored.result()
    others = [entry.split(" ", 2) for entry in unpacked(OTHER_SPACE, read(OTHER_SPACE))]
    other_space = OtherSpaceNotes(
        {note_id: position for position, _, note_id in others},
        {note_id: float(expires_at) for _, expires_at, note_id in others if expires_at},
    )
    other_space.sort()
    return other_space, unpacked(UNREADABLE, read(UNREADABLE))
