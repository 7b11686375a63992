"""SeqLock, a sequence lock: a thread reads data as they are between two changes that another thread makes in several
steps each. A reader makes the writer wait only after changes have spoilt FREE_READS of its attempts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
FREE_READS = 3
"""Reads beside which changes may be made, before one that makes them wait: so a read ends, however much is written."""


class SeqLock:
    """A count of the steps of changes, odd while one is under way, and a lock that is held for each change.

    A read that begins and ends at one even count had no change beside it: a change raises the count before anything
    else, with the interpreter's lock held, and a reader that saw part of the change takes that lock before it compares
    the count again. A change must not be made inside another, which would wait for itself.
    """

    def __init__(self) -> None:
        self._count = 0
        self._changing = threading.Lock()

    @contextmanager
    def change(self) -> Iterator[None]:
        """Make what the block does one change, of which reads see all or nothing."""
        with self._changing:
            self._count += 1
            try:
                yield
            finally:
                self._count += 1

    def read(self, look: Callable[[], T]) -> T:
        """Return what `look` returns while nothing changes. It is called FREE_READS times at most while changes may be
        made, and then once while they wait: it should take little time."""
        for _ in range(FREE_READS):
            before = self._count
            if before % 2 == 0:
                seen = look()
                if self._count == before:
                    return seen
        with self._changing:
            return look()
