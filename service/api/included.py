"""Note fields that a search requests with `include`, in addition to those that every item of an answer has."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from fastapi import Request

from service.access.principal import Scope
from service.api.access import check_option
from service.api.bodies import TimeSlices
from service.api.schemas.notes import NoteOut
from service.api.schemas.similar import IncludedField, RankingOptions, SimilarOut
from service.errors import StoreUnavailable
from service.interfaces import MAX_READ_BYTES, NoteStore
from service.read_time import ReadTime
from service.records import Similar, StoredNote
from service.search.verified import KEPT_CHARACTERS


def check_note_access(options: RankingOptions, request: Request) -> None:
    """Raise Forbidden for a caller who may not read notes and requests their fields, or explanations, which reveal
    words of contents and what attributes add. `options`: the caller's own, without its scenario: whoever runs the
    service chose what a scenario binds."""
    if options.include:
        check_option(request, Scope.NOTES_READ, "a search with `include`")
    if options.explain:
        check_option(request, Scope.NOTES_READ, "a search with `explain`")


class IncludedFields:
    """Adds fields to the items of the answers to one request, up to MAX_READ_BYTES of JSON in all of them together.

    An item beyond that bound has null in each field, and its id is in `unread` of its answer. The same holds for an
    item whose content was overwritten while the search was answered, or could not be read from the store in time.
    """

    def __init__(self, store: NoteStore) -> None:
        self._store = store
        self._bytes_left = MAX_READ_BYTES
        self._slices = TimeSlices()

    async def add(
        self, answer: SimilarOut, similar: Similar, names: Sequence[IncludedField], time_left: ReadTime
    ) -> None:
        """Add the fields `names` to the items of `answer`, which was made from `similar`."""
        if not names:
            return
        notes = [None if similar.degraded else related.stored for related in similar.items]
        if "content" in names and not similar.degraded:
            notes = await self._with_contents(notes, time_left)
        unread = []
        for item, stored in zip(answer.items, notes, strict=True):
            note = stored and NoteOut.of(stored)
            if note:
                self._bytes_left -= len(note.model_dump_json(include=set[str](names)).encode())
                await self._slices.check()
            if note is None or self._bytes_left < 0:
                note = None
                unread.append(item.id)
            for name in names:
                setattr(item, name, note and getattr(note, name))
        if unread and not similar.degraded:
            answer.unread = unread

    async def _with_contents(self, notes: Sequence[StoredNote | None], time_left: ReadTime) -> list[StoredNote | None]:
        """Return the notes of a search with their whole contents, of which the search keeps only the beginning; None
        for a note whose content cannot be read."""
        long = [note.note.id for note in notes if note and len(note.note.content) >= KEPT_CHARACTERS]
        whole: dict[tuple[str, str], StoredNote] = {}
        if long and self._bytes_left > 0:
            with suppress(StoreUnavailable):
                read = await time_left.wait(self._store.get(long, max_bytes=self._bytes_left))
                whole = {(note.note.id, note.position): note for note in read if isinstance(note, StoredNote)}
        return [whole.get((note.note.id, note.position)) if note and note.note.id in long else note for note in notes]
