"""Events of a request: each is validated separately, the valid ones are stored together, and each gets a result."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import Request
from pydantic import ValidationError

from service.api.access import reauthorise
from service.api.bodies import TimeSlices, body_lines, parse_json, read_list
from service.api.ndjson import pieces_of
from service.api.problems import ErrorBudget, echoed_id, inner_problem, invalid_value, problem_line
from service.api.schemas.events import MAX_AHEAD_SECONDS, MAX_EVENT_BYTES, MAX_EVENT_LINES, EventIn, EventOut
from service.behaviour.co_occurrence import Read
from service.container import Service
from service.errors import FieldError, InvalidInput, LimitExceeded, MalformedBody, NoteLLMError, NoteNotFound
from service.events import Event, EventEntry, EventOutcome

CHECKED_READERS = 100
"""Readers whose reads are sent between two checks of the caller's connection and key."""
STREAM_BATCH_SIZE = 1000
"""Events of NDJSON that are sent to the store in one batch."""


class EventParser:
    """Parses the events of one request. `service`: that of the caller's tenant. `now`: time of the request, given to
    events without a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._types = frozenset(service.behaviour.types)
        self.now = service.clock()
        self._first = self.now - service.settings.event_seconds
        self._budget = ErrorBudget()

    def parse(self, raw: bytes, pointer: str = "") -> Event:
        """Parse and check an event. Raises MalformedBody, InvalidInput at `pointer`, LimitExceeded."""
        if len(raw) > MAX_EVENT_BYTES:
            raise LimitExceeded("max_event_bytes", MAX_EVENT_BYTES)
        value = parse_json(raw, pointer)
        try:
            sent = EventIn.model_validate(value)
        except ValidationError as error:
            raise invalid_value(error, pointer) from error
        event = sent.as_event(self.now)
        if event.type not in self._types:
            names = ", ".join(self._service.behaviour.types)
            raise InvalidInput([FieldError(f"{pointer}/type", f"must be one of {names} (NOTELLM_EVENT_TYPES)")])
        if not self._first <= event.at <= self.now + MAX_AHEAD_SECONDS:
            seconds = self._service.settings.event_seconds
            problem = f"must be at most {seconds:,.0f} s in the past or {MAX_AHEAD_SECONDS:.0f} s in the future"
            raise InvalidInput([FieldError(f"{pointer}/at", problem)])
        return event

    def parse_or_refuse(self, raw: bytes, pointer: str = "") -> Event | dict[str, Any]:
        """Parse an event of a list or a line; return it, or the result that says why it is refused. All results
        together share one ErrorBudget. Raises MalformedBody."""
        try:
            return self.parse(raw, pointer)
        except InvalidInput as error:
            return self.refused(self._budget.shorten(error), sent_id(raw))
        except LimitExceeded as error:
            return self.refused(error)

    def refused(self, error: NoteLLMError, event_id: str | None = None) -> dict[str, Any]:
        """Count an invalid event, and return its result. `event_id`: None if it has none to echo."""
        self._service.telemetry.events.labels("invalid").inc()
        return refused_result(error, event_id)


def sent_id(raw: bytes) -> str | None:
    """Return the id of a refused event; None if it has none."""
    try:
        return echoed_id(orjson.loads(raw), "event_id")
    except orjson.JSONDecodeError:  # refused for its brackets, before anything was parsed
        return None


def refused_result(error: NoteLLMError, event_id: str | None) -> dict[str, Any]:
    """Return the result of a refused event. `event_id`: None if it has none to echo."""
    result = EventOut(event_id=event_id, status="refused", problem=inner_problem(error))
    return result.model_dump(mode="json", exclude_none=True)


def stored_result(event: Event, outcome: EventOutcome) -> dict[str, Any]:
    """Return the result of an event that was sent to the store. It is a dict, since building a model takes longer than
    storing the event."""
    if outcome == "unknown_note":
        return refused_result(NoteNotFound(event.note_id), event.id)
    return {"event_id": event.id, "status": outcome}


async def add_event(body: bytes, service: Service) -> EventOut:
    """Store one event. Raises MalformedBody, InvalidInput, LimitExceeded, NoteNotFound, StoreUnavailable."""
    parser = EventParser(service)
    event = parser.parse(body)
    (outcome,) = await service.behaviour.add([event], parser.now)
    if outcome == "unknown_note":
        raise NoteNotFound(event.note_id)
    return EventOut(event_id=event.id, status=outcome)


async def add_event_list(body: bytes, service: Service) -> bytes:
    """Store the events of a JSON list, and return the answer's JSON. Raises MalformedBody if the body is not a list of
    items, LimitExceeded, StoreUnavailable."""
    limit = ("max_batch_events", service.settings.max_batch_events)
    parser = EventParser(service)
    parsed = await read_list(body, TimeSlices(), limit, parser.parse_or_refuse, parser.refused)
    return orjson.dumps({"results": await _add(parsed, parser.now, service)})


def check_event_lines(body: bytes) -> None:
    """Refuse NDJSON of more than MAX_EVENT_LINES lines, before any is stored. Raises LimitExceeded."""
    if body.rstrip(b"\n").count(b"\n") >= MAX_EVENT_LINES:
        raise LimitExceeded("max_event_lines", MAX_EVENT_LINES)


async def add_event_lines(request: Request, body: bytes, service: Service) -> AsyncGenerator[bytes]:
    """Store events, one a line, a batch at a time; yield the result of each as a line. A line that is not JSON is
    refused alone. A store failure, or a key that was revoked, ends the lines with one that has only a
    `problem`; a disconnected caller ends them without. Raises TooManyWaiting before the first line."""
    with service.event_bodies.slot():
        parser = EventParser(service)
        async with aclosing(_parsed_batches(body, parser)) as batches:
            async for parsed in batches:
                if await request.is_disconnected():
                    return
                try:
                    await reauthorise(request)
                    results = await _add(parsed, parser.now, service)
                except NoteLLMError as error:
                    yield problem_line(error)
                    return
                yield b"".join(orjson.dumps(result) + b"\n" for result in results)


async def _parsed_batches(body: bytes, parser: EventParser) -> AsyncGenerator[list[Event | dict[str, Any]]]:
    """Parse lines, and yield up to STREAM_BATCH_SIZE outcomes at a time: events, or the results that refuse them."""
    slices = TimeSlices()
    parsed: list[Event | dict[str, Any]] = []
    async with aclosing(body_lines(body, slices)) as lines:
        async for raw in lines:
            try:
                parsed.append(parser.parse_or_refuse(raw))
            except MalformedBody as error:
                parsed.append(parser.refused(error))
            await slices.check()
            if len(parsed) == STREAM_BATCH_SIZE:
                yield parsed
                parsed = []
    if parsed:
        yield parsed


async def lines_of_reads(request: Request, service: Service, slices: TimeSlices) -> AsyncGenerator[bytes]:
    """Yield all reads as lines of a click file, one reader at a time, while the caller is connected. If the key is
    revoked meanwhile, or a purge has the events read again, the last line is a problem.
    Raises TooManyWaiting; and BehaviourBehind before the first line."""
    with service.exports.slot():
        begun = False
        try:
            for number, history in enumerate(service.behaviour.all_reads()):
                if number % CHECKED_READERS == 0:
                    if await request.is_disconnected():
                        return
                    await reauthorise(request)
                begun = True
                for piece in pieces_of(map(_read_line, history)):
                    yield piece
                await slices.check()
        except NoteLLMError as error:
            if not begun:
                raise
            yield problem_line(error)


async def lines_of_reader(request: Request, service: Service, reader: str) -> AsyncGenerator[bytes]:
    """Yield the events of one reader as lines, in the order of EventStore.read_events_of, while the caller is
    connected. If the store is unavailable, or the key is revoked meanwhile, the last line is a problem.
    Raises TooManyWaiting; and StoreUnavailable, TenantRemoved before the first line."""
    with service.reader_exports.slot():
        begun = False
        try:
            async for entries in service.behaviour.read_events_of(reader):
                if await request.is_disconnected():
                    return
                await reauthorise(request)
                begun = True
                for piece in pieces_of(_event_line(entry) for entry in entries if entry.kind == "event"):
                    yield piece
        except NoteLLMError as error:
            if not begun:
                raise
            yield problem_line(error)


def _read_line(read: Read) -> bytes:
    """Return a read as a line of a click file."""
    row = {"user": read.reader, "note": read.note_id, "time": read.at, "rating": read.weight}
    return orjson.dumps(row) + b"\n"


def _event_line(entry: EventEntry) -> bytes:
    """Return the line of an event as it was sent, its time in UTC to the millisecond. Its id and its reader are left
    out: only digests of them are kept."""
    at = datetime.fromtimestamp(entry.at, UTC)
    details = orjson.loads(entry.details) if entry.details else {}
    return orjson.dumps({"type": entry.type, "note_id": entry.note_id, "at": at, **details}) + b"\n"


async def _add(parsed: Sequence[Event | dict[str, Any]], now: float, service: Service) -> list[dict[str, Any]]:
    """Store the events among `parsed`; return the results of all, in order. `parsed`: events, and the results of
    refused ones. `now`: that of their parser."""
    events = [one for one in parsed if isinstance(one, Event)]
    outcomes = iter(zip(events, await service.behaviour.add(events, now), strict=True))
    return [stored_result(*next(outcomes)) if isinstance(one, Event) else one for one in parsed]
