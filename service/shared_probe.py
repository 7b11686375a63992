"""SharedProbe: a question that many callers ask, and that is answered once a second for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

PROBE_SECONDS = 1.0
"""How old an answer may be."""
T = TypeVar("T")


class SharedProbe(Generic[T]):
    """Answers by `ask`, which is called when the last answer, or failure, is PROBE_SECONDS old."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._asking: asyncio.Future[T] | None = None
        self._answered_at = 0.0

    async def answer(self) -> T:
        """Return the answer. Raises what `ask` raises. A caller that leaves does not end the question, which others
        may wait for."""
        if self._asking is None or (self._asking.done() and time.monotonic() - self._answered_at >= PROBE_SECONDS):
            self._asking = asyncio.ensure_future(self._ask())
            self._asking.add_done_callback(self._end)
        return await asyncio.shield(self._asking)

    def _end(self, asking: asyncio.Future[T]) -> None:
        self._answered_at = time.monotonic()
        if not asking.cancelled():
            asking.exception()  # marks it as retrieved: all callers may have left
