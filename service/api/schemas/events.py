"""POST /events, DELETE /users/{user}/events, GET /reports/recommendations."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from service.api.schemas.common import Label, NoteId, ReaderId, Time, Wire
from service.api.schemas.problem import Problem
from service.behaviour.report import MAX_RATES, OTHER, Dimension, Rate
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
    """Something that a reader did with a note. Reports group events by `scenario`, `variant`, `position` and `source`
    of the recommendation that led to them."""

    event_id: EventId = Field(
        description="unique id of the event; an event that is sent again with the same id is not counted again",
        examples=["e-1"],
    )
    type: str = Field(
        max_length=64,
        description="type of the event, one of `event_types` of GET /limits (NOTELLM_EVENT_TYPES)",
        examples=["click"],
    )
    note_id: NoteId
    session: ReaderId | None = Field(
        None, description="id of an anonymous reader's session; either this or `user` is required"
    )
    user: ReaderId | None = Field(
        None, validate_default=True, description="id of a known reader; either this or `session` is required"
    )
    recommendation_id: EventId | None = Field(
        None, description="`recommendation_id` of the answer that recommended the note"
    )
    position: int | None = Field(None, ge=1, le=MAX_POSITION, description="`position` of the note in that answer")
    scenario: Label | None = Field(
        None, description="name of the place where the recommendation was shown, such as the `scenario` of the search"
    )
    variant: Label | None = Field(None, description="`variant` of that answer, or of your own experiment")
    source: Label | None = Field(
        None,
        description="your own label for how the note was found, such as the `sources` of the search; no answer to a "
        "search contains it",
    )
    at: Time | None = Field(
        None,
        description="time of the event; default: now. A time up to `max_event_ahead_seconds` of GET /limits in the "
        "future counts as now",
    )
    value: float | None = Field(
        None,
        allow_inf_nan=False,
        description="a number about the event, such as the seconds or the share of the note that was read",
    )

    @field_validator("user")
    @classmethod
    def _check_one_reader(cls, user: str | None, info: ValidationInfo) -> str | None:
        if "session" in info.data and (user is None) == (info.data["session"] is None):
            given = "neither" if user is None else "both"
            raise PydanticCustomError(
                "reader", "exactly one of user and session must be given: this event has {given}", {"given": given}
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
    """Result of one event. Fields that would be null are omitted."""

    event_id: str | None = Field(None, description="id of the event; null if a refused event has none")
    status: Literal["accepted", "duplicate", "refused"] = Field(
        description="accepted: the event is now durable; duplicate: it was stored before; refused: see `problem`"
    )
    problem: Problem | None = Field(None, description="why the event was refused; null if it was not")


class EventsOut(BaseModel):
    """Results of a list of events."""

    results: list[EventOut] = Field(description="one result for each event, in request order")


class ForgottenOut(BaseModel):
    """Receipt of a removal. Within moments, no replica counts the events any more."""

    events: int = Field(description="number of removed events")


GROUPED = (
    f'null if `by` does not name it, or the events lack it; "{OTHER}" for events beyond the maximum number of groups'
)


class RateOut(BaseModel):
    """Click rate of recommended notes; a note counts once for each recommendation that showed it."""

    model_config = ConfigDict(extra="forbid")

    scenario: str | None = Field(None, description=f"`scenario` of the events; {GROUPED}")
    variant: str | None = Field(None, description=f"`variant` of the events; {GROUPED}")
    position: str | None = Field(None, description=f"`position` of the events, as text; {GROUPED}")
    source: str | None = Field(None, description=f"`source` of the events; {GROUPED}")
    shown: int = Field(description="number of notes that were shown")
    clicked: int = Field(description="number of these notes that were clicked")
    rate: float = Field(description="`clicked` / `shown`")
    low: float = Field(description="lower end of the rate's 95% confidence interval (Wilson)")
    high: float = Field(description="upper end of the rate's 95% confidence interval (Wilson)")

    @classmethod
    def of(cls, rate: Rate) -> Self:
        names = {str(name): value for name, value in rate.names.items()}
        return cls(**names, shown=rate.shown, clicked=rate.clicked, rate=rate.rate, low=rate.low, high=rate.high)


class ReportOut(BaseModel):
    """Click rates of recommendations."""

    by: list[Dimension] = Field(description="event fields by which the rates are grouped")
    since: datetime = Field(description="start of the report: events count from the beginning of this UTC day on")
    complete: bool = Field(description="false if this replica is still reading events from before its start")
    unmatched: int = Field(description="number of clicks on notes for which no event says that they were shown")
    rates: list[RateOut] = Field(description=f"rates of the groups that were shown most, at most {MAX_RATES:,}")
    left_out: int = Field(description="number of further rates left out, of groups that were shown less")

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
