"""Records of events (what readers did with notes) that pass between the API, the store and behaviour/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EventOutcome = Literal["accepted", "duplicate", "unknown_note"]
"""Result of storing an event: it was added to the stream, it was there before, or its note does not exist."""


@dataclass(frozen=True, slots=True)
class Event:
    """An act of a reader on a note. `id` is unique; `reader` names a user or a session; `at` is in seconds since the
    epoch. `details`: a JSON object with the other fields that the caller sent; empty for none."""

    id: str
    type: str
    note_id: str
    reader: str
    at: float
    details: bytes = b""


@dataclass(frozen=True, slots=True)
class EventEntry:
    """An entry of the stream of events, at `position`. `kind` "event": the reader did `type` at the time `at`. The
    other kinds concern earlier entries: "note": the note was removed; "reader": the reader was forgotten; "purge":
    entries were removed from the stream; "unreadable": the entry cannot be decoded. `reader` is a pseudonym."""

    position: str
    kind: Literal["event", "note", "reader", "purge", "unreadable"]
    type: str = ""
    note_id: str = ""
    reader: str = ""
    at: float = 0.0
    details: bytes = b""


@dataclass(frozen=True, slots=True)
class EventStreamEnd:
    """End of a stream of events. `last`: position of the last entry ever written, ORIGIN for none. `added`: number of
    entries ever added to the stream, which a purge replaces by another; None where the server does not count them.
    `store`: identity of the store that has the stream."""

    last: str
    added: int | None
    store: str


@dataclass(frozen=True, slots=True)
class EventBounds:
    """Bounds of the stream of events: `seconds` for which an entry is kept, `bytes` of all entries, `id_seconds` for
    which an event's id is remembered, and number of `ids` that are remembered."""

    seconds: float
    bytes: int
    id_seconds: float
    ids: int
