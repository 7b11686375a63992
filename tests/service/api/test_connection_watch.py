"""ConnectionWatch: each connection is checked once a second, few of them in one iteration of the event loop."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable
from typing import cast

import pytest

from service.api.connection_watch import (
    CHECK_SECONDS,
    COLLECTED_CONNECTIONS,
    CONNECTIONS_PER_ITERATION,
    ConnectionWatch,
)


class SteppedLoop:
    """Event loop that runs an iteration when the test says so. `seconds`: sum of the pauses between iterations."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._next: list[Callable[[], None]] = []

    def call_later(self, seconds: float, run: Callable[[], None]) -> None:
        self.seconds += seconds
        self._next.append(run)

    def run_one(self) -> None:
        self._next.pop()()

    @property
    def waits(self) -> bool:
        return bool(self._next)


class Connection:
    def __init__(self) -> None:
        self.looks = 0

    def check_time(self) -> None:
        self.looks += 1


def watch_of(loop: SteppedLoop) -> ConnectionWatch:
    return ConnectionWatch(cast(asyncio.AbstractEventLoop, loop))


@pytest.mark.parametrize("count", [1, 49, 50, 777, 1000, 10_000, 16_384])
def test_each_connection_is_looked_at_once_a_second_in_small_parts(count: int) -> None:
    loop, connections = SteppedLoop(), [Connection() for _ in range(count)]
    watch = watch_of(loop)
    for connection in connections:
        watch.add(connection)
    loop.seconds = 0.0
    looks = 0
    while not connections[-1].looks:
        loop.run_one()
        looks, before = sum(connection.looks for connection in connections), looks
        assert looks - before <= CONNECTIONS_PER_ITERATION
    assert all(connection.looks for connection in connections)
    assert loop.seconds <= CHECK_SECONDS * 1.001


def test_nothing_runs_where_no_connection_is_open() -> None:
    loop = SteppedLoop()
    watch = watch_of(loop)
    ended = Connection()
    watch.add(ended)
    watch.remove(ended)
    loop.run_one()
    assert (ended.looks, loop.waits) == (0, False)
    watch.add(Connection())
    assert loop.waits


def test_young_objects_of_connections_that_come_and_go_are_few() -> None:
    watch, objects = watch_of(SteppedLoop()), 30
    gc.collect()
    kept: deque[list[list[object]]] = deque([[] for _ in range(objects)] for _ in range(1000))
    gc.collect()
    for _ in range(1000):
        kept.popleft()  # frees as many objects as the next append creates
        kept.append([[] for _ in range(objects)])
        watch.add(Connection())
    young = [*gc.get_objects(generation=0), *gc.get_objects(generation=1)]
    assert len(young) < 2 * objects * COLLECTED_CONNECTIONS
