"""A stream of notes, one a line (NDJSON): results are sent while the request is still being read.

Lines are split here; ingest_list.py parses and validates the note of each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import orjson
from fastapi import Request
from starlette.datastructures import Headers

from model.note import Note
from service.adding import Added, Generate
from service.admission import Urgency
from service.api.access import reauthorise
from service.api.bodies import NDJSON, TimeSlices, media_type
from service.api.connection import seconds_left
from service.api.idempotency import IdempotencyKey
from service.api.ingest_list import Batch, parse_note_or_reject, rejected
from service.api.problems import ErrorBudget, problem_line
from service.api.schemas.notes import BatchItem
from service.container import Service
from service.errors import DeadlineExceeded, MalformedBody, NoteLLMError, QueueFull
from service.records import Attempt
from service.settings import Settings

KEY_CHECK_SECONDS = 1.0
"""Time without a whole line after which the API key is checked again."""
STREAM_BATCH_SIZE = 64
"""Maximum notes of a stream that are added together; their results are sent before more is read."""


def is_note_stream(method: str, path: str, headers: Headers) -> bool:
    """Return whether a request is a stream of notes, whose body has no bound."""
    return (method, path) == ("POST", "/notes") and media_type(headers) == NDJSON


async def add_stream(
    request: Request, service: Service, generate: Generate, urgency: Urgency, key: IdempotencyKey
) -> AsyncGenerator[bytes]:
    """Add the notes of a stream; yield one result line for each. The stream ends with a line that has only a `problem`
    if the service fails, a line differs from the one sent before under its Idempotency-Key, the API key was revoked or
    has used up its tokens, or a long line arrives while other bodies take all memory for bodies. No batch begins once
    the caller has disconnected. The seconds of `urgency` apply to each batch, from when its lines have arrived."""
    model, slices, place = service.engine.name, TimeSlices(), 0
    try:
        async for lines in _line_batches(request, service.settings):
            if request.scope["state"].get("left"):
                return
            if not lines:
                await reauthorise(request)
                continue
            batch = await _read_lines(lines, service.settings, slices)
            attempts = [attempt for i, line in enumerate(lines, place) for attempt in key.line_attempt(i, line)]
            place += len(lines)
            await reauthorise(request)
            batch_urgency = replace(urgency, since=time.monotonic())
            added = await _add_when_admitted(batch.notes, service, generate, batch_urgency, batch.attempts(attempts))
            for item in batch.results(added, in_list=False):
                yield _result_line(item, model)
    except NoteLLMError as error:
        yield problem_line(error)


async def _line_batches(request: Request, settings: Settings) -> AsyncGenerator[list[bytes]]:
    """Yield batches of non-blank lines as they arrive, and an empty one where there was none for KEY_CHECK_SECONDS.
    An unfinished line over max_note_bytes is cut one byte beyond that bound, so that memory is bounded and
    `parse_note_or_reject` still rejects it."""
    room = settings.note_bytes + 1
    rest, yielded_at = bytearray(), time.monotonic()
    async for chunk in request.stream():
        if b"\n" in chunk:
            *lines, last = (bytes(rest) + chunk).split(b"\n")
            rest = bytearray(last[:room])
            lines = [line for line in lines if line.strip()]
            for start in range(0, len(lines), STREAM_BATCH_SIZE):
                yield lines[start : start + STREAM_BATCH_SIZE]
                yielded_at = time.monotonic()
        else:
            rest += chunk[: room - len(rest)]
        if time.monotonic() - yielded_at > KEY_CHECK_SECONDS:
            yield []
            yielded_at = time.monotonic()
    if rest.strip():
        yield [bytes(rest)]


async def _read_lines(lines: Sequence[bytes], settings: Settings, slices: TimeSlices) -> Batch:
    """Parse lines; one that is not a note is rejected alone."""
    outcomes: list[Note | BatchItem] = []
    for raw in lines:
        try:
            outcomes.append(parse_note_or_reject(raw, settings, ErrorBudget()))
        except MalformedBody as error:
            outcomes.append(rejected(error))
        await slices.check()
    return Batch.of(outcomes)


async def _add_when_admitted(
    notes: Sequence[Note], service: Service, generate: Generate, urgency: Urgency, attempts: Sequence[Attempt]
) -> list[Added | None]:
    """Add notes. While the queue is full, wait for room until the deadline; meanwhile no more of the stream is read.
    Raises DeadlineExceeded, and QueueFull if there would be no room in time."""
    try:
        async with asyncio.timeout(seconds_left(urgency)):
            while True:
                try:
                    return await service.recommender.add(notes, generate, urgency, attempts)
                except QueueFull as error:
                    if seconds_left(urgency) < error.retry_after:
                        raise
                    await asyncio.sleep(error.retry_after)
    except TimeoutError as error:
        raise DeadlineExceeded(urgency.seconds) from error


def _result_line(item: BatchItem, model: str) -> bytes:
    return orjson.dumps({**item.model_dump(mode="json", exclude_none=True), "model": model}) + b"\n"
