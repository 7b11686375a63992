"""Overload: five times the notes that the service can take, from callers who give up after ten seconds, beside reads.

python -m benchmarks.speed.overload [SECONDS]

The possible rate differs by a third between minutes, so it is measured before the overload and after it, with callers
who wait for their answers and as many reads as during the overload; goodput is compared with the mean of both. Reads on
the idle service are measured before and after, too. Since the notes that the overload adds make reads slower, reads
during the overload are compared with those after it, which use the same index. SECONDS is the length of the overload,
60 by default.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import uvloop

from benchmarks.harness.http_load import Connection, connect, without_collections
from benchmarks.harness.report import Row, row, write
from benchmarks.harness.scenario import Scenario
from benchmarks.harness.service_process import ServiceProcess
from benchmarks.harness.statistics import percentile_ms, percentiles_text
from model.data.dataset import read_notes
from service import SAMPLES

T = TypeVar("T")
SCENARIO = Scenario.load("overload")
FACTOR = SCENARIO.requests["note"].times_possible or 0.0
PATIENCE = SCENARIO.patience
"""Seconds after which a caller gives up. The request does not state them; the service's default is the same."""
WORDS = 70
"""Words of a note, about 100 tokens."""
STORED = 100
"""Notes stored before the measurements, which the reads ask for."""
CLIENTS = SCENARIO.clients
"""Callers in a measurement of the possible rate: a full batch of the engine."""
READS_PER_SECOND = SCENARIO.requests["read"].rate or 0.0
CALM_SECONDS = 20.0
"""Length of each measurement of reads on the idle service."""
POSSIBLE_SECONDS = 60.0
"""Length of each measurement of the possible rate."""
PROBE_SECONDS = 0.1
"""Pause between two notes that are sent after the overload to detect recovery."""
MIN_GOODPUT, MAX_READ_FACTOR, MAX_RECOVERY_SECONDS, MAX_RETRY_FACTOR = 0.9, 3, 5, 2
"""Targets: goodput as a share of the possible rate, p99 of reads as a multiple of the idle service's afterwards,
seconds until a note takes no more than twice its idle time, and the factor by which Retry-After may differ from the
time that the queue took."""


@dataclass(frozen=True, slots=True)
class Posted:
    """One note: when it was sent, the seconds until its answer, its status (0: the caller gave up, or the connection
    broke), Retry-After, and its id if it was stored."""

    sent: float
    seconds: float
    status: int
    retry_after: int
    note_id: str = ""

    @property
    def stored(self) -> bool:
        return self.status == 201


