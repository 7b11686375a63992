"""Steps that the tests of LiveIndex share: writing notes to its store, and searching them in the index."""

from __future__ import annotations

from collections.abc import Sequence

from service.filters import Filter
from service.index.live import LiveIndex
from service.records import StoredNote, Write
from tests.service.conftest import GatedStore, stored_note

WAIT = 10.0
ANY = Filter()


async def put(store: GatedStore, *notes: StoredNote) -> str:
    """Write notes, and return the log position of the last write."""
    (*_, last) = await store.put([Write(note) for note in notes])
    assert last is not None
    return last.position


async def delete(store: GatedStore, note_id: str) -> str:
    """Remove a note that exists, and return the log position of the removal."""
    position = await store.delete(note_id)
    assert position is not None
    return position


async def find_ids(index: LiveIndex, where: Filter = ANY) -> set[str]:
    """Return the ids of all notes that pass a filter."""
    vector = stored_note().vector
    assert vector is not None
    return {hit.id for hit in (await index.search(vector, 10_000, where))}


def notes(count: int, first: int = 0) -> list[StoredNote]:
    """Return notes n<first>, n<first + 1>, ..."""
    return [stored_note(f"n{n}") for n in range(first, first + count)]


def ids_of(stored: Sequence[StoredNote]) -> set[str]:
    return {note.note.id for note in stored}
