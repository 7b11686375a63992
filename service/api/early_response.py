"""Answers that a connection (protocol.py) gives before the app has the request, and what decides about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol


@dataclass(frozen=True, slots=True)
class EarlyResponse:
    """Whole answer to a request that the app does not get. `on_sent`: called when it is sent."""

    status: HTTPStatus
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    on_sent: Callable[[], None]


class EarlyResponder(Protocol):
    """Answers requests before the app has them, by what is in memory. Where `decide` raises, the app answers."""

    def decide(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> EarlyResponse | None:
        """Return the answer to a request whose body, if it has one, is no list; None where the app is to answer.
        `headers`: with names in lower case."""