@dataclass(slots=True)
class Callers:
    """Callers with persistent connections. `choose_port`: returns the port for the next request. `texts`: contents of
    notes, each sent once."""

    choose_port: Callable[[], int]
    texts: Iterator[str]
    free: dict[int, list[Connection]] = field(default_factory=lambda: defaultdict(list))

    async def post(self) -> Posted:
        request = post_request(next(self.texts))
        sent = time.perf_counter()
        answer = await self._exchange(request)
        seconds = time.perf_counter() - sent
        retry_after = answer.partition(b"retry-after: ")[2].partition(b"\r\n")[0]
        status = int(answer[9:12] or 0)
        note_id = json.loads(answer.partition(b"\r\n\r\n")[2])["id"] if status == 201 else ""
        return Posted(sent, seconds, status, int(retry_after or 0), note_id)

    async def read(self, note_id: str) -> float:
        """Return the seconds of one GET of related notes."""
        sent = time.perf_counter()
        answer = await self._exchange(f"GET /notes/{note_id}/similar HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode() or "a read took too long")
        return time.perf_counter() - sent

    async def _exchange(self, request: bytes) -> bytes:
        """Return the answer; b"" if it does not come within PATIENCE, after which the connection is closed, or if the
        connection fails."""
        port = self.choose_port()
        connection = None
        try:
            async with asyncio.timeout(PATIENCE):
                connection = await self._connection(port)
                answer = await connection.exchange(request)
        except TimeoutError:
            if connection:
                connection.close()
            return b""
        except OSError:
            return b""
        self.free[port].append(connection)
        return answer

    async def _connection(self, port: int) -> Connection:
        while self.free[port]:
            connection = self.free[port].pop()
            if connection.is_open:
                return connection
        return (await connect(port, 1))[0]


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one run: the possible notes a second before and after the overload; seconds of one note on the idle
    service, and of reads on it before and after; and the figures of the overload itself."""

    possible: tuple[float, float]
    idle_reads: list[float]
    idle_note: float
    seconds: float
    ended: float
    posted: list[Posted]
    reads: list[float]
    recovery: float
    idle_reads_after: list[float]

    @property
    def goodput(self) -> float:
        """Notes a second that were stored and answered before the end of the overload, while their callers waited."""
        return stored_by(self.ended, self.posted) / self.seconds

    @property
    def share(self) -> float:
        """Goodput as a share of the mean of both possible rates."""
        return self.goodput / statistics.mean(self.possible)


async def measure(port: int, seconds: float) -> Figures:
    """Measure a running service: idle, then overloaded, then recovering."""
    callers = Callers(lambda: port, random_texts())
    ids = await store_notes(callers)
    idle_reads = await reads(callers, ids, CALM_SECONDS)
    idle_note = statistics.median([(await callers.post()).seconds for _ in range(20)])
    possible = await saturate_beside_reads(callers, ids)
    reading = asyncio.ensure_future(reads(callers, ids, seconds))
    posting = await arrivals(callers.post, FACTOR * possible, seconds)
    ended = time.perf_counter()
    recovery = await recover(callers, 2 * idle_note)
    posted = await asyncio.gather(*posting)
    print(possible, Counter(p.status for p in posted))
    busy_reads, idle_reads_after = await reading, await reads(callers, ids, CALM_SECONDS)
    rates = possible, await saturate_beside_reads(callers, ids)
    return Figures(rates, idle_reads, idle_note, seconds, ended, posted, busy_reads, recovery, idle_reads_after)


def random_texts() -> Iterator[str]:
    """Yield texts of WORDS words, cut from our sample notes at random places and joined in two halves."""
    words = " ".join(note.content for note in read_notes(SAMPLES).values() if note.content.isascii()).split()
    rng = random.Random(0)
    half = WORDS // 2
    while True:
        begins = rng.sample(range(len(words) - half), 2)
        yield " ".join(word for begin in begins for word in words[begin : begin + half])


async def store_notes(callers: Callers) -> list[str]:
    """Store STORED notes, one after the other, and return their ids."""
    return [(await callers.post()).note_id for _ in range(STORED)]


def post_request(text: str) -> bytes:
    body = json.dumps({"content": text}).encode()
    head = f"POST /notes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


async def reads(callers: Callers, ids: Sequence[str], seconds: float) -> list[float]:
    rng = random.Random(1)
    return await asyncio.gather(*await arrivals(lambda: callers.read(rng.choice(ids)), READS_PER_SECOND, seconds))


async def saturate_beside_reads(callers: Callers, ids: Sequence[str]) -> float:
    """Return the possible notes a second beside as many reads as during the overload."""
    reading = asyncio.ensure_future(reads(callers, ids, POSSIBLE_SECONDS))
    rate = await saturate(callers, POSSIBLE_SECONDS)
    await reading
    return rate


async def saturate(callers: Callers, seconds: float) -> float:
    """Return the notes a second that CLIENTS callers get stored."""
    stored, until = 0, time.perf_counter() + seconds

    async def run_client() -> None:
        nonlocal stored
        while time.perf_counter() < until:
            posted = await callers.post()
            stored += posted.stored
            await asyncio.sleep(posted.retry_after)

    started = time.perf_counter()
    await asyncio.gather(*(run_client() for _ in range(CLIENTS)))
    return stored / (time.perf_counter() - started)


async def arrivals(request: Callable[[], Awaitable[T]], rate: float, seconds: float) -> list[asyncio.Future[T]]:
    """Send requests at random times (Poisson), `rate` per second, however long earlier ones take. Return the futures of
    their results after `seconds`."""
    rng = random.Random(2)
    due = time.perf_counter()
    until = due + seconds
    tasks: list[asyncio.Future[T]] = []
    while due < until:
        due += rng.expovariate(rate)
        await asyncio.sleep(due - time.perf_counter())
        tasks.append(asyncio.ensure_future(request()))
    return tasks


def stored_by(moment: float, posted: Sequence[Posted]) -> int:
    """Count the notes stored and answered by `moment`. Notes still waiting then are stored after the overload."""
    return sum(each.stored and each.sent + each.seconds <= moment for each in posted)


async def recover(callers: Callers, usual_seconds: float) -> float:
    """Send one note after the other; return the seconds until one was stored within `usual_seconds`."""
    started = time.perf_counter()
    while True:
        posted = await callers.post()
        if posted.stored and posted.seconds <= usual_seconds:
            return time.perf_counter() - started
        await asyncio.sleep(PROBE_SECONDS)


def retry_after_factors(posted: Sequence[Posted]) -> list[float]:
    """Return the factor between each Retry-After and the seconds that the last stored note sent before took: 1 is
    exact, 2 is twice or half as long."""
    factors, waited = [], 0.0
    for each in sorted(posted, key=lambda note: note.sent):
        if each.stored:
            waited = each.seconds
        elif each.status == 429 and waited:
            factors.append(max(each.retry_after / waited, waited / each.retry_after))
    return factors


def rows(figures: Figures) -> list[Row]:
    statuses = Counter(each.status for each in figures.posted)
    first, last = figures.possible
    timed = (figures.idle_reads, figures.idle_reads_after, figures.reads)
    before, after, busy = (percentile_ms(seconds, 99) for seconds in timed)
    added = sum(each.stored for each in figures.posted)
    retries = retry_after_factors(figures.posted)
    right = sum(factor <= MAX_RETRY_FACTOR for factor in retries) / max(1, len(retries))
    refused = f"{statuses[429]} rejected, {statuses[504]} past the deadline, {statuses[0]} timed out or disconnected"
    return [
        row(
            "capacity, mean of before and after",
            round(statistics.mean(figures.possible), 1), "notes/s",
            spread=f"{first:.1f} before, {last:.1f} after; {CLIENTS} closed-loop clients, {POSSIBLE_SECONDS:g} s each",
        ),
        row(
            f"goodput at {FACTOR}x capacity, client timeout {PATIENCE:g} s",
            round(figures.goodput, 1), "notes/s",
            spread=f"{figures.seconds:g} s; {refused}",
            against=f"{100 * figures.share:.0f}% of the mean capacity ({first:.1f} before, {last:.1f} after)",
            target=f"≥ {100 * MIN_GOODPUT:.0f}%", met=figures.share >= MIN_GOODPUT,
        ),
        row(
            "read latency during the overload, p99", round(busy, 1), "ms",
            against=f"idle with the {added} added notes: {after:.1f} ms; ratio {busy / after:.1f}x; "
            f"idle before: {before:.1f} ms",
            spread=f"p50 / p95 / p99: {percentiles_text(figures.reads, 1)}",
            target=f"≤ {MAX_READ_FACTOR}x idle with the same notes", met=busy <= MAX_READ_FACTOR * after,
        ),
        row(
            "recovery: time until a note takes at most twice its idle latency", round(figures.recovery, 1), "s",
            against=f"idle: {1000 * figures.idle_note:.0f} ms/note",
            target=f"≤ {MAX_RECOVERY_SECONDS} s", met=figures.recovery <= MAX_RECOVERY_SECONDS,
        ),
        row(
            "Retry-After within a factor of two of the actual wait", round(100 * right), "%",
            spread=f"median factor {statistics.median(retries or [0]):.2f}", target="≥ 95%", met=right >= 0.95,
        ),
    ]  # fmt: skip


def main(seconds: float) -> None:
    os.sync()  # else an fsync would wait for earlier writes of other processes
    with tempfile.TemporaryDirectory(prefix="nl-") as folder, ServiceProcess(Path(folder)) as service:
        service.start()
        with without_collections():
            figures = uvloop.run(measure(service.port, seconds))
    write("overload", rows(figures))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else SCENARIO.seconds or 0.0)
