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
T = TypeVar("T")


class ReadTime:
    """Time that one read may still wait for the store: READ_SECONDS over all of its calls. Time spent in between, such
    as on a search or a wait for the index, does not count."""

    def __init__(self) -> None:
        self.seconds = READ_SECONDS

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

    def of_next(self) -> ReadTime:
        """Return the time of the next read of a list: READ_SECONDS again, but none after a read that has used up its
        own. A store that hangs then delays the list as long as one read."""
        return ReadTime() if self.seconds else self
