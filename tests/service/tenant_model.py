"""Comparable answers for the tests of isolation, which compare two tenants of one service with a separate service each.

No two services have the same log positions, generated ids and times. Positions and ids are replaced by the number of
their first appearance, and times are left out, so that answers to the same requests are equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx2

POSITION = re.compile(r"\d{13,}-\d+")
ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
SCORE_DIGITS = 4
"""Decimals of scores that are compared: the last bits depend on which notes share a step of the engine."""
LEFT_OUT = ("instance", "removed_at", "created_at", "at", "next_cursor", "user", "time")
"""Fields of answers that differ between services: names of the request or the process, times, and pseudonyms."""
HEADERS = ("etag", "idempotent-replayed", "location", "content-type")
EXEMPT = {
    "GET /livez": "a constant",
    "GET /startupz": "tells of the process",
    "GET /readyz": "tells of the process; the caller's own notes: api/test_tenant_keys.py",
    "GET /metrics": "tells of the process, under a scope of its own",
    "GET /limits": "tells settings of the process",
    "GET /tenants": "for those who run the service: api/test_tenant_keys.py",
    "DELETE /tenants/{name}": "called by the model under the bootstrap key",
    "POST /keys": "called by the model under the bootstrap key; across tenants: api/routes/test_keys.py",
    "GET /keys": "across tenants: api/routes/test_keys.py",
    "PATCH /keys/{prefix}": "across tenants: api/routes/test_keys.py",
    "DELETE /keys/{prefix}": "across tenants: api/routes/test_keys.py",
    "POST /keys/{prefix}/rotate": "across tenants: api/routes/test_keys.py",
    "GET /audit": "for those who run the service, of all tenants",
}
"""Operations that the tests of isolation do not call with their tenants' keys, each with the reason."""


def operation_of(method: str, path: str, templates: Iterable[str]) -> str:
    """Return the method and the documented path of a request; a fixed path has priority over one with a
    parameter."""
    for template in sorted(templates, key=lambda one: one.count("{")):
        if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path):
            return f"{method} {template}"
    raise AssertionError(f"{path} is no documented path")


@dataclass
class Caller:
    """A client that remembers positions and ids in the order of their appearance."""

    clients: list[httpx2.Client]
    """One for each replica of the same service."""
    numbers: dict[str, str] = field(default_factory=dict)

    def call(self, replica: int, method: str, path: str, **request: Any) -> Any:
        """Send a request to a replica, and return the comparable part of its answer: status, headers and bodies."""
        answer = self.clients[replica % len(self.clients)].request(method, path, **request)
        headers = {name: self.plain(answer.headers[name]) for name in HEADERS if name in answer.headers}
        kind = headers.get("content-type", "")
        lines = answer.text.splitlines() if "ndjson" in kind or "event-stream" in kind else [answer.text]
        if "event-stream" in kind:
            lines = [line.removeprefix("data:") for line in lines if line.startswith("data:")]
        bodies = [httpx2.Response(200, text=line).json() if line else None for line in lines]
        return answer.status_code, headers, self.plain(bodies)

    def close(self) -> None:
        for client in self.clients:
            client.close()

    @property
    def last_position(self) -> str:
        """The last log position in any answer; "" if there was none."""
        positions = [text for text in self.numbers if "-" in text]
        return max(positions, key=lambda text: tuple(map(int, text.split("-"))), default="")

    def position_of(self, number: str) -> str:
        """Return the log position that has the number; for an unknown number, a position that no write has."""
        return next((text for text, name in self.numbers.items() if name == number), "1-1")

    def plain(self, value: Any) -> Any:
        """Return a value of an answer with positions and generated ids replaced by their numbers."""
        if isinstance(value, dict):
            return {name: self.plain(entry) for name, entry in value.items() if name not in LEFT_OUT}
        if isinstance(value, list):
            return [self.plain(entry) for entry in value]
        if isinstance(value, float):
            return round(value, SCORE_DIGITS)
        if isinstance(value, str):
            return ULID.sub(self._number, POSITION.sub(self._number, value))
        return value

    def _number(self, match: re.Match[str]) -> str:
        return self.numbers.setdefault(match[0], f"#{len(self.numbers)}")
