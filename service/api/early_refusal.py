"""Early refusal: 429 for one note that the queue has no room for, before its body is parsed and validated.

A service that gets five times the notes that it can take refuses four of five. Each refusal by the use-case takes the
event loop a millisecond and more, which the engine lacks on the same cores (docs/log/operations.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request, Response

from service.admission import Lane
from service.api.bodies import JSON, is_list, media_type
from service.api.dependencies import RequestedUrgency, get_service, read_timeout
from service.api.problems import error_response

F = TypeVar("F", bound=Callable[..., Any])
_handlers: set[Callable[..., Any]] = set()
UNSURE_HEADERS = ("idempotency-key", "if-match", "if-none-match")
"""Headers of requests whose answer may need no model."""


def needs_engine(handler: F) -> F:
    """Declare that a handler has one note or text read by the engine, unless its body is a list or a stream."""
    _handlers.add(handler)
    return handler


def is_declared(handler: Callable[..., Any]) -> bool:
    """Return whether `handler` is declared by needs_engine."""
    return handler in _handlers


async def early_refusal(request: Request) -> Response | None:
    """Return 429 where Batcher.admit would refuse one note. Return None where it would not, and for a request that may
    not need the engine at once. Raises RequestValidationError for an X-Request-Timeout that is no number."""
    headers = request.headers
    if media_type(headers) != JSON or any(header in headers for header in UNSURE_HEADERS):
        return None
    if headers.get("x-request-priority", Lane.INTERACTIVE) != Lane.INTERACTIVE:
        return None
    service = await get_service(request)
    urgency = RequestedUrgency(request.state.arrived, read_timeout(request), None).for_note(service.settings)
    refusal = service.batcher.refusal(urgency, service.tenant)
    if refusal is None or is_list(await request.body()):
        return None
    return error_response(refusal)
