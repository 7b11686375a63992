"""ConnectionWatch: looks at the time that callers have used up, for all connections of an event loop."""

from __future__ import annotations

import asyncio
import gc
import math
from collections import deque
from typing import ClassVar, Protocol
from weakref import WeakKeyDictionary

CHECK_SECONDS = 1.0
"""Seconds between two checks of a connection's deadline, by which it may outlive that."""
MIN_TURNS = 50
"""Turns of a loop in which all connections are looked at once, at least. A timer for each connection took a quarter of
the loop's work where there are 10,000, and connections that were made together were looked at, and refused, together
(docs/log/operations.md)."""
TURN_CONNECTIONS = 20
"""Connections that are looked at in one turn, as long as MIN_TURNS are enough. Those that are refused in a turn mostly
come again together, and a request waits for all of them."""
COLLECTED_CONNECTIONS = 100
"""Connections after which young objects are collected. The interpreter counts objects that are made less those that are
freed: where connections come and go, tens of thousands gather until it collects them, for 10 to 25 ms. Collecting young
objects more often would bring full collections more often, too, which it makes after some thousands of these."""


class Watched(Protocol):
    """A connection with a bound on time."""

    def check_time(self) -> bool:
        """End the connection where its caller has used up its time. Return whether to look again."""


class ConnectionWatch:
    """Looks at each connection once in CHECK_SECONDS, a few at a time."""

    _watches: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, ConnectionWatch]] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._connections: deque[Watched] = deque()
        """The one that was looked at longest ago comes first."""
        self._uncollected = 0
        """Connections since young objects were collected."""
        self._runs = False

    @classmethod
    def for_loop(cls, loop: asyncio.AbstractEventLoop) -> ConnectionWatch:
        """Return the watch of all servers of `loop`."""
        if loop not in cls._watches:
            cls._watches[loop] = cls(loop)
        return cls._watches[loop]

    def add(self, connection: Watched) -> None:
        """Look at `connection` until its `check_time` returns False."""
        self._connections.append(connection)
        self._uncollected += 1
        if self._uncollected >= COLLECTED_CONNECTIONS and gc.isenabled():
            self._uncollected = 0
            gc.collect(1)
        if not self._runs:
            self._runs = True
            self._wait()

    def _wait(self) -> None:
        turns = max(MIN_TURNS, len(self._connections) / TURN_CONNECTIONS)
        self._loop.call_later(CHECK_SECONDS / turns, self._turn)

    def _turn(self) -> None:
        for _ in range(min(TURN_CONNECTIONS, math.ceil(len(self._connections) / MIN_TURNS))):
            connection = self._connections.popleft()
            if connection.check_time():
                self._connections.append(connection)
        self._runs = bool(self._connections)
        if self._runs:
            self._wait()
