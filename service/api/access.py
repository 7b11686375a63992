"""Access control: each handler declares the scopes that open its route, below its path, and gets the principal.

    @router.get("/notes/{note_id}")
    @needs(Scope.NOTES_READ)
    async def get_note(...)

This is no FastAPI dependency, since each of those costs a tenth of a millisecond (docs/log/reads.md). StrictRoute
authenticates the caller before its handler runs, and cannot be built for a handler that declares nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from fastapi import HTTPException, Request

from service.access.gate import Gate
from service.access.principal import ADMIN_SCOPES, READ_SCOPES, Principal, Scope
from service.api.rate_limit import rate_limit_headers
from service.container import ReadService
from service.errors import FieldError, InvalidInput, QuotaExceeded
from service.lifecycle import Lifecycle
from service.tenants import Tenants
from service.tracing import take_tokens

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound=ReadService)
SAFE_METHODS = frozenset({"GET", "HEAD"})
"""Methods without side effects: the origin of their requests is not checked."""
_needed: dict[Callable[..., Any], frozenset[Scope]] = {}
_need_engine: set[Callable[..., Any]] = set()
_spend_tokens: set[Callable[..., Any]] = set()


def needs(*scopes: Scope) -> Callable[[F], F]:
    """Declare that a handler runs for callers who have any of `scopes`."""
    return _declare(frozenset(scopes))


def open_to_all() -> Callable[[F], F]:
    """Declare that a handler runs for everyone, without a principal: for probes."""
    return _declare(frozenset())


def _declare(scopes: frozenset[Scope]) -> Callable[[F], F]:
    def declare(handler: F) -> F:
        _needed[handler] = scopes
        return handler

    return declare


def needed_scopes(handler: Callable[..., Any]) -> frozenset[Scope]:
    """Return the scopes of which a handler needs one; empty if it is open to all. Raises TypeError if undeclared."""
    try:
        return _needed[handler]
    except KeyError:
        raise TypeError(f"{handler.__qualname__} declares no scope; see service/api/access.py") from None


def needs_engine(handler: F) -> F:
    """Declare that a handler runs the engine on one note or text, unless the request's body is a list or a stream."""
    _need_engine.add(handler)
    return spends_tokens(handler)


def may_need_engine(handler: Callable[..., Any]) -> bool:
    """Return whether `handler` is declared by needs_engine."""
    return handler in _need_engine


def spends_tokens(handler: F) -> F:
    """Declare that a handler can use tokens of the model: it is refused while the caller's key has none left."""
    _spend_tokens.add(handler)
    return handler


def may_spend_tokens(handler: Callable[..., Any]) -> bool:
    """Return whether `handler` is declared by spends_tokens or needs_engine."""
    return handler in _spend_tokens


async def admit(request: Request, scopes: frozenset[Scope]) -> None:
    """Admit a caller who has one of `scopes`, and count the request; if `scopes` is empty, admit everyone. Nothing is
    counted until the service has started: nearly every request is refused until then. Raises what `authorise` and
    `count` raise."""
    if scopes:
        await authorise(request, scopes)
        if cast(Lifecycle, request.app.state.lifecycle).started:
            await count(request)


async def authorise(request: Request, scopes: frozenset[Scope]) -> None:
    """Authenticate the caller as `request.state.principal`, and check that it has one of `scopes`. Raises
    Unauthenticated, Forbidden; and HTTPException 404 for an admin route on another port than the admin port."""
    admin_port = request.app.state.admin_port
    if admin_port and scopes <= ADMIN_SCOPES and request.scope["server"][1] != admin_port:
        raise HTTPException(404)
    gate = cast(Gate, request.app.state.gate)
    principal = request.state.principal = await gate.authenticate(request.headers.get("authorization"))
    headers = request.headers
    host = headers.get("host", "")
    gate.check_host(principal, host)
    if request.method not in SAFE_METHODS and scopes.isdisjoint(READ_SCOPES):
        gate.check_origin(principal, host, headers.get("origin"), headers.get("sec-fetch-site"))
    gate.check_scope(principal, scopes)


def check_option(request: Request, scope: Scope, option: str) -> None:
    """Raise Forbidden if the caller of an admitted request lacks the `scope` that its `option` needs."""
    cast(Gate, request.app.state.gate).check_scope(request.state.principal, frozenset({scope}), option)


async def count(request: Request, requests: int = 1, repeated: int | None = None) -> None:
    """Count `requests` against the quota of the caller's key, and put the remaining quota into the headers of the
    answer. `repeated`: number of requests that the HTTP request counts as in all if the caller sends it again; None for
    `requests`. Raises QuotaExceeded, with the seconds until the quota has room for `repeated`."""
    state = request.state
    quota, spends = state.principal.quota, state.spends_tokens
    usage = await cast(Gate, request.app.state.gate).count(state.principal, requests, spends_tokens=spends)
    if usage:
        state.answer_headers = rate_limit_headers(usage, quota)
        if not usage.allowed:
            raise QuotaExceeded(usage.waits(quota, repeated or requests, spends_tokens=spends))


async def count_items(request: Request, items: int) -> None:
    """Count each item of a list against the request quota; the request itself has been counted as one already. Raises
    QuotaExceeded; and InvalidInput for a list longer than the quota ever allows."""
    bound = request.state.principal.quota.requests_per_minute
    if bound is not None and items > max(1, bound):
        detail = (
            f"has {items} items, each of which counts as a request, but your key may send {bound} requests per minute: "
            "send fewer items"
        )
        raise InvalidInput([FieldError("", detail)])
    if items > 1:
        await count(request, items - 1, repeated=items)


async def check_quota(request: Request) -> None:
    """Raise QuotaExceeded if the quota of the caller's key has no room for the request. Nothing is counted."""
    state = request.state
    await cast(Gate, request.app.state.gate).meter.check(state.principal, spends_tokens=state.spends_tokens)


def caller_nowait(
    gate: Gate, tenants: Tenants[S], headers: Mapping[bytes, bytes], scopes: frozenset[Scope]
) -> tuple[Principal, S] | None:
    """Return the principal that sends these headers and its tenant's service, without waiting; None if either is not in
    memory, or the caller would be refused. `headers`: with names in lower case."""
    authorization, host = headers.get(b"authorization"), headers.get(b"host", b"").decode("latin-1")
    principal = gate.authenticate_nowait(None if authorization is None else authorization.decode("latin-1"))
    if principal is None or principal.scopes.isdisjoint(scopes) or not gate.allows_host(principal, host):
        return None
    service = tenants.find(principal.tenant)
    return None if service is None else (principal, service)


async def reauthorise(request: Request) -> None:
    """Check the key of a long request again, and charge it the tokens used since the last check, under its current
    quota. Raises what Gate.check_again raises, and QuotaExceeded if the request can use tokens and the key has used up
    its own."""
    gate, state = cast(Gate, request.app.state.gate), request.state
    state.principal = await gate.check_again(state.principal)
    gate.meter.charge(state.principal, take_tokens())
    if state.spends_tokens:
        await gate.meter.check_tokens(state.principal)
