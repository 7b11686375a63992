"""Ten thousand slow connections beside reads.

python -m benchmarks.speed.slow_clients

Each slow caller sends its head a byte at a time, a byte in SLOW_SECONDS, and comes again when it is refused. Reads are
measured before and meanwhile. The slow callers are a process of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.harness.report import Row, row, write
from benchmarks.harness.service_process import ServiceProcess
from benchmarks.harness.statistics import percentile_ms, percentiles_text
from benchmarks.speed.overload import READS_PER_SECOND, Callers, random_texts, reads, store_notes

CONNECTIONS = 10_000
SLOW_SECONDS = 5.0
SECONDS = 40.0
"""Length of each of the two measurements: p99 is the eighth of their slowest reads."""
TURNS = 500
"""Turns in which all slow callers send a byte: callers that have nothing to do with each other do not send together."""
NICENESS = 19
"""Niceness of the slow callers' process: they stand for callers on other machines, which take no core from the
service."""
MAX_READ_FACTOR = 2
HEAD = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: " + b"x" * 1000


class SlowCaller(asyncio.Protocol):
    """Sends a byte of its head at each turn, and comes again once it is refused."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: Any = None
        """An asyncio.Transport; None while there is no connection."""
        self._sent = 0
        self._connecting: asyncio.Task[None] | None = None

    def turn(self) -> None:
        if self._transport is not None:
            self._transport.write(HEAD[self._sent : self._sent + 1])
            self._sent += 1
        elif self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._sent = transport, 0

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._connecting = asyncio.create_task(self._connect())


def be_many(ports: Sequence[int], count: int, all_there: Event) -> None:
    """Process of `count` slow callers of these ports, for ever."""
    os.nice(NICENESS)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def run() -> None:
        callers = [SlowCaller(port) for _, port in zip(range(count), itertools.cycle(ports))]
        for turn in itertools.count():
            for caller in callers[turn % TURNS :: TURNS]:
                caller.turn()
            await asyncio.sleep(SLOW_SECONDS / TURNS)
            if turn == 2 * TURNS:
                all_there.set()

    uvloop.run(run())


async def measure(service: ServiceProcess) -> list[Row]:
    callers = Callers(lambda: service.port, random_texts())
    ids = await store_notes(callers)
    idle = await reads(callers, ids, SECONDS)
    before = service.resident_mib()
    context = multiprocessing.get_context("spawn")
    all_there = context.Event()
    slow = context.Process(target=be_many, args=([service.port], CONNECTIONS, all_there), daemon=True)
    slow.start()
    await asyncio.to_thread(all_there.wait)
    try:
        started = time.perf_counter()
        busy = await reads(callers, ids, SECONDS)
        seconds = time.perf_counter() - started
    finally:
        slow.terminate()
        slow.join()
    p99, idle_p99 = percentile_ms(busy, 99), percentile_ms(idle, 99)
    return [
        row(
            f"reads beside {CONNECTIONS:,} slow connections, p99", round(p99, 1), "ms",
            against=f"idle: {idle_p99:.1f} ms",
            spread=f"p50 / p95 / p99: {percentiles_text(busy, 1)}; {READS_PER_SECOND:g} reads/s, {seconds:.0f} s",
            target=f"<= {MAX_READ_FACTOR} x idle", met=p99 <= MAX_READ_FACTOR * idle_p99,
        ),
        row(
            "memory of the service beside them", service.resident_mib(), "MiB", against=f"before: {before} MiB",
            spread="resident",
        ),
    ]  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="nl-") as folder, ServiceProcess(Path(folder)) as service:
        service.start()
        measured = uvloop.run(measure(service))
    write("slow_clients", measured)


if __name__ == "__main__":
    main()
