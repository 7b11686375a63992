"""FastAPI dependencies: parameters that handlers share.

All are coroutines, though they wait for nothing: FastAPI would run each plain function in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Header, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, TypeAdapter, ValidationError

from service.adding import Generate
from service.admission import Lane, Urgency
from service.container import Service
from service.errors import FieldError, InvalidInput, Starting
from service.lifecycle import Lifecycle
from service.recommender import Recommender
from service.settings import Settings

GENERATED_HASHTAGS = 5
"""Hashtags that are generated for `?generate=hashtags`, which has no count."""
TIMEOUT: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(gt=0, allow_inf_nan=False)])


async def get_lifecycle(request: Request) -> Lifecycle:
    return cast(Lifecycle, request.app.state.lifecycle)


async def get_service(request: Request) -> Service:
    """Return the running service. Raises Starting before it is there."""
    lifecycle = await get_lifecycle(request)
    if not lifecycle.started:
        raise Starting(lifecycle.progress)
    return cast(Service, request.app.state.service)


async def get_recommender(request: Request) -> Recommender:
    return (await get_service(request)).recommender


async def get_generate(generate: str = "") -> Generate:
    """Parse `?generate=hashtags,category`."""
    names = {part.strip() for part in generate.split(",")} - {""}
    if unknown := names - {"hashtags", "category"}:
        raise InvalidInput([FieldError("/query/generate", f"knows hashtags and category, not {sorted(unknown)}")])
    return Generate(GENERATED_HASHTAGS if "hashtags" in names else 0, "category" in names)


async def get_if_match(
    if_match: Annotated[str | None, Header(description='"<log_position>", or *')] = None,
) -> str | None:
    """Log position that the note must be at; None for any."""
    return None if if_match is None or if_match.strip() == "*" else if_match.strip().removeprefix("W/").strip('"')


@dataclass(frozen=True, slots=True)
class RequestedUrgency:
    """X-Request-Timeout and X-Request-Priority of a request that arrived at `since`; None for what it leaves out."""

    since: float
    seconds: float | None
    lane: Lane | None

    def for_note(self, settings: Settings) -> Urgency:
        """Urgency of a request about one note or text."""
        lane = self.lane or Lane.INTERACTIVE
        default = settings.interactive_seconds if lane is Lane.INTERACTIVE else settings.request_seconds
        return Urgency(lane, min(self.seconds or default, settings.request_seconds), self.since)

    def for_list(self, settings: Settings) -> Urgency:
        """Urgency of a list or a stream of notes."""
        seconds = min(self.seconds or settings.request_seconds, settings.request_seconds)
        return Urgency(self.lane or Lane.BULK, seconds, self.since)


async def get_requested_urgency(
    request: Request,
    x_request_timeout: Annotated[
        float | None,
        Header(
            gt=0,
            allow_inf_nan=False,
            description="seconds that you wait for the answer; the work ends with them, or is refused at once (429) "
            "where it would wait too long",
        ),
    ] = None,
    x_request_priority: Annotated[
        Lane | None, Header(description="lane of the queue; interactive for one note or text, bulk for more")
    ] = None,
) -> RequestedUrgency:
    return RequestedUrgency(request.state.arrived, x_request_timeout, x_request_priority)


def read_timeout(request: Request) -> float | None:
    """Read X-Request-Timeout where FastAPI does not. Raises RequestValidationError, as FastAPI does."""
    value = request.headers.get("x-request-timeout")
    try:
        return None if value is None else TIMEOUT.validate_python(value)
    except ValidationError as error:
        errors = [{**failure, "loc": ("header", "x-request-timeout")} for failure in error.errors()]
        raise RequestValidationError(errors) from error


async def get_urgency(
    request: Request, requested: Annotated[RequestedUrgency, Depends(get_requested_urgency)]
) -> Urgency:
    """Urgency of a request about one note or text."""
    return requested.for_note((await get_service(request)).settings)


LifecycleDep = Annotated[Lifecycle, Depends(get_lifecycle)]
ServiceDep = Annotated[Service, Depends(get_service)]
RecommenderDep = Annotated[Recommender, Depends(get_recommender)]
GenerateDep = Annotated[Generate, Depends(get_generate)]
IfMatch = Annotated[str | None, Depends(get_if_match)]
RequestedUrgencyDep = Annotated[RequestedUrgency, Depends(get_requested_urgency)]
UrgencyDep = Annotated[Urgency, Depends(get_urgency)]
