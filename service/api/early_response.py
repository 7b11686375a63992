"""Responses that a connection (protocol.py) sends before the app gets the request, and the interface that decides
them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol


def first_values(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the values of headers by name; of a repeated header the first value counts."""
    return dict(reversed(headers))


@dataclass(frozen=True, slots=True)
class EarlyResponse:
    """Complete response to a request that does not reach the app. `on_sent`: called once it is sent."""

    status: HTTPStatus
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    on_sent: Callable[[], None]


class EarlyResponder(Protocol):
    """Answers requests before they reach the app, from memory alone. If `decide` raises, the app answers."""

    def decide(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> EarlyResponse | None:
        """Return the answer to a request whose body, if any, is not a list; None if the app is to answer. `headers`:
        with names in lower case."""
