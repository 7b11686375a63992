"""Export: all notes of a tenant, or what changed after a log position, as a stream of changes in the log's order."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from service.collection.log_order import LogOrderReader
from service.collection.log_reach import check_reaches
from service.filters import Filter
from service.interfaces import NoteIndex, NoteStore
from service.read_time import ReadTime
from service.records import ORIGIN, LogEntry, StoredNote, position_key

BATCH_SIZE = 500
"""Notes that are read from the store at a time."""
LOG_BATCH_SIZE = 1000
"""Log entries that are read at a time."""
MAX_EXPORTS = 4
"""Bound on the exports of one tenant that run at one process, published at GET /limits."""
Change = StoredNote | LogEntry
"""A note that was written, or the entry of a removal."""


class Export:
    """An export. Its changes, applied one after the other to an empty store, or to a copy of the store as of `after`,
    give the store as of `end`: each written note replaces the one with its id.

    `begin`: removals after this position are among the changes. Expiry is not a change: a note disappears by itself
    when it expires.
    """

    def __init__(self, store: NoteStore, reader: LogOrderReader, after: str | None, begin: str) -> None:
        self.after = after
        self.begin = begin
        self.notes = self.removals = 0
        """Numbers of notes and of removals that were returned so far."""
        self._store = store
        self._reader = reader
        self._log_cursor = max(begin, after or ORIGIN, key=position_key)
        """Position up to which removals were returned."""

    @classmethod
    async def open(
        cls,
        store: NoteStore,
        index: NoteIndex,
        after: str | None = None,
        begin: str | None = None,
        *,
        with_vectors: bool = False,
    ) -> Export:
        """Begin an export of all notes, or of what changed after `after`. `begin`: to resume an export that was
        interrupted at `after`, its `begin`. Raises InvalidInput, LogCut, StoreUnavailable."""
        reached = max(after or ORIGIN, begin or ORIGIN, key=position_key)
        bounds = await ReadTime().wait(store.log_bounds(reached))
        if after is not None:
            check_reaches(bounds, reached)
        reader = LogOrderReader(store, index, Filter(), after or ORIGIN, with_vectors=with_vectors)
        return cls(store, reader, after, begin or after or bounds.last)

    @property
    def end(self) -> str:
        """Position at which the store has the state that the changes give, once all were returned."""
        return self._reader.cursor

    async def changes(self) -> AsyncGenerator[list[Change]]:
        """Yield the changes in batches, in the order of their positions. Raises StoreUnavailable, IndexBehind, LogCut,
        StoreReplaced."""
        while not self._reader.ended:
            notes = await self._reader.read(BATCH_SIZE)
            until = self._reader.cursor
            while notes or position_key(self._log_cursor) < position_key(until):
                removals = await self._read_removals(until)
                reached = position_key(self._log_cursor)
                before = [note for note in notes if position_key(note.position) <= reached]
                notes = notes[len(before) :]
                self.notes += len(before)
                self.removals += len(removals)
                yield sorted([*before, *removals], key=lambda change: position_key(change.position))

    async def _read_removals(self, until: str) -> list[LogEntry]:
        """Read a page of the log, no further than the position `until`, and return the removals in it."""
        if position_key(self._log_cursor) >= position_key(until):
            return []
        entries, bounds = await ReadTime().wait(self._store.read_log(self._log_cursor, LOG_BATCH_SIZE, 0.0))
        check_reaches(bounds, self._log_cursor)
        within = [entry for entry in entries if position_key(entry.position) <= position_key(until)]
        self._log_cursor = within[-1].position if within and within == entries else until
        return [entry for entry in within if entry.removed]
