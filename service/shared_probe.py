"""SharedProbe: a question that many callers ask at a time, and that is asked once for all of them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

PAUSE_SECONDS = 0.05
"""Time between two questions, at the least."""
T = TypeVar("T")


class SharedProbe(Generic[T]):
    """Answers by `ask`. A caller gets the answer to a question that is asked after it came, so that nothing is told
    that was true before; all who come before a question share it."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._next: asyncio.Task[T] | None = None
        """The question that is not asked yet."""
        self._turn = asyncio.Lock()
        self._asked_at = -math.inf

    async def answer(self) -> T:
        """Return the answer. Raises what `ask` raises. A caller that leaves does not end the question, which others
        may wait for."""
        if self._next is None:
            self._next = asyncio.create_task(self._ask_in_turn(), name="shared-probe")
            self._next.add_done_callback(_retrieve)
        return await asyncio.shield(self._next)

    async def _ask_in_turn(self) -> T:
        async with self._turn:
            await asyncio.sleep(self._asked_at + PAUSE_SECONDS - time.monotonic())
            self._next, self._asked_at = None, time.monotonic()
            return await self._ask()


def _retrieve(asking: asyncio.Task[T]) -> None:
    """Mark a failure as retrieved: all callers may have left."""
    if not asking.cancelled():
        asking.exception()
