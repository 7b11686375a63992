"""ReadTime: the bound on how long one read waits for the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from service.errors import StoreUnavailable

READ_SECONDS = 1.0
"""Bound on the time for which one read waits for the store, in all of its calls together. Beyond it a search is
degraded, and what needs the store is refused."""
T = TypeVar("T")


class ReadTime:
    """Time that a read, which begins now, may still wait for the store: READ_SECONDS in all of its calls together."""

    def __init__(self) -> None:
        self._until = asyncio.get_running_loop().time() + READ_SECONDS

    @property
    def seconds(self) -> float:
        return max(0.0, self._until - asyncio.get_running_loop().time())

    async def wait(self, answer: Awaitable[T]) -> T:
        """Return the store's answer. Raises StoreUnavailable when the time is over."""
        try:
            async with asyncio.timeout_at(self._until):
                return await answer
        except TimeoutError as error:
            raise StoreUnavailable(f"it did not answer within {READ_SECONDS:g} s") from error
