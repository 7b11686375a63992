"""Early load shedding: 429 as soon as the head of a request has arrived, if the engine has no room for its note.

A service that gets five times the notes that it can process refuses four of five, on the cores that the engine computes
on. So a refusal runs none of the app: the connection (protocol.py) calls EarlyRefusal, and sends what it returns
(docs/log/operations.md). A request that is not refused here goes on to its route, where Batcher.admit decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from pydantic import ValidationError
from starlette.routing import BaseRoute

from service.access.gate import Gate
from service.admission import Lane
from service.api.access import caller_nowait, may_need_engine, needed_scopes
from service.api.bodies import JSON
from service.api.dependencies import TIMEOUT, RequestedUrgency
from service.api.early_response import EarlyResponse, first_values
from service.api.problems import MEDIA_TYPE, problem_name, problem_of
from service.api.request_id import request_id_of
from service.api.strict_route import CONDITIONS, IDEMPOTENCY_KEY
from service.container import Service
from service.errors import QueueFull
from service.lifecycle import Lifecycle
from service.telemetry import Telemetry
from service.tenants import Tenants

UNDECIDED_HEADERS = frozenset(
    name.encode()
    for name in (
        *(*CONDITIONS, IDEMPOTENCY_KEY),  # the answer may need no model, or the refusal is permanent
        "content-encoding",  # the refusal is permanent
        *("origin", "expect", "transfer-encoding"),  # handled by the app or by uvicorn
    )
)
"""Headers with which a request is left to the app."""
STATUS = HTTPStatus.TOO_MANY_REQUESTS
REFUSED_LINE_SECONDS = 10.0
"""Seconds between log lines that count refusals: a line for each would be most of the log, and a tenth of their
cost."""
log = structlog.get_logger(__name__)


class EarlyRefusal:
    """Refuses requests to those handlers of `routes` that access.needs_engine declares."""

    def __init__(
        self,
        routes: Iterable[BaseRoute],
        gate: Gate,
        lifecycle: Lifecycle,
        telemetry: Telemetry,
        get_tenants: Callable[[], Tenants[Service]],
    ) -> None:
        self._scopes = {
            path.encode(): needed_scopes(endpoint)
            for path, endpoint in map(_path_and_handler, routes)
            if endpoint is not None and may_need_engine(endpoint)
        }
        """Scopes of which a request needs one, by path; all of these routes are POST."""
        self._gate = gate
        self._lifecycle = lifecycle
        self._telemetry = telemetry
        self._get_tenants = get_tenants
        self._unlogged = 0
        self._logging: asyncio.TimerHandle | None = None

    def decide(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> EarlyResponse | None:
        """Return the answer to a request that Batcher.admit would refuse if its body were one note; None for one that
        it would admit, or if these arguments are not enough to decide. `headers`: with names in lower case."""
        path = target.partition(b"?")[0]
        scopes = self._scopes.get(path) if method == b"POST" else None
        if scopes is None or self._lifecycle.draining or not self._lifecycle.started:
            return None
        given = first_values(headers)
        if not UNDECIDED_HEADERS.isdisjoint(given):
            return None
        caller = caller_nowait(self._gate, self._get_tenants(), given, scopes)
        urgency = _urgency(given)
        if caller is None or urgency is None:
            return None
        principal, service = caller
        if not _is_small_json(given, service.settings.note_bytes):
            return None
        refusal = service.batcher.refusal(urgency.for_note(service.settings), principal.tenant)
        return None if refusal is None else self._answer(path.decode(), service.tenant, given, refusal)

    def _answer(self, path: str, tenant: str, given: dict[bytes, bytes], refusal: QueueFull) -> EarlyResponse:
        request_id = request_id_of(given.get(b"x-request-id"))
        problem = problem_of(refusal).model_dump() | {"instance": request_id}
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"retry-after", b"%d" % refusal.retry_after),
            (b"x-request-id", request_id.encode()),
        ]
        began = time.monotonic()
        return EarlyResponse(
            STATUS, headers, orjson.dumps(problem), lambda: self._count(path, tenant, time.monotonic() - began)
        )

    def _count(self, path: str, tenant: str, seconds: float) -> None:
        telemetry = self._telemetry
        telemetry.http_request.labels("POST", path, STATUS.value).observe(seconds)
        telemetry.rejected.labels(problem_name(QueueFull)).inc()
        telemetry.count_tenant_request(tenant)
        self._unlogged += 1
        if self._logging is None:
            self._log()

    def close(self) -> None:
        """Log the refusals that no log line has counted yet."""
        if self._logging:
            self._logging.cancel()
        self._log_unlogged()

    def _log(self) -> None:
        """Log the number of requests refused since the last line, and repeat after REFUSED_LINE_SECONDS until there are
        none."""
        self._logging = None
        if self._log_unlogged():
            self._logging = asyncio.get_running_loop().call_later(REFUSED_LINE_SECONDS, self._log)

    def _log_unlogged(self) -> bool:
        """Log the number of requests refused since the last line; return whether there were any."""
        count, self._unlogged = self._unlogged, 0
        if count:
            log.warning("requests_refused", requests=count, status=STATUS.value)
        return count > 0


def _path_and_handler(route: BaseRoute) -> tuple[str, Callable[..., Any] | None]:
    return getattr(route, "path", ""), getattr(route, "endpoint", None)


def _is_small_json(given: dict[bytes, bytes], max_bytes: int) -> bool:
    """Return whether the headers announce a JSON body that is small enough to be one note."""
    media_type = given.get(b"content-type", b"").partition(b";")[0].strip().lower()
    length = given.get(b"content-length", b"")
    return media_type == JSON.encode() and length.isdigit() and int(length) <= max_bytes


def _urgency(given: dict[bytes, bytes]) -> RequestedUrgency | None:
    """Return the urgency of a request in the interactive lane; None for another lane, or headers that are not valid."""
    if given.get(b"x-request-priority", Lane.INTERACTIVE.encode()) != Lane.INTERACTIVE.encode():
        return None
    timeout = given.get(b"x-request-timeout")
    try:
        seconds = None if timeout is None else TIMEOUT.validate_python(timeout.decode("latin-1"))
    except ValidationError:
        return None
    return RequestedUrgency(time.monotonic(), seconds, None)
