"""SharedLru: the values of all caches of one kind, one cache for each tenant of a process, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

Value = TypeVar("Value")


class SharedLru(Generic[Value]):
    """Values of several owners, each with keys of its own. Where more than `max_bytes` are used, the least recently
    used values are evicted, whoever owns them.

    `used`: bytes that the values take.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self._values = OrderedDict[tuple[int, Hashable], tuple[Value, int]]()
        """Each value with its bytes, by owner and key, the least recently used first. Moving a key allocates no object:
        new objects at each read would be young to the garbage collector, a hundred thousand of them within seconds, and
        the event loop stood still for 0.1 s while they were collected (docs/log/reads.md)."""
        self._keys = defaultdict[int, set[Hashable]](set)
        """Keys of each owner, so that dropping all values of one owner does not go through those of others."""
        self._owners = count()

    def new_owner(self) -> int:
        """Return the number of a new owner."""
        return next(self._owners)

    def count(self, owner: int) -> int:
        """Return how many values an owner has."""
        return len(self._keys.get(owner, ()))

    def get(self, owner: int, key: Hashable) -> Value | None:
        """Return a value and mark it as the most recently used; None where there is none."""
        place = (owner, key)
        entry = self._values.get(place)
        if entry is None:
            return None
        self._values.move_to_end(place)
        return entry[0]

    def put(self, owner: int, key: Hashable, value: Value, size: int) -> None:
        """Keep a value of `size` bytes, in place of one with the same key."""
        self.drop(owner, key)
        self._values[owner, key] = value, size
        self._keys[owner].add(key)
        self.used += size
        while self.used > self.max_bytes and self._values:
            self.drop(*next(iter(self._values)))

    def drop(self, owner: int, key: Hashable) -> None:
        """Drop a value, if there is one."""
        if entry := self._values.pop((owner, key), None):
            self.used -= entry[1]
            keys = self._keys[owner]
            keys.remove(key)
            if not keys:
                del self._keys[owner]

    def drop_all(self, owner: int) -> None:
        """Drop all values of an owner."""
        for key in self._keys.pop(owner, ()):
            self.used -= self._values.pop((owner, key))[1]
