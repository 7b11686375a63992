"""Routes that admit the callers that their handler declares, and refuse what they would otherwise ignore: query
parameters that are unknown or repeated, headers that are repeated, conditions, an Idempotency-Key of a write, and a
body."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams

from service.access.principal import READ_SCOPES
from service.api.access import admit, may_spend_tokens, needed_scopes
from service.api.bodies import has_body
from service.api.repeated_headers import is_repeated, repeated_error
from service.api.schemas.problem import MAX_SHOWN, hint_at_known
from service.errors import MAX_ERRORS, BodyNotTaken, FieldError, InvalidInput, MalformedHeader

CONDITIONS = ("if-match", "if-none-match", "if-unmodified-since")
"""Headers that make a request conditional: if they were ignored, it could do what the caller wanted to prevent."""
SEVERAL_VALUES = {
    **dict.fromkeys(("generate", "by"), "join its values with commas"),
    **dict.fromkeys(("author", "category"), "for several values, send a `filter` in the body of a request"),
}
"""Query parameters that are read once, with what to do to send several values."""
IDEMPOTENCY_KEY = "idempotency-key"
"""Header that makes a write safe to repeat. It is ignored on a read, which is safe to repeat anyway."""


class StrictRoute(APIRoute):
    """A route for callers with one of the scopes that its handler declares (access.py). It takes the query parameters,
    the conditions, the Idempotency-Key and the body that its handler declares, and answers any other with an error that
    names it."""

    admit = staticmethod(admit)
    """Admits a caller before anything else of the request is checked."""

    def get_body_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of an admitted request, which reads its body."""
        return super().get_route_handler()

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = self.get_body_handler()
        scopes, spends_tokens = needed_scopes(self.endpoint), may_spend_tokens(self.endpoint)
        parts = list(_with_dependencies(self.dependant))
        described = (self.openapi_extra or {}).get("parameters", ())  # those of query.py
        names = [field.alias for part in parts for field in part.query_params]
        names += [parameter["name"] for parameter in described]
        lists = {parameter["name"] for parameter in described if parameter["schema"].get("type") == "array"}
        headers = {field.alias for part in parts for field in part.header_params}
        writes = bool(scopes) and scopes.isdisjoint(READ_SCOPES) and self.methods != {"GET"}
        heeded = (*CONDITIONS, IDEMPOTENCY_KEY) if writes else CONDITIONS
        unheeded = [header for header in heeded if header not in headers]
        single = headers.difference(CONDITIONS)
        takes_body = self.body_field is not None or "requestBody" in (self.openapi_extra or {})

        async def handle_strictly(request: Request) -> Response:
            request.state.spends_tokens = spends_tokens
            await self.admit(request, scopes)
            for header in unheeded:
                if header in request.headers:
                    raise MalformedHeader(header.title(), "is not supported by this endpoint; omit it")
            for header in single:
                if is_repeated(request, header):
                    raise repeated_error(header.title())
            if request.scope["query_string"]:
                refuse_unknown(request.query_params.keys(), names)
                refuse_repeated(request.query_params, lists)
            if not takes_body and has_body(request.headers):
                raise BodyNotTaken
            return await handle(request)

        return handle_strictly


def _with_dependencies(dependant: Dependant) -> Iterator[Dependant]:
    """Yield the dependant of a handler, and those of all its dependencies."""
    yield dependant
    for dependency in dependant.dependencies:
        yield from _with_dependencies(dependency)


def refuse_unknown(given: Collection[str], known: Collection[str]) -> None:
    """Refuse query parameters that are not known. Raises InvalidInput, which names the nearest known one."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InvalidInput([_unknown(name, known) for name in unknown[:MAX_ERRORS]], max(0, len(unknown) - MAX_ERRORS))


def refuse_repeated(given: QueryParams, lists: Collection[str]) -> None:
    """Refuse parameters that are given more than once and are not among `lists`: all values but the last would be
    ignored. Raises InvalidInput."""
    if len(given.multi_items()) == len(given):
        return
    counts = Counter(name for name, _ in given.multi_items() if name not in lists)
    repeated = [_repeated(name, count) for name, count in counts.items() if count > 1]
    if repeated:
        raise InvalidInput(repeated)


def _repeated(name: str, count: int) -> FieldError:
    advice = SEVERAL_VALUES.get(name, "send one value")
    return FieldError(f"/query/{name}", f"is given {count} times, but is read once: {advice}")


def _unknown(name: str, known: Collection[str]) -> FieldError:
    return FieldError(
        f"/query/{name[:MAX_SHOWN]}", f"is not a parameter of this endpoint; {hint_at_known(name, known)}"
    )
