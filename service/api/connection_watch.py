"""ConnectionWatch: enforces the time bounds of all connections of an event loop."""

from __future__ import annotations

import asyncio
import gc
import math
from collections import OrderedDict
from typing import ClassVar, Protocol
from weakref import WeakKeyDictionary

CHECK_SECONDS = 1.0
"""Seconds between two checks of a connection's deadline, and so the most by which it may outlive it."""
MIN_ITERATIONS = 50
"""Minimum number of iterations of the event loop over which one round of checks is spread. A timer per connection took
a quarter of the loop's work at 10,000 connections, and connections made together were checked, and refused, together
(docs/log/operations.md)."""
CONNECTIONS_PER_ITERATION = 20
"""Maximum number of connections checked in one iteration; where MIN_ITERATIONS are too few for that, a round takes more
iterations. Connections refused in one iteration mostly reconnect together, and other requests wait for all of them."""
COLLECTED_CONNECTIONS = 100
"""New connections after which young objects are garbage-collected. The interpreter triggers on allocations minus
deallocations: where connections come and go, tens of thousands of objects gather before it collects them, for 10 to 25
ms. Collecting more often would also bring more full collections, which run after some thousands of young
ones."""


class Watched(Protocol):
    """A connection with a bound on time."""

    def check_time(self) -> None:
        """Close the connection if its caller has used up its time."""


class ConnectionWatch:
    """Checks each connection once in CHECK_SECONDS, a few at a time."""

    _watches: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, ConnectionWatch]] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._connections: OrderedDict[Watched, None] = OrderedDict()
        """Open connections, as a set in the order of their checks: the one checked longest ago comes first."""
        self._uncollected = 0
        """Connections added since young objects were last collected."""
        self._runs = False

    @classmethod
    def for_loop(cls, loop: asyncio.AbstractEventLoop) -> ConnectionWatch:
        """Return the watch that all servers of `loop` share."""
        if loop not in cls._watches:
            cls._watches[loop] = cls(loop)
        return cls._watches[loop]

    def add(self, connection: Watched) -> None:
        """Check `connection` until it is removed."""
        self._connections[connection] = None
        self._uncollected += 1
        if self._uncollected >= COLLECTED_CONNECTIONS and gc.isenabled():
            self._uncollected = 0
            gc.collect(1)
        if not self._runs:
            self._runs = True
            self._wait()

    def remove(self, connection: Watched) -> None:
        """Forget a connection that has ended. One that waited here for its next check would outlive the collections of
        young objects, and stay in memory, with its requests, until a full one, which is rare."""
        self._connections.pop(connection, None)

    def _wait(self) -> None:
        iterations = max(MIN_ITERATIONS, len(self._connections) / CONNECTIONS_PER_ITERATION)
        self._loop.call_later(CHECK_SECONDS / iterations, self._check_next)

    def _check_next(self) -> None:
        for _ in range(min(CONNECTIONS_PER_ITERATION, math.ceil(len(self._connections) / MIN_ITERATIONS))):
            connection = next(iter(self._connections))
            self._connections.move_to_end(connection)
            connection.check_time()
        self._runs = bool(self._connections)
        if self._runs:
            self._wait()
