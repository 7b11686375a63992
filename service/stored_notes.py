"""Reading one note, and checks of what the store returned for an id: a note, an unreadable one, or None."""

from __future__ import annotations

from service.errors import NoteNotFound, PreconditionFailed, StoredNoteUnreadable
from service.interfaces import NoteStore
from service.read_time import ReadTime
from service.records import Condition, StoredNote, Unreadable


async def read_note(store: NoteStore, note_id: str) -> StoredNote:
    """Return a stored note. Raises NoteNotFound, StoredNoteUnreadable, StoreUnavailable."""
    (stored,) = await ReadTime().wait(store.get([note_id]))
    return readable(note_id, stored)


def check_condition(condition: Condition, note_id: str, known: StoredNote | Unreadable | None) -> None:
    """Check a condition on what the store returned for an id. Raises PreconditionFailed."""
    if not condition.holds(known is not None, known.position if isinstance(known, StoredNote) else ""):
        raise PreconditionFailed(note_id, condition.failure)


def readable(note_id: str, known: StoredNote | Unreadable | None) -> StoredNote:
    """Return the note that the store returned for an id. Raises NoteNotFound, StoredNoteUnreadable."""
    if known is None:
        raise NoteNotFound(note_id)
    if isinstance(known, Unreadable):
        raise StoredNoteUnreadable(note_id, known.reason)
    return known
