"""Pages of one ranked list, which the store keeps for a time, so that any replica can return any page of it.

A cursor names the list and the place in it where the next page begins. Notes that were deleted since are skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from model.note import Note
from service.errors import FieldError, InvalidInput, ListExpired, StoreUnavailable
from service.interfaces import ListStore
from service.read_time import ReadTime
from service.records import RankedList, RankedNote, RelatedNote, Similar, StoredNote
from service.search.request import SearchRequest
from service.search.verified import VerifiedNotes

MAX_LIST_NOTES = 1000
"""Bound on the notes of a list that is kept for its pages, published at GET /limits."""
CURSOR = re.compile(r"([0-9A-HJKMNP-TV-Z]{26})\.(\d{1,4})")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A list that is kept for its pages, and the place in it where a page begins."""

    list_id: str
    start: int

    def __str__(self) -> str:
        return f"{self.list_id}.{self.start}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Parse a cursor. Raises InvalidInput."""
        if match := CURSOR.fullmatch(text):
            return cls(match[1], int(match[2]))
        raise InvalidInput([FieldError("/cursor", 'must be "*" or `next_cursor` from an answer')])


class Pages:
    """Pages of one tenant's lists, kept in `lists`."""

    def __init__(self, lists: ListStore) -> None:
        self._lists = lists

    async def first(
        self, request: SearchRequest, ranked: RankedList, notes: VerifiedNotes, time_left: ReadTime
    ) -> Similar:
        """Save a list and return its first page. While the store is unavailable that is the only page."""
        await notes.read(())  # reads the examples, where nothing was found
        try:
            ranked = await time_left.wait(self._lists.save(ranked))
        except StoreUnavailable:
            notes.degraded = True
        return await self._page(request, ranked, 0, notes, time_left)

    async def next(self, request: SearchRequest, notes: VerifiedNotes, time_left: ReadTime) -> Similar:
        """Return the page that the request's cursor names. Raises InvalidInput, ListExpired, StoreUnavailable."""
        cursor = Cursor.parse(request.cursor or "")
        ranked = await time_left.wait(self._lists.read(cursor.list_id, cursor.start, request.k))
        if ranked is None:
            raise ListExpired
        if ranked.fingerprint != request.fingerprint:
            detail = 'is from a different request; repeat that request with this cursor, or start again with "*"'
            raise InvalidInput([FieldError("/cursor", detail)])
        return await self._page(request, ranked, cursor.start, notes, time_left)

    async def _page(
        self, request: SearchRequest, ranked: RankedList, start: int, notes: VerifiedNotes, time_left: ReadTime
    ) -> Similar:
        """Return the page of a list from `start` on, where `ranked` begins: up to k notes that the store still has."""
        kept: list[tuple[int, RankedNote]] = []
        place, rest = start, ranked.notes
        while len(kept) < request.k and place < ranked.total:
            if not rest:
                more = await time_left.wait(self._lists.read(ranked.id, place, request.k))
                if more is None:
                    raise ListExpired
                rest = more.notes
            part, rest = rest[: request.k - len(kept)], rest[request.k - len(kept) :]
            await notes.read([note_id for one in part for note_id in (one.id, *one.duplicates)])
            kept += [(place + i, one) for i, one in enumerate(part) if notes.known.get(one.id, one) is not None]
            place += len(part)
        ended = place >= ranked.total or notes.degraded
        next_cursor = None if ended else str(Cursor(ranked.id, place))
        complete = not ended or (ranked.complete and not notes.degraded)
        return answer(ranked, kept, complete, notes, paged=True, next_cursor=next_cursor)


def answer(
    ranked: RankedList,
    kept: list[tuple[int, RankedNote]],
    complete: bool,
    notes: VerifiedNotes,
    *,
    paged: bool = False,
    next_cursor: str | None = None,
) -> Similar:
    """Return the answer of some notes of a list, with their places in it. Where the store was unavailable, only their
    ids are known."""
    known = {} if notes.degraded else notes.known
    items = [
        RelatedNote(
            known.get(one.id) or StoredNote(Note(id=one.id), ""),
            one.score,
            place + 1,
            tuple(note_id for note_id in one.duplicates if notes.known.get(note_id, one) is not None),
            one.explanation,
        )
        for place, one in kept
    ]
    return Similar(
        ranked.id,
        items,
        complete,
        ranked.log_position,
        notes.degraded,
        paged,
        next_cursor,
        ranked.missing,
        ranked.removed,
    )
