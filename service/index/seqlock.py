"""SeqLock, a sequence lock: a thread reads data as they are between two changes that another thread makes in several
steps each. A reader makes the writer wait only after changes have spoilt MAX_OPTIMISTIC_READS of its attempts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
MAX_OPTIMISTIC_READS = 3
"""Reads during which changes may be made, before one that makes changes wait, so that a read ends however much is
written."""


class SeqLock:
    """A counter, odd while a change is under way, and a lock that is held during each change.

    No change overlapped a read that begins and ends at the same even count: a change increments the count before
    anything else, holding the GIL, and a reader that saw part of the change takes the GIL before it compares the count
    again. Changes must not be nested: the inner one would wait for the outer one for ever.
    """

    def __init__(self) -> None:
        self._count = 0
        self._changing = threading.Lock()

    @contextmanager
    def change(self) -> Iterator[None]:
        """Make the `with` block one change, of which reads see all or nothing."""
        with self._changing:
            self._count += 1
            try:
                yield
            finally:
                self._count += 1

    def read(self, look: Callable[[], T]) -> T:
        """Return what `look` returns while nothing changes. It is called at most MAX_OPTIMISTIC_READS times while
        changes may be made, and then once while they wait, so it should take little time."""
        for _ in range(MAX_OPTIMISTIC_READS):
            before = self._count
            if before % 2 == 0:
                seen = look()
                if self._count == before:
                    return seen
        with self._changing:
            return look()
