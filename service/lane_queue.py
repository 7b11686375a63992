"""LaneQueue: the notes that wait in one lane, with a queue per tenant; the tenants take turns, note by note."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class LaneQueue(Generic[T]):
    """Queue of one lane: round robin over tenants, first in, first out within each. `tenant_of` returns an entry's
    tenant."""

    def __init__(self, tenant_of: Callable[[T], str]) -> None:
        self._tenant_of = tenant_of
        self._queues: dict[str, deque[T]] = {}
        """Queues by tenant, none of them empty, in the order of the tenants' turns."""

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[T]:
        for queue in self._queues.values():
            yield from queue

    def extend(self, entries: Iterable[T]) -> None:
        """Append entries to the queues of their tenants. A tenant that had none is last in turn."""
        for entry in entries:
            self._queues.setdefault(self._tenant_of(entry), deque()).append(entry)

    def put_back(self, entry: T) -> None:
        """Put an entry back where it was before `take`."""
        tenant = self._tenant_of(entry)
        queue = self._queues.pop(tenant, deque())
        queue.appendleft(entry)
        self._queues = {tenant: queue, **self._queues}

    @property
    def first(self) -> T | None:
        """First entry of the tenant whose turn it is; None if the queue is empty."""
        return next(iter(self._queues.values()))[0] if self._queues else None

    @property
    def fronts(self) -> Iterator[T]:
        """First entry of each tenant, in the order of their turns."""
        return (queue[0] for queue in self._queues.values())

    def take(self) -> T:
        """Remove and return the first entry; the turn passes to the next tenant."""
        tenant = next(iter(self._queues))
        queue = self._queues.pop(tenant)
        entry = queue.popleft()
        if queue:
            self._queues[tenant] = queue
        return entry

    def drop(self) -> T:
        """Remove and return the first entry; its tenant keeps the turn."""
        tenant, queue = next(iter(self._queues.items()))
        entry = queue.popleft()
        if not queue:
            del self._queues[tenant]
        return entry

    def discard(self, entries: Collection[T]) -> int:
        """Remove those of `entries` that still wait, and return their number. Every tenant keeps its turn."""
        leaving, before = set(entries), len(self)
        for tenant in self._queues.keys() & {self._tenant_of(entry) for entry in leaving}:
            if staying := deque(entry for entry in self._queues[tenant] if entry not in leaving):
                self._queues[tenant] = staying
            else:
                del self._queues[tenant]
        return before - len(self)

    def clear(self) -> None:
        self._queues.clear()
