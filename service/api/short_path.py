"""The short path at the edge: GET /notes/{id}/similar is answered before FastAPI has the request.

FastAPI's layers take a fifth of such a request (docs/log/reads.md). So this is for the case that is asked most, in
which all that they look for is known beforehand: a caller whose key is in memory and has no quota, a tenant that is
open, options of the short path (service/search/nearest.py) and no header that bears on the answer. Any other request
goes on to the app, which has the same route, and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from fastapi import Request, Response
from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.gate import Gate
from service.api.access import caller_at_hand, name_tenant, needed_scopes
from service.api.bounds import check_search_options
from service.api.query import KEPT_QUERIES, MAX_KEPT_BYTES, list_fields, parse_query
from service.api.rendered import render_nearest
from service.api.schemas.similar import SimilarQuery
from service.api.strict_route import CONDITIONS, refuse_repeated
from service.container import ReadService
from service.errors import IndexBehind, InvalidInput, StoreUnavailable
from service.filters import Filter
from service.lifecycle import Lifecycle
from service.read_time import ReadTime
from service.settings import Settings
from service.tenants import Tenants

UNDECIDED_HEADERS = frozenset(name.encode() for name in (*CONDITIONS, "x-request-timeout"))
"""Headers that the app refuses or checks."""


class ShortPath:
    """Answers requests of `route` where it can, and hands all others to `app`. `get_tenants` is called once the process
    has started."""

    def __init__(
        self,
        app: ASGIApp,
        route: Route,
        gate: Gate,
        lifecycle: Lifecycle,
        settings: Settings,
        get_tenants: Callable[[], Tenants[ReadService]],
    ) -> None:
        self._app = app
        self._route = route
        self._scopes = needed_scopes(route.endpoint)
        self._gate = gate
        self._lifecycle = lifecycle
        self._settings = settings
        self._get_tenants = get_tenants
        self._plain = lru_cache(KEPT_QUERIES)(self._read_plain)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._answer(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response | None:
        """Return the answer to a request; None where the app is to give it."""
        address = self._route.path_regex.match(scope["path"])
        if address is None or scope["method"] != "GET" or not self._lifecycle.started:
            return None
        headers = dict(reversed(scope["headers"]))  # of a header that is there twice the first counts
        query = scope["query_string"]
        plain = self._plain(query) if len(query) <= MAX_KEPT_BYTES else None
        if plain is None or not UNDECIDED_HEADERS.isdisjoint(headers):
            return None
        caller = caller_at_hand(self._gate, self._get_tenants(), headers, self._scopes)
        if caller is None or caller[0].quota:
            return None
        request = Request(scope)
        request.state.principal, service = caller
        request.state.tried = time_left = ReadTime()
        scope["route"] = self._route  # for the log line and the metrics
        name_tenant(request, service.tenant)
        note_id = address["note_id"]
        try:
            nearest = await service.nearest.find(note_id, *plain, time_left)
        except (StoreUnavailable, IndexBehind):  # the app gives a degraded answer, or refuses
            return None
        if nearest is None:
            return None
        return Response(render_nearest(nearest, note_id, service.model), media_type="application/json")

    def _read_plain(self, query: bytes) -> tuple[int, Filter, float | None] | None:
        """Return what NearestNotes.find takes of a query string; None where that says more, or is refused by the
        app."""
        try:
            refuse_repeated(QueryParams(query), list_fields(SimilarQuery))
            options = parse_query(SimilarQuery, query)
            check_search_options(options, "/query", self._settings)
        except (InvalidInput, ValidationError):
            return None
        return options.as_plain() if options.plain and options.min_log_position is None else None
