"""Bodies of POST /notes/import: a JSON list of exported notes, or the lines that GET /notes/export writes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError

from service.api.bodies import NDJSON, TimeSlices, body_lines, media_type, read_list
from service.api.bounds import check_import_size
from service.api.ingest_list import parse_or_reject
from service.api.problems import ErrorBudget, echoed_id, inner_problem, invalid_value
from service.api.schemas.export import VERSION, ImportIn, ImportItem
from service.collection.importing import NoteToImport
from service.container import Service
from service.errors import FieldError, InvalidInput, LimitExceeded, MalformedBody, NoteLLMError

T = TypeVar("T")
Item = NoteToImport | ImportItem
"""A note to import, or the result of an invalid one."""


async def read_import(request: Request, service: Service) -> list[Item]:
    """Read the notes of a body, up to max_batch_notes. Raises MalformedBody, InvalidInput, LimitExceeded."""
    body, slices = await request.body(), TimeSlices()
    if media_type(request.headers) == NDJSON:
        return await _read_lines(body, service, slices)
    budget, limit = ErrorBudget(), ("max_batch_notes", service.settings.max_batch_notes)

    def parse(raw: bytes, pointer: str) -> Item:
        return _parse_item(raw, service, budget, _note)

    items = await read_list(body, slices, limit, parse, _rejected)
    seen = set[str]()
    for place, item in enumerate(items):
        if isinstance(item, NoteToImport):
            if item.note.id in seen:
                raise InvalidInput([FieldError(f"/{place}/id", "an earlier note of this list has the same id")])
            seen.add(item.note.id)
    return items


async def _read_lines(body: bytes, service: Service, slices: TimeSlices) -> list[Item]:
    """Read the lines of an export in order: the last line of a note counts, and a note that a later line removes is
    left out. An invalid line is rejected alone."""
    budget, max_notes, number = ErrorBudget(), service.settings.max_batch_notes, 0
    items: dict[str | int, Item] = {}  # by the id of a note, or the number of a line that is rejected
    async with aclosing(body_lines(body, slices)) as lines:
        async for raw in lines:
            number += 1
            try:
                line = _parse_item(raw, service, budget, _note_or_mark)
            except MalformedBody as error:
                line = _rejected(error)
            if isinstance(line, NoteToImport):
                items.pop(line.note.id, None)
                items[line.note.id] = line
            elif isinstance(line, ImportItem):
                items[number] = line
            elif "removed" in line and "end" not in line:
                if items.pop(str(line["removed"]), None) is None:
                    detail = (
                        "no earlier line of this body has this note; to remove a stored note, use DELETE /notes/{id}"
                    )
                    items[number] = _rejected(InvalidInput([FieldError("/removed", detail)]), {"id": line["removed"]})
            elif line.get("export", VERSION) != VERSION:
                detail = f"begins an export of another version; this service reads version {VERSION}"
                raise InvalidInput([FieldError("", f"line {number} {detail}")])
            if len(items) > max_notes:
                raise LimitExceeded("max_batch_notes", max_notes)
            await slices.check()
    return list(items.values())


def _parse_item(raw: bytes, service: Service, budget: ErrorBudget, make: Callable[[Any, Service], T]) -> T | ImportItem:
    """Return what `make` makes of an item's JSON, or the result of an invalid item. `budget`: that of the answer.
    Raises MalformedBody."""
    return parse_or_reject(
        raw, service.settings, budget, check_import_size, lambda value: make(value, service), _rejected
    )


def _note(value: Any, service: Service) -> NoteToImport:
    """Validate a note. Raises InvalidInput."""
    try:
        note = ImportIn.model_validate(value).as_import()
    except ValidationError as error:
        raise invalid_value(error) from error
    service.importer.check(note)
    return note


def _note_or_mark(value: Any, service: Service) -> NoteToImport | dict[str, Any]:
    """Return a note, or a line of an export that is not a note: its first one, its last one, or a removal. Raises
    InvalidInput."""
    if isinstance(value, dict) and "id" not in value and not value.keys().isdisjoint(("export", "removed", "end")):
        return value
    return _note(value, service)


def _rejected(error: NoteLLMError, value: Any = None) -> ImportItem:
    """Return the result of an item that is invalid or too large. `value`: its JSON, None if it was not parsed."""
    return ImportItem(id=echoed_id(value), status="rejected", problem=inner_problem(error))
