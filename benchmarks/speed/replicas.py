"""Ten minutes of everything at once, on two replicas with one Redis behind a load balancer.

python -m benchmarks.speed.replicas [SECONDS]

Callers who give up after ten seconds send five times the notes that are possible, beside reads and slow connections. At
a quarter and at half of the time the replicas are restarted one after the other; at three quarters Redis is killed and
started again. Afterwards each acknowledged note is looked up in the store and in both indexes, and the output of the
processes is searched for the password and for texts of notes. Each replica has its own core, which it shares with the
callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.harness.http_load import Connection, connect, without_collections
from benchmarks.harness.report import Row, row, write
from benchmarks.harness.service_process import ServiceProcess, free_port
from benchmarks.harness.statistics import percentile_ms, percentiles_text
from benchmarks.speed.overload import (
    CALM_SECONDS,
    FACTOR,
    MIN_GOODPUT,
    PATIENCE,
    READS_PER_SECOND,
    Callers,
    Posted,
    arrivals,
    random_texts,
    reads,
    saturate,
    store_notes,
    stored_by,
)
from benchmarks.speed.slow_clients import slow_callers
from service.store.embedded_redis import server_program

SECONDS = 600.0
SLOW_CONNECTIONS = 1000
DRAIN_SECONDS = 2.0
POLL_SECONDS = 0.5
"""Pause between two checks of the balancer whether a replica is ready."""
POLL_PATIENCE = 2.0
"""Seconds that the balancer waits for the answer; a replica that takes longer gets no requests."""
READYZ = b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
REDIS_UNAVAILABLE_SECONDS = 1.0
"""Pause between killing Redis and starting it again."""
MARK = "quetzalcoatlus"
"""Word in every note, which no process may print."""
PASSWORD = "not-to-be-printed"


class RedisProcess:
    """A Redis process with a password and an fsync at each write, on a free loopback port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {"port": str(self._port), "bind": "127.0.0.1", "dir": str(self._folder), "requirepass": PASSWORD}
        options |= {
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "logfile": str(self._folder / "redis.log"),
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen([str(server_program()), *arguments], stdin=subprocess.DEVNULL)

    def stop(self, how: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait()


class Balancer:
    """Chooses for each request a replica that was ready at its last check, or any if none was."""

    def __init__(self, replicas: Sequence[ServiceProcess]) -> None:
        self._ports = [replica.port for replica in replicas]
        self._ready = set(self._ports)
        self._rng = random.Random(3)

    def choose_port(self) -> int:
        return self._rng.choice([port for port in self._ports if port in self._ready] or self._ports)

    @contextlib.asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        polls = [asyncio.create_task(self._poll(port)) for port in self._ports]
        try:
            yield
        finally:
            for poll in polls:
                poll.cancel()

    async def _poll(self, port: int) -> None:
        connection: Connection | None = None
        while True:
            ready = False
            try:
                async with asyncio.timeout(POLL_PATIENCE):
                    if connection is None or not connection.is_open:
                        (connection,) = await connect(port, 1)
                    ready = (await connection.exchange(READYZ)).startswith(b"HTTP/1.1 200")
            except (OSError, TimeoutError):
                if connection is not None:
                    connection.close()
                connection = None
            (self._ready.add if ready else self._ready.discard)(port)
            await asyncio.sleep(POLL_SECONDS)


@dataclass(slots=True)
class Reads:
    """Reads of the load: seconds of those that were answered, and the number of those that failed."""

    seconds: list[float]
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one run. `lost`: acknowledged notes that the store or an index does not have at the end."""

    possible: float
    idle_reads: list[float]
    seconds: float
    ended: float
    posted: list[Posted]
    reads: Reads
    lost: int
    files: tuple[int, int]
    """Open files of both replicas before the load and after it."""
    memory: tuple[int, int]
    """Resident memory of both replicas in MiB, before the load and after it."""

    @property
    def stored(self) -> int:
        return sum(posted.stored for posted in self.posted)


async def measure(replicas: Sequence[ServiceProcess], redis: RedisProcess, seconds: float) -> Figures:
    """Measure two running replicas: idle, then with everything at once; then count the acknowledged notes lost."""
    balancer = Balancer(replicas)
    callers = Callers(balancer.choose_port, marked_texts())
    async with balancer.polling():
        ids = await store_notes(callers)
        idle_reads = await reads(callers, ids, CALM_SECONDS)
        possible = await saturate(callers, CALM_SECONDS)
        files, memory = open_files(replicas), resident(replicas)
        read = Reads([])
        with slow_callers([replica.port for replica in replicas], SLOW_CONNECTIONS) as all_there:
            await asyncio.to_thread(all_there.wait)
            disturbing = asyncio.create_task(disturb(replicas, redis, seconds))
            reading = asyncio.ensure_future(arrivals(lambda: one_read(callers, ids, read), READS_PER_SECOND, seconds))
            posting = await arrivals(callers.post, FACTOR * possible, seconds)
            ended = time.perf_counter()
            posted = await asyncio.gather(*posting)
            await asyncio.gather(*await reading)
            await disturbing
        await asyncio.sleep(PATIENCE)  # until the connections that slow callers left open have timed out
        lost = await count_lost(replicas, [post.note_id for post in posted if post.stored])
    print(possible, Counter(post.status for post in posted))
    ends = open_files(replicas), resident(replicas)
    return Figures(possible, idle_reads, seconds, ended, posted, read, lost, (files, ends[0]), (memory, ends[1]))


def marked_texts() -> Iterator[str]:
    return (f"{MARK} {text}" for text in random_texts())


async def one_read(callers: Callers, ids: Sequence[str], outcome: Reads) -> None:
    try:
        outcome.seconds.append(await callers.read(random.choice(ids)))
    except RuntimeError:
        outcome.failed += 1


async def disturb(replicas: Sequence[ServiceProcess], redis: RedisProcess, seconds: float) -> None:
    """Restart the replicas one after the other at a quarter and at half of the time; kill Redis at three quarters."""
    began = time.perf_counter()
    for quarter in (1, 2):
        await asyncio.sleep(began + quarter * seconds / 4 - time.perf_counter())
        for replica in replicas:
            await asyncio.to_thread(replica.stop)
            await asyncio.to_thread(replica.start)
            await asyncio.sleep(2 * POLL_SECONDS)  # until the balancer has seen that the replica is ready
    await asyncio.sleep(began + 3 * seconds / 4 - time.perf_counter())
    redis.stop(signal.SIGKILL)
    await asyncio.sleep(REDIS_UNAVAILABLE_SECONDS)
    redis.start()


async def count_lost(replicas: Sequence[ServiceProcess], ids: Sequence[str]) -> int:
    """Count the notes that the store or one of the indexes lacks."""
    listed = await asyncio.gather(*(asyncio.to_thread(replica.listed_ids) for replica in replicas))
    return len(set(ids) - listed[0].intersection(*listed))


def open_files(replicas: Sequence[ServiceProcess]) -> int:
    return sum(len(list(Path(f"/proc/{replica.pid}/fd").iterdir())) for replica in replicas)


def resident(replicas: Sequence[ServiceProcess]) -> int:
    return sum(replica.resident_mib() for replica in replicas)


def printed_secrets(folder: Path) -> int:
    """Count the log lines that contain the password or a note's text."""
    lines = (line for path in folder.rglob("*.log") for line in path.read_bytes().splitlines())
    return sum(MARK.encode() in line or PASSWORD.encode() in line for line in lines)


def rows(figures: Figures, secrets: int) -> list[Row]:
    statuses = Counter(post.status for post in figures.posted)
    goodput = stored_by(figures.ended, figures.posted) / figures.seconds
    share = goodput / figures.possible
    refused = ", ".join(f"{statuses[status]} x {status}" for status in sorted(statuses) if status not in (0, 201))
    idle, busy = (percentile_ms(seconds, 99) for seconds in (figures.idle_reads, figures.reads.seconds))
    return [
        row(
            f"goodput of two replicas at {FACTOR}x capacity, all disturbances together",
            round(goodput, 1), "notes/s", against=f"{100 * share:.0f}% of the capacity, {figures.possible:.1f} notes/s",
            spread=f"{figures.seconds:g} s; {figures.stored} stored, {refused}, {statuses[0]} timed out or "
            "disconnected",
            target=f"≥ {100 * MIN_GOODPUT:.0f}%", met=share >= MIN_GOODPUT,
        ),
        row("acknowledged notes lost", figures.lost, "", spread=f"{figures.stored} looked up in store and indexes",
            target="0", met=figures.lost == 0),
        row("log lines that contain the password or a note's text", secrets, "", target="0", met=secrets == 0),
        row("read latency under this load, p99", round(busy, 1), "ms", against=f"idle: {idle:.1f} ms",
            spread=f"p50 / p95 / p99: {percentiles_text(figures.reads.seconds, 1)}; {figures.reads.failed} of "
            f"{figures.reads.failed + len(figures.reads.seconds)} failed"),
        row("open files of both replicas after the load", figures.files[1], "", against=f"before: {figures.files[0]}"),
        row("resident memory of both replicas after the load", figures.memory[1], "MiB",
            against=f"before: {figures.memory[0]} MiB", spread="restarted twice during the load"),
    ]  # fmt: skip


def main(seconds: float) -> None:
    os.sync()  # else an fsync would wait for earlier writes of other processes
    with tempfile.TemporaryDirectory(prefix="nl-") as name:
        folder = Path(name)
        cores = sorted(os.sched_getaffinity(0))
        with contextlib.ExitStack() as stack:
            redis = RedisProcess(folder)
            redis.start()
            stack.callback(redis.stop, signal.SIGTERM)
            replicas = []
            for number in range(2):
                (folder / str(number)).mkdir()
                replica = stack.enter_context(ServiceProcess(folder / str(number), cores[number::2]))
                replica.environment |= {"NOTELLM_REDIS_URL": redis.url, "NOTELLM_DRAIN_SECONDS": str(DRAIN_SECONDS)}
                replica.start()
                replicas.append(replica)
            with without_collections():
                figures = uvloop.run(measure(replicas, redis, seconds))
        secrets = printed_secrets(folder)
    write("replicas", rows(figures, secrets))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS)
