"""VerifiedNotes: the store's versions of notes, read by the full search, whose answers name no note that was not
read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.errors import StoreUnavailable
from service.filters import Filter, accepted_by
from service.interfaces import NoteStore
from service.read_time import ReadTime
from service.records import StoredNote, Unreadable

KEPT_CHARACTERS = 2000
"""Characters that a search keeps of a note's title and of its content: as many as words are read from
(`model.words.MAX_CHARS`; a test compares the two). A search with boosts reads thousands of notes; whole contents are
read again where `include` names them (api/included.py)."""


class ExamplesMissing(Exception):
    """The store lacks examples of the search. `examples`: by id, None, or the note that cannot be decoded."""

    def __init__(self, examples: dict[str, Unreadable | None]) -> None:
        super().__init__(*examples)
        self.examples = examples


class VerifiedNotes:
    """Notes of one search by their ids, in `known`; None for one that does not exist, is unreadable, or does not pass
    the filter.

    `example_ids` are read in the first round trip. Once the store was unavailable, `degraded` is set and nothing more
    is read.
    """

    def __init__(self, store: NoteStore, where: Filter, time_left: ReadTime, example_ids: Sequence[str] = ()) -> None:
        self.known: dict[str, StoredNote | None] = {}
        self._examples: dict[str, StoredNote] = {}
        self.degraded = False
        self._store = store
        self._where = where
        self._time_left = time_left
        self._example_ids = example_ids

    async def read(self, ids: Sequence[str]) -> bool:
        """Read those notes that are not known yet. Return False where there was nothing to read, or the store is
        unavailable. Raises ExamplesMissing."""
        unread = [note_id for note_id in ids if note_id not in self.known]
        if self.degraded or not (unread or self._example_ids):
            return False
        try:
            notes = await self._time_left.wait(self._shortened([*unread, *self._example_ids]))
        except StoreUnavailable:
            self.degraded = True
            return False
        examples = dict(zip(self._example_ids, notes[len(unread) :], strict=True))
        self._example_ids = ()
        missing = {note_id: note for note_id, note in examples.items() if not isinstance(note, StoredNote)}
        if missing:
            raise ExamplesMissing(missing)
        self._examples |= {note_id: note for note_id, note in examples.items() if isinstance(note, StoredNote)}
        self.known |= dict.fromkeys(unread)
        stored = [note for note in notes[: len(unread)] if isinstance(note, StoredNote)]
        accepted = await accepted_by(self._where, stored)
        self.known |= {note.note.id: note for note, accepts in zip(stored, accepted, strict=True) if accepts}
        return True

    async def _shortened(self, ids: Sequence[str]) -> list[StoredNote | Unreadable | None]:
        """Return the store's versions of notes, with titles and contents cut to KEPT_CHARACTERS."""
        return [_shortened(note) async for part in self._store.get_in_parts(ids) for note in part]

    def example(self, note_id: str | None) -> StoredNote | None:
        """Return an example that was read; None for one that was not."""
        return self._examples.get(note_id or "")


def _shortened(note: StoredNote | Unreadable | None) -> StoredNote | Unreadable | None:
    if not isinstance(note, StoredNote) or max(len(note.note.title), len(note.note.content)) <= KEPT_CHARACTERS:
        return note
    title, content = note.note.title[:KEPT_CHARACTERS], note.note.content[:KEPT_CHARACTERS]
    return replace(note, note=replace(note.note, title=title, content=content))
