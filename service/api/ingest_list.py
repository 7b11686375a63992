"""A list of notes: valid notes are added even if others are rejected, and each gets a result, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError

from model.note import Note
from service.adding import Added, Generate, expired_error
from service.admission import Urgency
from service.api.bodies import TimeSlices, parse_json, read_list
from service.api.bounds import check_note_size
from service.api.idempotency import IdempotencyKey
from service.api.problems import ErrorBudget, echoed_id, inner_problem, invalid_value
from service.api.schemas.notes import BatchItem, NoteIn
from service.container import Service
from service.errors import InvalidInput, LimitExceeded, NoteLLMError
from service.records import Attempt
from service.settings import Settings

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Batch:
    """Notes of one request by their index in it, and the results of rejected ones."""

    valid: dict[int, Note]
    rejected: dict[int, BatchItem]

    @classmethod
    def of(cls, outcomes: Sequence[Note | BatchItem]) -> Batch:
        """Return the batch of a request, given each note or the result that rejects it."""
        valid = {place: one for place, one in enumerate(outcomes) if isinstance(one, Note)}
        return cls(valid, {place: one for place, one in enumerate(outcomes) if isinstance(one, BatchItem)})

    def __len__(self) -> int:
        return len(self.valid) + len(self.rejected)

    @property
    def notes(self) -> list[Note]:
        """Valid notes, in the order of the request."""
        return list(self.valid.values())

    def attempts(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Return the attempts of the valid notes. `attempts`: one for each note of the request, or none."""
        return [attempts[place] for place in self.valid] if attempts else []

    def results(self, added: Sequence[Added | None], in_list: bool) -> Iterator[BatchItem]:
        """Yield each note's result, in the order of the request. `added`: results of the valid notes, in order, None
        for one that had expired. `in_list`: whether the notes are items of one JSON list, so that pointers begin with
        their index."""
        outcomes = iter(added)
        for place in range(len(self)):
            if place in self.rejected:
                yield self.rejected[place]
            elif one := next(outcomes):
                yield BatchItem.of(one)
            else:
                error = expired_error(f"/{place}" if in_list else "")
                yield rejected(error, {"id": self.valid[place].id or None})


async def add_list(
    body: bytes, service: Service, generate: Generate, urgency: Urgency, key: IdempotencyKey
) -> tuple[bytes, bool]:
    """Add the notes of a JSON list; return the answer's JSON, and whether earlier requests wrote all notes that are not
    rejected. Raises MalformedBody if the body is not a list of items, and LimitExceeded."""
    slices = TimeSlices()
    batch = await _read_list(body, service.settings, slices)
    added = await service.recommender.add(
        batch.notes, generate, urgency, batch.attempts(key.attempts(body, len(batch)))
    )
    results: list[bytes] = []
    for item in batch.results(added, in_list=True):
        results.append(item.model_dump_json(exclude_none=True).encode())
        await slices.check()
    answer = b'{"results":[%s],"model":%s}' % (b",".join(results), orjson.dumps(service.engine.name))
    written = [one for one in added if one]
    return answer, bool(written) and all(one.replayed for one in written)


async def _read_list(body: bytes, settings: Settings, slices: TimeSlices) -> Batch:
    budget, limit = ErrorBudget(), ("max_batch_notes", settings.max_batch_notes)

    def parse(raw: bytes, pointer: str) -> Note | BatchItem:
        return parse_note_or_reject(raw, settings, budget, pointer)

    return Batch.of(await read_list(body, slices, limit, parse, rejected))


def parse_note_or_reject(raw: bytes, settings: Settings, budget: ErrorBudget, pointer: str = "") -> Note | BatchItem:
    """Parse and validate one note; return it, or the result that says why it is rejected. `budget`: that of the answer.
    Raises MalformedBody."""

    def make(value: Any) -> Note:
        return parse_note(value, pointer)

    return parse_or_reject(raw, settings, budget, check_note_size, make, rejected, pointer)


def parse_or_reject(
    raw: bytes,
    settings: Settings,
    budget: ErrorBudget,
    check_size: Callable[[int, Settings], None],
    make: Callable[[Any], T],
    reject: Callable[[NoteLLMError, Any], R],
    pointer: str = "",
) -> T | R:
    """Return what `make` makes of an item's JSON, or what `reject` makes of an error and that JSON (None if it was not
    parsed). `check_size`: raises LimitExceeded if the item has too many bytes. `budget`: that of the answer. `make`
    raises InvalidInput, with pointers that begin with `pointer`. Raises MalformedBody."""
    value = None
    try:
        check_size(len(raw), settings)
        value = parse_json(raw, pointer)
        return make(value)
    except InvalidInput as error:
        return reject(budget.shorten(error), value)
    except LimitExceeded as error:
        return reject(error, value)


def parse_note(value: Any, pointer: str = "") -> Note:
    """Validate a note. Raises InvalidInput, with pointers that begin with `pointer`."""
    try:
        return NoteIn.model_validate(value).as_note()
    except ValidationError as error:
        raise invalid_value(error, pointer) from error


def rejected(error: NoteLLMError, value: Any = None) -> BatchItem:
    """Return the result of a note that is not added. `value`: its parsed JSON, whose id is echoed if it may be one."""
    return BatchItem(id=echoed_id(value), status="rejected", problem=inner_problem(error))
