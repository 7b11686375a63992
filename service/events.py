"""Events, what readers did with notes: their records, which pass between the edge, the store and behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EventOutcome = Literal["accepted", "duplicate", "unknown_note"]
"""Result of storing an event: it is in the stream; it was there before; or its note does not exist."""


@dataclass(frozen=True, slots=True)
class Event:
    """Event: an act of a reader on a note. `id` tells it from all others; `reader` names a user or a session; `at` is
    in seconds since the epoch. `details`: a JSON object of what else the caller said of it; empty for nothing."""

    id: str
    type: str
    note_id: str
    reader: str
    at: float
    details: bytes = b""


@dataclass(frozen=True, slots=True)
class EventEntry:
    """An entry of the stream of events at `position`. `kind` "event": the reader did `type` at the time `at`. Others
    concern what came before: "note": the note was removed; "reader": the reader was forgotten; "purge": entries were
    taken out of the stream; "unreadable": the store has not written it. `reader` is a pseudonym."""

    position: str
    kind: Literal["event", "note", "reader", "purge", "unreadable"]
    type: str = ""
    note_id: str = ""
    reader: str = ""
    at: float = 0.0
    details: bytes = b""


@dataclass(frozen=True, slots=True)
class EventBounds:
    """Bounds of the stream of events: seconds for which an entry is kept, bytes of all entries, seconds for which an
    event's id is known, and how many ids are known."""

    seconds: float
    bytes: int
    id_seconds: float
    ids: int
