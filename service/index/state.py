"""State that the parts of a LiveIndex share: the notes that searches see, and the log position that these have
reached."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from heapq import nsmallest

import numpy as np
import structlog

from service.errors import IndexBehind
from service.filters import Filter
from service.index.backend import IndexBackend, Maintainable
from service.index.other_space import OtherSpaceNotes
from service.index.texts import LiveTexts
from service.records import (
    ORIGIN,
    ChangedNotes,
    LogBounds,
    PositionKey,
    StoredNote,
    Unreadable,
    WrittenRow,
    position_key,
)

READ_BATCH_SIZE = 512
"""Notes or log entries that are read from the store at a time."""
BEYOND_LOG: PositionKey = (2**63 - 1, 0)
"""A position after every entry of a log."""
log = structlog.get_logger(__name__)


class IndexedNotes:
    """The rows of one vector space, the texts of their notes, and the ids of notes in other spaces.

    Changed by one call at a time (IndexWriter); read by any thread.
    """

    def __init__(self, index: IndexBackend, texts: LiveTexts, space: str) -> None:
        self.index = index
        self.texts = texts
        self.other_space = OtherSpaceNotes()
        self.newest = ORIGIN
        """Position of the last write of all notes that were added here."""
        self._space = space

    def update(self, notes: Mapping[str, StoredNote | Unreadable | None]) -> None:
        """Apply the store's versions of notes, by id; a note that does not exist or cannot be read is removed."""
        present = [note for note in notes.values() if isinstance(note, StoredNote)]
        self.add(present, removed=notes.keys() - {stored.note.id for stored in present})

    def replace(self, notes: Mapping[str, StoredNote | Unreadable | None]) -> None:
        """Remove every row of these ids, then do what `update` does."""
        self.index.remove(list(notes))
        self.update(notes)

    def add(self, notes: Sequence[StoredNote], removed: Collection[str] = ()) -> None:
        """Add or replace notes, and remove others by id. A note of another space only goes to `other_space`; one whose
        vector is missing or not finite is left out and logged."""
        broken = {note.note.id for note in notes if note.vector is None or not np.isfinite(note.vector).all()}
        if broken:
            log.error("vectors_not_finite", ids=sorted(broken)[:10], detail="searches do not find these notes")
        ours = [note for note in notes if note.space == self._space and note.note.id not in broken]
        others = {note.note.id: note.position for note in notes if note.space != self._space}
        removed_ids = {*removed, *broken}
        self.newest = max([self.newest, *(note.position for note in notes)], key=position_key)
        self.index.upsert(ours)
        self.index.remove([*removed_ids, *others])
        self.texts.upsert(ours)
        self.texts.remove([*removed_ids, *others])
        expiries = {
            note.note.id: note.note.expires_at
            for note in notes
            if note.note.id in others and note.note.expires_at is not None
        }
        self.other_space.put(others, expiries)
        self.other_space.remove({note.note.id for note in ours} | removed_ids)

    def same_vectors(self, notes: ChangedNotes, now: float) -> set[str]:
        """Return the ids of those notes that can already be found here at `now`, by the same vectors."""
        same = [
            note_id
            for note_id, note in notes.items()
            if isinstance(note, StoredNote)
            and note.space == self._space
            and note.vector is not None
            and (known := self.index.vector(note_id)) is not None
            and np.array_equal(note.vector, known)
        ]
        return set(self.index.passing(same, Filter(), now)) if same else set()

    def written(self, after: str, until: str, count: int, where: Filter, now: float) -> list[WrittenRow]:
        """Return the first `count` notes written after `after` and up to `until`, among those that pass the filter and
        those of other spaces."""
        first, last = position_key(after), position_key(until)
        rows = self.index.written(first, last, count, where, now)
        rows |= self.other_space.written(first, last, count)
        ordered = nsmallest(count, rows.items(), key=lambda row: row[1])
        return [WrittenRow(note_id, f"{key[0]}-{key[1]}") for note_id, key in ordered]

    def passing_ids(self, where: Filter, count: int, now: float) -> list[str]:
        """Return the ids of the notes that pass a filter, of which there are `count`, and of some that it excludes. A
        note that is replaced meanwhile may be left out."""
        with_excluded = count + len(where.exclude)
        return list(self.index.written(position_key(ORIGIN), BEYOND_LOG, with_excluded, where, now))

    def expire(self, now: float) -> bool:
        """Remove the notes that have expired at `now`; return whether there were any."""
        expired = self.index.expire(now)
        self.texts.remove(expired)
        return self.other_space.expire(now) or bool(expired)

    @property
    def maintained(self) -> tuple[Maintainable, ...]:
        """The indexes whose segments are merged in the background: first the one whose merges take less time."""
        return self.texts, self.index

    def drop_tombstones(self) -> None:
        """Make the next jobs drop all data about removed notes."""
        for part in self.maintained:
            part.drop_tombstones()

    @property
    def dropping(self) -> bool:
        """Whether jobs that `drop_tombstones` requested are left."""
        return any(part.dropping for part in self.maintained)


