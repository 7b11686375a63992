"""ConcurrencyLimit: a bound on requests of a kind that run at one time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from service.errors import TooManyWaiting


class ConcurrencyLimit:
    """At most `limit` requests at a time hold a slot. `bound` is the limit's name at GET /limits."""

    def __init__(self, bound: str, limit: int) -> None:
        self._bound = bound
        self._limit = limit
        self._taken = 0

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot for the block. Raises TooManyWaiting where none is free."""
        if self._taken >= self._limit:
            raise TooManyWaiting(self._bound, self._limit)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
