"""Reading notes by their ids, and all notes page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.collection.cursor import Cursor, decode_cursor, encode_cursor
from service.collection.log_order import NO_LOG, LogOrderReader
from service.filters import Filter
from service.interfaces import MAX_READ_BYTES, NoteIndex, NoteStore
from service.read_time import ReadTime
from service.records import StoredNote, Unreadable

MAX_IDS = 1000
"""Bound on the ids of a request to read notes, and on those that a receipt lists; published at GET /limits."""
MAX_PAGE = 1000
"""Bound on the notes of a page, published at GET /limits."""
MAX_READS = 20
"""Bound on the reads for a page while they return no note: after a change of the model, perhaps none of the notes read
passes the filter."""


@dataclass(frozen=True, slots=True)
class NotesByIds:
    """Notes in the order of the requested ids. `missing`: ids without a note. `unreadable`: ids of notes that the store
    has in a form that cannot be read. `unread`: the last ids, whose notes exceed MAX_READ_BYTES."""

    notes: list[StoredNote]
    missing: list[str]
    unreadable: list[str]
    unread: list[str]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list. `cursor`: that of the next page; None for the last page. `position`: every write up to it is in
    this page or an earlier one."""

    notes: list[StoredNote]
    cursor: str | None
    position: str


async def get_notes(store: NoteStore, ids: Sequence[str], *, with_vectors: bool = False) -> NotesByIds:
    """Return the notes of some ids; only the first ones if they have more than MAX_READ_BYTES together. Raises
    StoreUnavailable."""
    known = await ReadTime().wait(store.get(ids, with_vectors=with_vectors, max_bytes=MAX_READ_BYTES))
    return NotesByIds(
        notes=[note for note in known if isinstance(note, StoredNote)],
        missing=[note_id for note_id, note in zip(ids, known, strict=False) if note is None],
        unreadable=[note.id for note in known if isinstance(note, Unreadable)],
        unread=list(ids[len(known) :]),
    )


async def list_notes(
    store: NoteStore, index: NoteIndex, where: Filter, after: str, limit: int, cursor: str | None = None
) -> Page:
    """Return a page of the notes that pass a filter and were last written after the position `after`, in the order of
    their last writes; `cursor`: that of the page, None for the first. Raises InvalidInput, StoreUnavailable,
    IndexBehind; StoreReplaced where the store was restored, or lost writes, since the page before.

    A note that is not written meanwhile is in exactly one page. A note that is rewritten may be in another page too,
    and a note that is removed before a page is requested is not in that page.
    """
    begin = Cursor(after, NO_LOG) if cursor is None else decode_cursor(cursor, where, after)
    reader = LogOrderReader(store, index, where, begin.position, log_end=begin.log_end)
    notes: list[StoredNote] = []
    for _ in range(MAX_READS):
        notes = await reader.read(limit)
        if reader.ended or notes:
            break  # one read returns at most MAX_READ_BYTES
    following = None if reader.ended else encode_cursor(Cursor(reader.cursor, reader.log_end), where, after)
    return Page(notes, following, reader.log_position)
