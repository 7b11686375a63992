"""Ten thousand slow connections beside reads.

python -m benchmarks.speed.slow_clients

Each slow caller sends one byte of its request head every SLOW_SECONDS, and reconnects when it is refused. All slow
callers run in a separate process. Reads are measured without and with them, in turns, since other load on a machine
changes by the minute. Reads of the service alternate with reads of a stored answer from a process that has no other
connections: if these become slower, too, the cause is the machine or the measuring client, not the service. Takes about
three minutes.
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
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.harness.http_load import connect, without_collections
from benchmarks.harness.report import Row, row, write
from benchmarks.harness.service_process import ServiceProcess
from benchmarks.harness.statistics import percentile_ms, percentiles_text
from benchmarks.peers import stored_answer
from benchmarks.speed.overload import Callers, arrivals, random_texts, store_notes
from benchmarks.speed.similar import stored_answer_server

CONNECTIONS = 10_000
SLOW_SECONDS = 5.0
ROUNDS = 3
"""Pairs of measurements, each without and then with the slow callers."""
SECONDS = 10.0
"""Length of each measurement."""
READS_PER_SECOND = 200.0
"""Reads of the service, and as many of the stored answer: 2,000 of each in a measurement."""
TURNS = 500
"""Turns over which the slow callers' bytes are spread, since independent callers do not send at the same time."""
NICENESS = 19
"""Niceness of the slow callers' process: they stand for callers on other machines, which would not use the service's
cores."""
STORED_CONNECTIONS = 8
"""Initial connections to the process with the stored answer; a read that finds none free opens another."""
REST_SECONDS = 2.0
"""Pause after a measurement with slow callers, in which the service closes their connections."""
MAX_READ_FACTOR = 2
HEAD = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: " + b"x" * 1000


class SlowCaller(asyncio.Protocol):
    """Sends one byte of its request head at each turn, and reconnects once it is refused."""

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
    """Run `count` slow callers of these ports for ever; the main function of their process."""
    os.nice(NICENESS)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def run() -> None:
        callers = [SlowCaller(port) for _, port in zip(range(count), itertools.cycle(ports))]
        for turn in itertools.count():
            for caller in callers[turn % TURNS :: TURNS]:
                caller.turn()
            await asyncio.sleep(SLOW_SECONDS / TURNS)
            if turn == TURNS + TURNS // 5:  # every caller has connected, and some time has passed
                all_there.set()

    with without_collections():
        uvloop.run(run())


@contextlib.contextmanager
def slow_callers(ports: Sequence[int], count: int) -> Iterator[Event]:
    """Run `count` slow callers in their own process; yield the event that all of them have connected."""
    context = multiprocessing.get_context("spawn")
    all_there = context.Event()
    slow = context.Process(target=be_many, args=(ports, count, all_there), daemon=True)
    slow.start()
    try:
        yield all_there
    finally:
        slow.terminate()
        slow.join()


@dataclass(slots=True)
class Reads:
    """Seconds of the reads of one kind: a list for each measurement."""

    idle: list[list[float]] = field(default_factory=list)
    beside: list[list[float]] = field(default_factory=list)

    @property
    def p99(self) -> tuple[float, float]:
        """99th percentiles in milliseconds of all idle reads, and of all reads beside the slow callers."""
        idle, beside = (percentile_ms(list(itertools.chain(*lists)), 99) for lists in (self.idle, self.beside))
        return idle, beside

    @property
    def factors(self) -> list[float]:
        """Ratios of the 99th percentile beside slow callers to the idle one, by pair of measurements, ascending."""
        pairs = zip(self.idle, self.beside, strict=True)
        return sorted(percentile_ms(beside, 99) / percentile_ms(idle, 99) for idle, beside in pairs)

    def described(self) -> str:
        """Return the idle percentile and the factors as text."""
        idle, beside = self.p99
        factors = self.factors
        return f"idle: {idle:.1f} ms; ratio {beside / idle:.1f}x, by round {factors[0]:.1f}x to {factors[-1]:.1f}x"


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one run. `mib`: memory of the service before and after."""

    service: Reads
    stored: Reads
    mib: tuple[int, int]


async def read_both(callers: Callers, ids: Sequence[str], stored_port: int) -> tuple[list[float], list[float]]:
    """Read related notes and the stored answer alternately, at random times, for SECONDS; return seconds of each."""
    paths, free = itertools.cycle(ids), deque(await connect(stored_port, STORED_CONNECTIONS))
    kinds = itertools.cycle((True, False))
    stored = f"GET {stored_answer.PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()

    async def read() -> tuple[bool, float]:
        of_service = next(kinds)
        if of_service:
            return of_service, await callers.read(next(paths))
        connection = free.popleft() if free else (await connect(stored_port, 1))[0]
        sent = time.perf_counter()
        await connection.send(stored)
        taken = time.perf_counter() - sent
        free.append(connection)
        return of_service, taken

    taken = await asyncio.gather(*await arrivals(read, 2 * READS_PER_SECOND, SECONDS))
    return [seconds for kind, seconds in taken if kind], [seconds for kind, seconds in taken if not kind]


async def measure(service: ServiceProcess) -> Figures:
    """Measure a running service ROUNDS times, without and with the slow callers."""
    callers = Callers(lambda: service.port, random_texts())
    ids = await store_notes(callers)
    figures = Figures(Reads(), Reads(), (service.resident_mib(), 0))
    (probe,) = await connect(service.port, 1)
    answer = await probe.send(f"GET /notes/{ids[0]}/similar HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    with stored_answer_server(answer) as stored_port:
        await read_both(callers, ids, stored_port)  # warms up
        for _ in range(ROUNDS):
            pairs = await read_both(callers, ids, stored_port)
            for kind, seconds in zip((figures.service, figures.stored), pairs, strict=True):
                kind.idle.append(seconds)
            with slow_callers([service.port], CONNECTIONS) as all_there:
                await asyncio.to_thread(all_there.wait)
                pairs = await read_both(callers, ids, stored_port)
            for kind, seconds in zip((figures.service, figures.stored), pairs, strict=True):
                kind.beside.append(seconds)
            await asyncio.sleep(REST_SECONDS)
    return Figures(figures.service, figures.stored, (figures.mib[0], service.resident_mib()))


def rows(figures: Figures) -> list[Row]:
    """Return the rows of the result."""
    idle, beside = figures.service.p99
    every = list(itertools.chain(*figures.service.beside))
    return [
        row(
            f"read latency beside {CONNECTIONS:,} slow connections, p99", round(beside, 1), "ms",
            against=figures.service.described(),
            spread=f"p50 / p95 / p99: {percentiles_text(every, 1)}; {len(every):,} reads in {ROUNDS} "
            f"rounds, {READS_PER_SECOND:g}/s",
            target=f"≤ {MAX_READ_FACTOR}x idle", met=beside <= MAX_READ_FACTOR * idle,
        ),
        row(
            "control: latency of a static response from another process, p99", round(figures.stored.p99[1], 1), "ms",
            against=figures.stored.described(),
            spread="no slow connections; shows the effect of machine and client",
        ),
        row(
            "resident memory afterwards", figures.mib[1], "MiB", against=f"before: {figures.mib[0]} MiB",
        ),
    ]  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="nl-") as folder, ServiceProcess(Path(folder)) as service:
        service.start()
        with without_collections():
            figures = uvloop.run(measure(service))
    write("slow_clients", rows(figures))


if __name__ == "__main__":
    main()
