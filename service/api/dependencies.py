"""FastAPI dependencies: parameters that handlers share.

All are coroutines, even those that wait for nothing: FastAPI would run a plain function in a thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, TypeAdapter, ValidationError
from structlog.contextvars import bind_contextvars

from service.access.gate import Gate
from service.access.manager import Manager
from service.access.principal import Principal
from service.adding import GENERATED_HASHTAGS, Generate
from service.admission import Lane, Urgency
from service.api.repeated_headers import is_repeated, joined_lines, repeated_error
from service.container import Service
from service.errors import FieldError, InvalidInput, MalformedHeader, Starting
from service.lifecycle import Lifecycle
from service.read_time import ReadTime
from service.recommender import Recommender
from service.records import Condition
from service.settings import Settings
from service.tenants import Tenants

ETAG = re.compile(r'(?:W/)?"(\d{1,20}-\d{1,20})"')
"""An ETag of a note. A proxy that compresses answers makes it weak (W/); it still names the same version."""
ANY_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
"""Any ETag (RFC 9110, section 8.8.3)."""
MAX_ETAGS = 16
"""Bound on the ETags of one header."""
TIMEOUT_MEANING = "seconds within which you need the answer; more than request_seconds of GET /limits counts as that"
TIMEOUT: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(gt=0, allow_inf_nan=False)])


async def get_lifecycle(request: Request) -> Lifecycle:
    return cast(Lifecycle, request.app.state.lifecycle)


async def get_tenants(request: Request) -> Tenants[Service]:
    """Return the tenants of the running service. Raises Starting until it has started."""
    lifecycle = await get_lifecycle(request)
    if not lifecycle.started:
        raise Starting(lifecycle.step)
    return cast(Tenants[Service], request.app.state.tenants)


async def get_service(request: Request) -> Service:
    """Return the running service of the caller's tenant. Raises Starting, and what Tenants.get raises; and
    Unauthenticated for a key that was revoked after the request was admitted, which would otherwise recreate a tenant
    that was removed with its keys."""
    tenants, principal = await get_tenants(request), await get_principal(request)
    if tenants.find(principal.tenant) is None:
        await cast(Gate, request.app.state.gate).check_again(principal, refresh=True)
    service = await tenants.get(principal.tenant)
    bind_contextvars(tenant=service.tenant)
    return service


async def get_recommender(request: Request) -> Recommender:
    return (await get_service(request)).recommender


async def get_principal(request: Request) -> Principal:
    """Return the principal that calls a route that needs a scope (access.py)."""
    return cast(Principal, request.state.principal)


async def get_manager(request: Request) -> Manager:
    return cast(Gate, request.app.state.gate).manager


async def get_generate(
    generate: Annotated[
        str,
        Query(
            description="what to generate if the author left it out: `hashtags`, `category`, or both separated by a "
            f"comma; at most {GENERATED_HASHTAGS} hashtags"
        ),
    ] = "",
    min_score: Annotated[
        float | None,
        Query(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="minimum score of generated hashtags; default: NOTELLM_MIN_HASHTAG_SCORE",
        ),
    ] = None,
) -> Generate:
    """Parse `?generate=hashtags,category&min_score=0.1`."""
    names = {part.strip() for part in generate.split(",")} - {""}
    if unknown := names - {"hashtags", "category"}:
        raise InvalidInput(
            [FieldError("/query/generate", f"must be hashtags, category or both, not {sorted(unknown)}")]
        )
    if min_score is not None and "hashtags" not in names:
        raise InvalidInput(
            [FieldError("/query/min_score", "applies to generated hashtags; requires generate=hashtags")]
        )
    return Generate(GENERATED_HASHTAGS if "hashtags" in names else 0, "category" in names, min_score)


async def get_condition(
    request: Request,
    if_match: Annotated[
        str | None,
        Header(description="ETags in quotation marks, of which the note must have one; or *: the note must exist"),
    ] = None,
    if_none_match: Annotated[
        str | None,
        Header(description="ETags in quotation marks, of which the note must have none; or *: the note must not exist"),
    ] = None,
) -> Condition | None:
    """Return the condition on the stored note, from If-Match or If-None-Match. Raises MalformedHeader."""
    if if_match is not None and if_none_match is not None:
        raise MalformedHeader("If-None-Match", "cannot be combined with If-Match; send one of them")
    if if_match is not None:
        return Condition(_positions(request, "If-Match"))
    if if_none_match is not None:
        return Condition(_positions(request, "If-None-Match"), negated=True)
    return None


def _positions(request: Request, header: str) -> tuple[str, ...]:
    """Parse a list of ETags as log positions; () for *. In a read, another service's ETag, such as one that a proxy has
    changed, stands for no position. Raises MalformedHeader."""
    value = joined_lines(request, header)
    if value.strip() == "*":
        return ()
    texts = ANY_ETAG.findall(value)
    etags = [etag for text in texts if (etag := ETAG.fullmatch(text))]
    are_accepted = len(etags) == len(texts) or request.method == "GET"
    is_list = bool(texts) and not ANY_ETAG.sub("", value).strip(", \t")  # a list may have empty elements
    if not (is_list and are_accepted) or len(etags) > MAX_ETAGS:
        raise MalformedHeader(header, f'must be * or up to {MAX_ETAGS} ETags, each "<log_position>"')
    return tuple(etag[1] for etag in etags) or ("",)


@dataclass(frozen=True, slots=True)
class RequestedUrgency:
    """X-Request-Timeout and X-Request-Priority of a request that arrived at `since`; None for a missing header."""

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
            description=f"{TIMEOUT_MEANING}; after that the work is cancelled; it is refused at once (429) if it "
            "would wait too long",
        ),
    ] = None,
    x_request_priority: Annotated[
        Lane | None,
        Header(description="lane of the model's queue; default: interactive for one note or text, bulk for more"),
    ] = None,
) -> RequestedUrgency:
    return RequestedUrgency(request.state.arrived, x_request_timeout, x_request_priority)


async def get_list_urgency(
    request: Request,
    service: Annotated[Service, Depends(get_service)],
    x_request_timeout: Annotated[float | None, Header(gt=0, allow_inf_nan=False, description=TIMEOUT_MEANING)] = None,
) -> Urgency:
    """Return the urgency of a request about many notes that never waits for the model, so that it needs no lane."""
    return RequestedUrgency(request.state.arrived, x_request_timeout, None).for_list(service.settings)


def remaining_read_time(request: Request) -> ReadTime | None:
    """Return the time left for store calls of a request that short_path.py tried and could not answer; None for one
    that it did not try."""
    time_left: ReadTime | None = getattr(request.state, "tried", None)
    return time_left


def read_timeout(request: Request) -> float | None:
    """Read X-Request-Timeout for a handler that does not declare it to FastAPI. Raises RequestValidationError, as
    FastAPI does, and MalformedHeader, as StrictRoute does."""
    value = request.headers.get("x-request-timeout")
    if is_repeated(request, "x-request-timeout"):
        raise repeated_error("X-Request-Timeout")
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


TenantsDep = Annotated[Tenants[Service], Depends(get_tenants)]
LifecycleDep = Annotated[Lifecycle, Depends(get_lifecycle)]
ServiceDep = Annotated[Service, Depends(get_service)]
RecommenderDep = Annotated[Recommender, Depends(get_recommender)]
PrincipalDep = Annotated[Principal, Depends(get_principal)]
ManagerDep = Annotated[Manager, Depends(get_manager)]
GenerateDep = Annotated[Generate, Depends(get_generate)]
ConditionDep = Annotated[Condition | None, Depends(get_condition)]
RequestedUrgencyDep = Annotated[RequestedUrgency, Depends(get_requested_urgency)]
UrgencyDep = Annotated[Urgency, Depends(get_urgency)]
ListUrgencyDep = Annotated[Urgency, Depends(get_list_urgency)]
