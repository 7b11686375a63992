"""LogOrderReader: reads notes in the order of their last writes, while others write."""

from __future__ import annotations

from itertools import compress

from service.filters import Filter, accepted_by
from service.interfaces import MAX_READ_BYTES, NoteIndex, NoteStore
from service.read_time import READ_SECONDS, ReadTime
from service.records import ORIGIN, StoredNote, Unreadable, WrittenRow, position_key


class LogOrderReader:
    """Reads the notes that pass `where` and were last written after the position `after`.

    `cursor`: every such note whose last write is at this position or before has been read. `ended`: all notes that
    existed at `cursor` have been read, and `cursor` was the end of the log at that time, or is `after`, which the
    log has not reached; later writes can still be read. The index lists the notes, and each is read from the store.
    """

    def __init__(
        self,
        store: NoteStore,
        index: NoteIndex,
        where: Filter,
        after: str = ORIGIN,
        *,
        with_vectors: bool = False,
    ) -> None:
        self.cursor = after
        self.ended = False
        self._store = store
        self._index = index
        self._where = where
        self._with_vectors = with_vectors
        self._log_end = ORIGIN
        """End of the log at the last call of `read`."""
        self._needed = ORIGIN
        """Position that `cursor` must reach before the reading has ended: notes that the index listed at earlier
        positions have changed up to there."""

    @property
    def log_position(self) -> str:
        """Position of the log up to which every such note has been read. `cursor` may be later than the end of the log,
        as `after` may be."""
        return min(self.cursor, self._log_end, key=position_key)

    async def read(self, count: int) -> list[StoredNote]:
        """Return the next notes: at most `count`, as many as fit in MAX_READ_BYTES, possibly none. A note that has
        changed since the index saw it is read later, at its new position. Raises StoreUnavailable, IndexBehind."""
        time_left = ReadTime()
        log_end = self._log_end = (await time_left.wait(self._store.log_bounds())).last
        await self._index.wait_for(log_end, READ_SECONDS)
        written = await self._index.written(self.cursor, count, self._where)
        ids = [row.id for row in written.rows]
        reading = self._store.get(ids, with_vectors=self._with_vectors, max_bytes=MAX_READ_BYTES)
        notes = await time_left.wait(reading)
        rows = written.rows[: len(notes)]
        current = [note for row, note in zip(rows, notes, strict=True) if _is_current(row, note)]
        if len(current) < len(notes):
            self.read_beyond((await time_left.wait(self._store.log_bounds())).last)
        if len(rows) == len(written.rows) < count:
            self.cursor = max(self.cursor, written.until, key=position_key)  # `after` may be later than the index
            newest = written.newest
            if position_key(newest) > position_key(log_end):  # a later write, or a damaged note beyond the log's end
                newest = min(newest, (await time_left.wait(self._store.log_bounds())).last, key=position_key)
            self.read_beyond(newest)
            self.ended = position_key(self.cursor) >= position_key(self._needed)
        else:
            self.cursor = rows[-1].position
        stored = [note for note in current if isinstance(note, StoredNote)]
        return list(compress(stored, await accepted_by(self._where, stored)))

    def read_beyond(self, position: str) -> None:
        """Continue reading at least up to `position`."""
        self._needed = max(self._needed, position, key=position_key)
        self.ended = False


def _is_current(row: WrittenRow, note: StoredNote | Unreadable | None) -> bool:
    """Return whether the store still has the version of the note that the index saw."""
    return isinstance(note, StoredNote) and note.position == row.position
