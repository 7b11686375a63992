"""SharedLru: what the caches of one kind keep, those of all tenants of a process, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

Value = TypeVar("Value")


class SharedLru(Generic[Value]):
    """Values of several owners by keys of theirs. Where more than `max_bytes` are used, those that were asked for least
    recently go first, whoever owns them.

    `used`: bytes that the values take.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self._values = OrderedDict[tuple[int, Hashable], tuple[Value, int]]()
        """Each value with its bytes, by owner and key, the one that was asked for least recently first. To move a key
        makes no object: new ones at each read would be young to the garbage collector, a hundred thousand of them in
        some seconds, and the event loop stood still for 0.1 s while they were collected (docs/log/reads.md)."""
        self._keys = defaultdict[int, set[Hashable]](set)
        """Keys of each owner, so that dropping all values of one takes no time for those of others."""
        self._owners = count()

    def new_owner(self) -> int:
        """Return a number that no owner has yet."""
        return next(self._owners)

    def count(self, owner: int) -> int:
        """Return how many values an owner has."""
        return len(self._keys.get(owner, ()))

    def get(self, owner: int, key: Hashable) -> Value | None:
        """Return a value, which is now the one that was asked for last; None for none."""
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
