"""Short path: GET /notes/{id}/similar is answered before FastAPI gets the request.

The layers of the app take most of the time of such a request (docs/log/reads.md). The short path handles the most
frequent case, in which everything that they look up is known beforehand: a caller whose key is in memory and has no
quota, a tenant that is open, options of the short path (service/search/nearest.py) and no header that affects the
answer. If nothing has to be waited for, the connection itself answers, without a task: the items are in memory, and the
index is searched in the event loop, if at all. If the store has to be asked, or another thread searches, a middleware
answers. Any other request goes on to the app, which has the same route, and reports what is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from fastapi import Request, Response
from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from service.access.gate import Gate
from service.access.principal import Principal
from service.api.access import caller_nowait, needed_scopes
from service.api.bodies import JSON
from service.api.bounds import check_search_options
from service.api.early_response import EarlyResponse, first_values
from service.api.query import MAX_CACHED_QUERIES, list_fields, may_be_kept, parse_query
from service.api.rendered import render_nearest
from service.api.request_id import request_id_of
from service.api.request_log import RequestLog
from service.api.schemas.similar import SimilarQuery
from service.api.strict_route import CONDITIONS, refuse_repeated
from service.container import ReadService
from service.errors import IndexBehind, InvalidInput, StoreUnavailable
from service.filters import Filter
from service.lifecycle import Lifecycle
from service.read_time import ReadTime
from service.settings import Settings
from service.tenants import Tenants
from service.tracing import RequestStages, begin_request

UNDECIDED_HEADERS = frozenset(
    name.encode() for name in (*CONDITIONS, "x-request-timeout", "content-length", "transfer-encoding")
)
"""Headers that the app refuses or checks."""
UNDECIDED_EARLY = UNDECIDED_HEADERS | {b"origin", b"expect"}
"""Headers with which the connection leaves a request to the app or to uvicorn, which handle them."""


class PlainRequest(NamedTuple):
    """A request of the short path. `options`: arguments of NearestNotes.find and find_nowait after the note's id."""

    note_id: str
    options: tuple[int, Filter, float | None]
    principal: Principal
    service: ReadService


class ShortPath:
    """Answers requests of `route` where it can. `get_tenants`: called only after the process has started."""

    def __init__(
        self,
        route: Route,
        gate: Gate,
        lifecycle: Lifecycle,
        settings: Settings,
        request_log: RequestLog,
        get_tenants: Callable[[], Tenants[ReadService]],
    ) -> None:
        self._route = route
        self._scopes = needed_scopes(route.endpoint)
        self._gate = gate
        self._lifecycle = lifecycle
        self._settings = settings
        self._request_log = request_log
        self._get_tenants = get_tenants
        self._plain = lru_cache(MAX_CACHED_QUERIES)(self._read_plain)

    def decide(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> EarlyResponse | None:
        """Return the answer to a request if nothing has to be waited for; None if the app is to answer."""
        if method != b"GET" or self._lifecycle.draining or b"%" in target or not target.isascii():
            return None
        given = first_values(headers)
        if not UNDECIDED_EARLY.isdisjoint(given):
            return None
        began, stages = time.monotonic(), begin_request(None)
        path, _, query = target.partition(b"?")
        request = self._read(path.decode(), query, given)
        nearest = request and request.service.nearest.find_nowait(request.note_id, *request.options)
        if request is None or nearest is None:
            return None
        body = render_nearest(nearest, request.note_id, request.service.model)
        request_id = request_id_of(given.get(b"x-request-id"))
        own_headers = [(b"content-type", JSON.encode()), (b"x-request-id", request_id.encode())]
        return EarlyResponse(
            HTTPStatus.OK, own_headers, body, lambda: self._observe(request, request_id, began, stages)
        )

    def _observe(self, request: PlainRequest, request_id: str, began: float, stages: RequestStages) -> None:
        self._request_log.observe(
            "GET",
            self._route.path,
            HTTPStatus.OK.value,
            time.monotonic() - began,
            principal=request.principal,
            stages=stages,
            context={"request_id": request_id, "tenant": request.service.tenant},
        )

    async def answer(self, scope: Scope) -> Response | None:
        """Return the answer to a request, which may wait for the store; None if the app is to answer."""
        if scope["method"] != "GET":
            return None
        headers = first_values(scope["headers"])
        plain = self._read(scope["path"], scope["query_string"], headers)
        if plain is None or not UNDECIDED_HEADERS.isdisjoint(headers):
            return None
        request = Request(scope)
        request.state.principal = plain.principal
        request.state.tried = time_left = ReadTime()
        scope["route"] = self._route  # for the log line and the metrics
        bind_contextvars(tenant=plain.service.tenant)
        try:
            nearest = await plain.service.nearest.find(plain.note_id, *plain.options, time_left)
        except (StoreUnavailable, IndexBehind):  # the app gives a degraded answer, or refuses
            return None
        if nearest is None:
            return None
        return Response(render_nearest(nearest, plain.note_id, plain.service.model), media_type=JSON)

    def _read(self, path: str, query: bytes, headers: Mapping[bytes, bytes]) -> PlainRequest | None:
        """Return a GET request of the short path; None for any other, or if its caller or tenant is not in memory."""
        matched = self._route.path_regex.match(path)
        if matched is None or not self._lifecycle.started:
            return None
        options = self._plain(query) if may_be_kept(query) else None
        if options is None:
            return None
        caller = caller_nowait(self._gate, self._get_tenants(), headers, self._scopes)
        if caller is None or caller[0].quota:
            return None
        return PlainRequest(matched["note_id"], options, *caller)

    def _read_plain(self, query: bytes) -> tuple[int, Filter, float | None] | None:
        """Return the arguments of NearestNotes.find for a query string; None for one with further options, or one that
        the app refuses."""
        try:
            refuse_repeated(QueryParams(query), list_fields(SimilarQuery))
            options = parse_query(SimilarQuery, query)
            check_search_options(options, "/query", self._settings)
        except (InvalidInput, ValidationError):
            return None
        return options.as_plain() if options.plain and options.min_log_position is None else None


class ShortPathFirst:
    """Middleware that answers requests by the short path where it can, and passes all others to `app`."""

    def __init__(self, app: ASGIApp, short_path: ShortPath) -> None:
        self._app = app
        self._short_path = short_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._short_path.answer(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)
