"""POST /events, DELETE /users/{user}/events, GET /reports/recommendations."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from service.api.schemas.common import Label, NoteId, ReaderId, Time, Wire
from service.api.schemas.problem import Problem
from service.behaviour.report import Dimension, Rate
from service.events import Event

MAX_EVENT_BYTES = 4096
"""Bound on one event as JSON, published at GET /limits."""
MAX_EVENT_LINES = 100_000
"""Bound on the lines of one NDJSON body, blank ones included. About this many ordinary events fill the largest body;
without the bound a body of one-byte lines could have millions, each with a result."""
MAX_AHEAD_SECONDS = 300.0
"""Bound on how far the time of an event may be ahead of this service's clock, published at GET /limits."""
MAX_POSITION = 100_000
"""Bound on the place of a note in an answer, published at GET /limits."""
DETAILS = ("recommendation_id", "position", "scenario", "variant", "source", "value")
"""Fields that are kept as they were sent."""

EventId = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class EventIn(Wire):
    """Event: an act of a reader on a note. It names either a `user` or a `session`. `scenario`, `variant`, `position`
    and `source` describe the recommendation that led to it; the caller knows them, and reports group events by them."""

    event_id: EventId = Field(description="identifies the event, so that it counts once", examples=["e-1"])
    type: str = Field(max_length=64, description="a type of NOTELLM_EVENT_TYPES", examples=["click"])
    note_id: NoteId
    session: ReaderId | None = Field(None, description="for a reader who is not known")
    user: ReaderId | None = Field(None, validate_default=True)
    recommendation_id: EventId | None = Field(None, description="of the answer in which the note was recommended")
    position: int | None = Field(None, ge=1, le=MAX_POSITION, description="`position` of the note in that answer")
    scenario: Label | None = Field(None, description="the place that the recommendation was for")
    variant: Label | None = Field(None, description="of an experiment")
    source: Label | None = Field(None, description="what the note was found by")
    at: Time | None = Field(None, description="when it happened; now by default")
    value: float | None = Field(None, allow_inf_nan=False, description="for example seconds, or a share that was read")

    @field_validator("user")
    @classmethod
    def _check_one_reader(cls, user: str | None, info: ValidationInfo) -> str | None:
        if "session" in info.data and (user is None) == (info.data["session"] is None):
            given = "neither" if user is None else "both"
            raise PydanticCustomError(
                "reader", "must be given, or else session: this event has {given}", {"given": given}
            )
        return user

    def as_event(self, now: float) -> Event:
        details = {name: value for name in DETAILS if (value := getattr(self, name)) is not None}
        return Event(
            id=self.event_id,
            type=self.type,
            note_id=self.note_id,
            reader=user_name(self.user) if self.user is not None else session_name(self.session or ""),
            at=self.at.timestamp() if self.at else now,
            details=orjson.dumps(details) if details else b"",
        )


def user_name(user: str) -> str:
    """Return the name of a user among all readers."""
    return f"user:{user}"


def session_name(session: str) -> str:
    """Return the name of a session among all readers."""
    return f"session:{session}"


class EventOut(BaseModel):
    """Result of one event: it is durable now (accepted), was before (duplicate), or was refused for `problem`."""

    event_id: str | None = None
    status: Literal["accepted", "duplicate", "refused"]
    problem: Problem | None = None


class EventsOut(BaseModel):
    """One result for each event of a list, in its order."""

    results: list[EventOut]


class ForgottenOut(BaseModel):
    """Receipt of a removal. `events`: how many were removed. Within moments no replica counts them any more."""

    events: int


class RateOut(BaseModel):
    """Notes that recommendations showed, and how many of them were clicked: each counts once. `low` and `high`: 95%
    interval of the rate (Wilson). A dimension that was not asked for (`by`) is null. `position` is
    text: it may be "(other)"."""

    model_config = ConfigDict(extra="forbid")

    scenario: str | None = None
    variant: str | None = None
    position: str | None = None
    source: str | None = None
    shown: int
    clicked: int
    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, rate: Rate) -> Self:
        names = {str(name): value for name, value in rate.names.items()}
        return cls(**names, shown=rate.shown, clicked=rate.clicked, rate=rate.rate, low=rate.low, high=rate.high)


class ReportOut(BaseModel):
    """Rates of clicks. `complete`: false while this replica still reads events of before its start. `unmatched`:
    clicks, of the days from `since` on, of notes for which no event says that they were shown. `left_out`: how many
    rates are not here, of what was shown less."""

    by: list[Dimension]
    since: datetime
    complete: bool
    unmatched: int
    rates: list[RateOut]
    left_out: int

    @classmethod
    def make(
        cls, by: list[Dimension], since: float, complete: bool, unmatched: int, rates: list[Rate], left_out: int
    ) -> Self:
        return cls(
            by=by,
            since=datetime.fromtimestamp(since, UTC),
            complete=complete,
            unmatched=unmatched,
            rates=[RateOut.of(rate) for rate in rates],
            left_out=left_out,
        )
