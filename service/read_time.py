"""ReadTime: the bound on how long one read waits for the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from service.errors import StoreUnavailable

READ_SECONDS = 1.0
"""Bound on the total time that one read waits for the store, over all of its calls. Beyond it a search is degraded, and
a read that needs the store is refused."""
NEXT_SECONDS = 0.02
"""Bound on the time of a list's read after one that has used up its own: enough for a store that answers again."""
T = TypeVar("T")


class ReadTime:
    """Time that one read may still wait for the store: `seconds` over all of its calls, None for READ_SECONDS. Time
    spent in between, such as on a search or a wait for the index, does not count."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = READ_SECONDS if seconds is None else seconds

    async def wait(self, answer: Awaitable[T]) -> T:
        """Return the store's answer. Raises StoreUnavailable when the time is over."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.seconds):
                return await answer
        except TimeoutError as error:
            self.seconds = 0.0
            raise StoreUnavailable(f"no answer within {READ_SECONDS:g} s") from error
        finally:
            self.seconds = max(0.0, self.seconds - (time.monotonic() - began))

    def for_next_read(self) -> ReadTime:
        """Return the time of the next read of a list: READ_SECONDS, or NEXT_SECONDS after a read that has used up its
        own. So a store that hangs delays a list by little more than a single read."""
        return ReadTime(None if self.seconds else NEXT_SECONDS)
