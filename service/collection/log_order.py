"""LogOrderReader: reads notes in the order of their last writes, while others write."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress

from service.errors import IndexBehind, StoreReplaced
from service.filters import Filter, accepted_by
from service.interfaces import MAX_READ_BYTES, NoteIndex, NoteStore
from service.read_time import READ_SECONDS, ReadTime
from service.records import ORIGIN, StoredNote, Unreadable, WrittenRow, position_key


@dataclass(frozen=True, slots=True)
class LogEnd:
    """End of a log at some time. `position`: that of its last entry. `store`: identity of its store, "" if it has none
    yet."""

    position: str
    store: str


NO_LOG = LogEnd(ORIGIN, "")
"""End of the log before the first read."""


class LogOrderReader:
    """Reads the notes that pass `where` and were last written after the position `after`.

    `cursor`: every such note whose last write is at this position or before has been read. `ended`: all notes that
    existed at `cursor` have been read, and `cursor` was the end of the log at that time, or is `after`, which the
    log has not reached; later writes can still be read. The index lists the notes, and each is read from the store.

    `log_end`: end of the log at the last read; to continue an earlier reading at its `cursor`, its `log_end`. A restore
    or a failover that loses writes takes notes back to earlier versions, at positions that the reading has passed, so
    it cannot go on.
    """

    def __init__(
        self,
        store: NoteStore,
        index: NoteIndex,
        where: Filter,
        after: str = ORIGIN,
        *,
        with_vectors: bool = False,
        log_end: LogEnd = NO_LOG,
    ) -> None:
        self.cursor = after
        self.ended = False
        self.log_end = log_end
        self._store = store
        self._index = index
        self._where = where
        self._with_vectors = with_vectors
        self._needed = ORIGIN
        """Position that `cursor` must reach before the reading has ended: notes that the index listed at earlier
        positions have changed up to there."""

    @property
    def log_position(self) -> str:
        """Position of the log up to which every such note has been read. `cursor` may be later than the end of the log,
        as `after` may be."""
        return min(self.cursor, self.log_end.position, key=position_key)

    async def read(self, count: int) -> list[StoredNote]:
        """Return the next notes: at most `count`, as many as fit in MAX_READ_BYTES, possibly none. A note that has
        changed since the index saw it is read later, at its new position. Raises StoreUnavailable, IndexBehind,
        StoreReplaced."""
        time_left = ReadTime()
        log_end = (await self._read_log_end(time_left)).position
        await self._index.wait_for(log_end, READ_SECONDS)
        written = await self._index.written(self.cursor, count, self._where)
        if written.store != self.log_end.store:  # the store was restored, and the index has noticed it, or not yet
            await self._read_log_end(time_left)
            raise IndexBehind(log_end, written.until)
        ids = [row.id for row in written.rows]
        reading = self._store.get(ids, with_vectors=self._with_vectors, max_bytes=MAX_READ_BYTES)
        notes = await time_left.wait(reading)
        rows = written.rows[: len(notes)]
        current = [note for row, note in zip(rows, notes, strict=True) if _is_current(row, note)]
        if len(current) < len(notes):
            self.read_beyond((await self._read_log_end(time_left)).position)
        if len(rows) == len(written.rows) < count:
            self.cursor = max(self.cursor, written.until, key=position_key)  # `after` may be later than the index
            newest = written.newest
            # A later write, or a damaged note beyond the end of the log; and the store may have been replaced.
            self.read_beyond(min(newest, (await self._read_log_end(time_left)).position, key=position_key))
            self.ended = position_key(self.cursor) >= position_key(self._needed)
        else:
            self.cursor = rows[-1].position
        stored = [note for note in current if isinstance(note, StoredNote)]
        return list(compress(stored, await accepted_by(self._where, stored)))

    async def _read_log_end(self, time_left: ReadTime) -> LogEnd:
        """Return the end of the log. Raises StoreUnavailable; StoreReplaced where the log is not the one from before,
        or has lost writes."""
        before = self.log_end
        bounds = await time_left.wait(self._store.log_bounds(before.position))
        if before.store not in ("", bounds.store) or bounds.lost(before.position):
            raise StoreReplaced
        self.log_end = LogEnd(bounds.last, bounds.store)
        return self.log_end

    def read_beyond(self, position: str) -> None:
        """Continue reading at least up to `position`."""
        self._needed = max(self._needed, position, key=position_key)
        self.ended = False


def _is_current(row: WrittenRow, note: StoredNote | Unreadable | None) -> bool:
    """Return whether the store still has the version of the note that the index saw."""
    return isinstance(note, StoredNote) and note.position == row.position