class IndexState:
    """The notes that searches see. Changed in the event loop alone.

    `store_identity` names the store that they were read from. `unlogged_changes` counts the changes that no log
    position stands for: repairs, merges of segments, and an exchange of the store. `purging`: data about removed notes
    is being dropped, so that no snapshot is made. `built`: whether the notes are those of the store at `position`;
    `rebuilding`: whether notes that will replace them are being read. `lost` says which acknowledged writes the store
    has lost, as far as this process can tell; empty for none.
    """

    def __init__(self, notes: IndexedNotes) -> None:
        self.notes = notes
        self.store_identity = ""
        self.unlogged_changes = 0
        self.purging = False
        self.built = False
        self.rebuilding = False
        self.lost = ""
        self._position = ORIGIN
        self._position_changed = asyncio.Condition()
        self._listeners: list[Callable[[ChangedNotes | None], None]] = []
        self._vector_listeners: list[Callable[[ChangedNotes | None], None]] = []

    @property
    def position(self) -> str:
        """Log position up to which every write is in the notes."""
        return self._position

    def on_change(self, apply: Callable[[ChangedNotes | None], None]) -> None:
        """Do what NoteIndex.on_change does."""
        self._listeners.append(apply)

    def on_vector_change(self, apply: Callable[[ChangedNotes | None], None]) -> None:
        """Do what NoteIndex.on_vector_change does."""
        self._vector_listeners.append(apply)

    def notify_listeners(self, notes: ChangedNotes | None, same_vectors: Collection[str] = ()) -> None:
        """Call the listeners of on_change, and those of on_vector_change with the notes that are not in `same_vectors`,
        if any. `notes`: None, which all of them get, if any note may have changed. `same_vectors`: ids of notes that
        could be found before by the same vectors."""
        for apply in self._listeners:
            apply(notes)
        if notes is not None:
            notes = {note_id: note for note_id, note in notes.items() if note_id not in same_vectors}
        if notes is None or notes:
            for apply in self._vector_listeners:
                apply(notes)

    def check_log(self, position: str, bounds: LogBounds) -> None:
        """Record that the store has lost writes, if its log has lost `position`, which it had reached: its files were
        truncated or exchanged, or it failed over to a replica that was behind."""
        if bounds.lost(position):
            self.lost = f"the log ends at {bounds.last} and no longer has {position}: acknowledged writes are lost"
            log.error("store_lost_writes", detail=self.lost)

    async def publish(self, notes: IndexedNotes, store_identity: str, position: str) -> None:
        """Make searches use other notes: those that the store had at `position`, and perhaps later ones."""
        async with self._position_changed:
            self.notify_listeners(None)
            self.notes, self.store_identity, self.built = notes, store_identity, True
            self._position = position
            self._position_changed.notify_all()

    async def advance_to(self, position: str, changed: ChangedNotes, same_vectors: Collection[str]) -> None:
        """Set the position, and wake the callers that wait for it. `changed`: the notes that changed since the last
        position; of these, `same_vectors` could be found before by the same vectors."""
        async with self._position_changed:
            self.notify_listeners(changed, same_vectors)
            self._position = position
            self._position_changed.notify_all()

    async def wait_for(self, position: str, seconds: float) -> None:
        """Return once `position` is reached. Raises IndexBehind after `seconds`."""
        key = position_key(position)
        try:
            async with asyncio.timeout(seconds), self._position_changed:
                await self._position_changed.wait_for(lambda: position_key(self._position) >= key)
        except TimeoutError:
            raise IndexBehind(position, self._position) from None
