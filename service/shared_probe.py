"""SharedProbe: calls a function once for all callers that need its result at a time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

PAUSE_SECONDS = 0.05
"""Default least time between two calls of `ask`."""
T = TypeVar("T")


class SharedProbe(Generic[T]):
    """Shared results of `ask`. A caller gets the result of a call that starts after it came, so that no result is out
    of date; all who come before a call starts share it. Calls do not overlap, and start at least `pause_seconds` after
    each other."""

    def __init__(self, ask: Callable[[], Awaitable[T]], pause_seconds: float = PAUSE_SECONDS) -> None:
        self._ask = ask
        self._pause_seconds = pause_seconds
        self._next: asyncio.Task[T] | None = None
        """Task of the next call of `ask`, which has not started yet."""
        self._exclusive = asyncio.Lock()
        self._asked_at = -math.inf

    async def answer(self) -> T:
        """Return the result of the next call. Raises what `ask` raises. A caller that leaves does not cancel the call,
        for which others may wait."""
        if self._next is None:
            self._next = asyncio.create_task(self._ask_alone(), name="shared-probe")
            self._next.add_done_callback(_retrieve)
        return await asyncio.shield(self._next)

    async def _ask_alone(self) -> T:
        async with self._exclusive:
            await asyncio.sleep(self._asked_at + self._pause_seconds - time.monotonic())
            self._next, self._asked_at = None, time.monotonic()
            return await self._ask()


def _retrieve(asking: asyncio.Task[T]) -> None:
    """Mark a failure as retrieved: all callers may have left."""
    if not asking.cancelled():
        asking.exception()
