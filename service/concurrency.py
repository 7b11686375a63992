"""ConcurrencyLimit: a bound on the concurrent requests of one kind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from service.errors import TooManyWaiting


class ConcurrencyLimit:
    """Slots of which at most `limit` are held at a time. `bound`: the limit's name at GET /limits."""

    def __init__(self, bound: str, limit: int) -> None:
        self._bound = bound
        self._limit = limit
        self._taken = 0

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot for the block. Raises TooManyWaiting if none is free."""
        if self._taken >= self._limit:
            raise TooManyWaiting(self._bound, self._limit)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
