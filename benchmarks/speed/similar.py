"""Related notes over HTTP from a store of a million, against an endpoint that returns a stored answer; and the time
until a change is searchable, against one fsynced write.

python -m benchmarks.speed.similar DATA/microlens50k/notes.jsonl.gz [ROWS [READERS]]

The notes have texts of real notes and vectors as in benchmarks.speed.index; there are a million ROWS by default, and no
READERS (NOTELLM_READERS). The service is started twice: first without a cache of neighbour lists, so that each read
searches, then with it ("with neighbour cache"). The reads ask for ten thousand notes, each once before anything
is measured. Takes fifteen minutes on an idle machine; three with 20,000 rows.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import orjson
import redis
import uvloop

from benchmarks import ROOT
from benchmarks.harness import http_load
from benchmarks.harness.http_load import CONNECTIONS
from benchmarks.harness.inputs import base_vectors, noisy_copies
from benchmarks.harness.metrics import read_metric
from benchmarks.harness.report import Row, row, write
from benchmarks.harness.service_process import POLL_SECONDS, ServiceProcess, free_port
from benchmarks.harness.statistics import percentile, percentiles_text
from benchmarks.peers import stored_answer
from model.data.dataset import read_notes
from model.inference.engine import Engine
from service.access.gate import Gate
from service.interfaces import Clock
from service.lifecycle import Lifecycle
from service.records import StoredNote, Write
from service.settings import Settings
from service.store.embedded_redis import EmbeddedRedis
from service.store.redis_keys import NOTE
from service.store.redis_store import LOG_ENTRIES, RedisNoteStore
from service.store.scripts import PUT
from service.telemetry import Telemetry
from service.wiring import open_service

T = TypeVar("T")
DEFAULT_ROWS = 1_000_000
WRITE_BATCH_SIZE = 512
AUTHORS = 1000
"""Authors of the notes, each with equally many."""
QUERIED_NOTES = 10_000
"""Notes whose neighbours are requested, spread evenly over all notes."""
CHANGES = 500
PROBE = "{notes}:probe"
"""Key of the bare writes; no service follows it."""
KEPT_BYTES = "NOTELLM_NEIGHBOUR_CACHE_BYTES"
"""Setting for the memory of cached neighbour lists; its default is enough for those of QUERIED_NOTES."""
WRITE_RATE = 200
"""Changes of notes per second beside reads."""
MIN_RATE_RATIO, MAX_P99_MS, MAX_P99_TO_P50, MAX_BESIDE_WRITES, MAX_CHANGE_RATIO = 0.4, 5, 10, 2, 3
"""Targets: the share of the stored answer's rate, p99 in ms, the ratios of p99 to p50 and of p99 beside writes to p99
without, and the ratio of a change to one fsynced write."""


@dataclass(frozen=True, slots=True)
class SimilarFigures:
    """Requests a second in a closed loop, and seconds of requests at random times, of `similar` and of the endpoint
    that returns a stored answer of `answer_bytes`. `beside_writes`: seconds of `similar` while notes are changed.
    `kept`: share of neighbour lists taken from the cache since the start."""

    rate: float
    seconds: Sequence[float]
    beside_writes: Sequence[float]
    stored_rate: float
    stored_seconds: Sequence[float]
    answer_bytes: int
    kept: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Notes a second written to the store, and indexed according to the service's log; seconds of two starts; memory;
    and seconds of bare writes, of changes over HTTP and of changes inside the service."""

    notes: int
    fill_rate: float
    build_rate: int
    first_start: float
    second_start: float
    mib: int
    similar: SimilarFigures
    similar_kept: SimilarFigures
    writes: Sequence[float]
    changes: Sequence[float]
    changes_inside: Sequence[float]


def measure(notes: Path, count: int, readers: int) -> Figures:
    """Fill a store with `count` notes, start a service with `readers` reader processes on it, and measure the
    service."""
    with tempfile.TemporaryDirectory(prefix="nl-") as folder, ServiceProcess(Path(folder)) as service:
        service.environment |= {"NOTELLM_LOG_FORMAT": "json", "NOTELLM_READERS": str(readers)}
        service.environment[KEPT_BYTES] = "0"
        store = EmbeddedRedis(Path(folder) / "data")
        try:
            store.start()
            fill_rate = run(fill(store.url, notes, count))
            first_start = service.start()
            build_rate = logged_build_rate(service.log)
            similar = measure_similar(service.port, count)
            writes = measure_writes(store.url)
            changes = run(measure_changes(service.port))
            mib = service.resident_mib()
            service.stop()
            del service.environment[KEPT_BYTES]
            second_start = service.start()
            similar_kept = measure_similar(service.port, count)
            service.stop()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                changes_inside = runner.run(measure_changes_inside(Path(folder) / "data"))
        finally:
            service.stop()  # before the store that it uses
            store.stop()
    starts = first_start, second_start
    return Figures(count, fill_rate, build_rate, *starts, mib, similar, similar_kept, writes, changes, changes_inside)


def author(number: int) -> str:
    """Return the author of a note by the note's number."""
    return f"a{number % AUTHORS}"


async def fill(url: str, notes: Path, count: int) -> float:
    """Write those of `count` notes that the store does not have yet; return the notes written per second."""
    store, seconds = RedisNoteStore(url, clock=Clock()), 0.0
    begin = await store.size()
    for batch in synthetic_notes(notes, begin, count):
        started = time.perf_counter()
        await store.put([Write(stored) for stored in batch])
        seconds += time.perf_counter() - started
    await store.close()
    return (count - begin) / seconds if seconds else 0.0


def synthetic_notes(path: Path, begin: int, end: int) -> Iterator[list[StoredNote]]:
    """Yield in batches the notes `begin` to `end` of an endless sequence: real notes, repeated under other ids, with
    vectors made from theirs."""
    engine = Engine.load(cache=Settings().cache_dir)
    real = [note for note in read_notes(path).values() if note.title]
    bases = base_vectors(engine, read_notes(path).values())
    assert bases.shape[1] == engine.dimension
    for first in range(begin, end, WRITE_BATCH_SIZE):
        numbers = range(first, min(first + WRITE_BATCH_SIZE, end))
        vectors = noisy_copies(bases, len(numbers), first)
        yield [
            StoredNote(replace(real[n % len(real)], id=f"n{n}", author=author(n)), engine.space, vector)
            for n, vector in zip(numbers, vectors, strict=True)
        ]


def logged_build_rate(log: Path) -> int:
    """Return the notes a second that the service indexed from the store, as logged last; 0 if it logged nothing."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    progress = [line for line in lines if line["event"] == "index_building"]
    return int(progress[-1]["a_second"]) if progress else 0


def measure_similar(port: int, count: int) -> SimilarFigures:
    """Measure `similar`, then the stored answer: in a closed loop, and at random times at half the service's rate."""
    step = max(1, count // QUERIED_NOTES)
    paths = [f"/notes/n{number}/similar?k=10" for number in range(0, count, step)]
    similar = http_load.random_gets(paths)
    stored = http_load.random_gets([stored_answer.PATH])
    answer = run(http_load.send_one(port, similar()))
    run(http_load.each_once(port, map(http_load.get, paths)))  # warms up
    rate = run(http_load.closed_loop(port, similar))
    seconds = run(http_load.open_loop(port, similar, rate / 2))
    beside_writes = run(measure_beside_writes(port, similar, rate / 2))
    with stored_answer_server(answer) as stored_port:
        stored_rate = run(http_load.closed_loop(stored_port, stored))
        stored_seconds = run(http_load.open_loop(stored_port, stored, rate / 2))
    return SimilarFigures(rate, seconds, beside_writes, stored_rate, stored_seconds, len(answer), share_kept(port))


def share_kept(port: int) -> float:
    """Return the share of neighbour lists that the process with the model, without its reader processes, took from
    memory since its start; 0 if it needed none."""
    url, lists = f"http://127.0.0.1:{port}", "notellm_neighbour_lists_total"
    memory, index = (read_metric(url, f'{lists}{{source="{source}"}}') for source in ("memory", "index"))
    return memory / max(1.0, memory + index)


async def measure_beside_writes(port: int, similar: http_load.NextRequest, rate: float) -> list[float]:
    """Return the seconds of requests at random times while WRITE_RATE notes a second are changed."""
    numbers = itertools.cycle(range(CHANGES))
    reads, _ = await asyncio.gather(
        http_load.open_loop(port, similar, rate),
        http_load.open_loop(port, lambda: change_request(next(numbers), "changed beside reads"), WRITE_RATE),
    )
    return reads


@contextmanager
def stored_answer_server(answer: bytes) -> Iterator[int]:
    """Run benchmarks.peers.stored_answer in its own process; yield its port."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.peers.stored_answer", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)
    try:
        assert process.stdin is not None
        process.stdin.write(answer)
        process.stdin.close()
        while not accepts_connections(port):
            if process.poll() is not None:
                raise RuntimeError("the server of the stored answer has ended")
            time.sleep(POLL_SECONDS)
        yield port
    finally:
        process.terminate()
        process.wait()


def accepts_connections(port: int) -> bool:
    """Whether something listens on a loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def measure_writes(url: str) -> list[float]:
    """Return the seconds of each of CHANGES writes of a note's own bytes, answered once fsynced."""
    client: redis.Redis = redis.Redis.from_url(url)
    seconds = []
    for number in range(CHANGES):
        fields: list[Any] = client.hmget(f"{NOTE}n{number}", "document", "vector", "space")
        started = time.perf_counter()
        client.eval(PUT, 2, f"{PROBE}{number}", PROBE, "", f"n{number}", *fields, "", LOG_ENTRIES, "")
        seconds.append(time.perf_counter() - started)
    client.delete(PROBE, *(f"{PROBE}{number}" for number in range(CHANGES)))
    return seconds


async def measure_changes(port: int) -> list[float]:
    """Return the seconds until each of CHANGES changes of a note's author is searchable; they need no model."""
    (connection,) = await http_load.connect(port, 1)
    seconds = []
    for number in range(CHANGES):
        request = change_request(number, f"changed {number}")
        started = time.perf_counter()
        await connection.send(request)
        seconds.append(time.perf_counter() - started)
    return seconds


def change_request(number: int, author: str) -> bytes:
    """Return a request that changes the author of a note, which needs no model."""
    body = orjson.dumps({"author": f"{author} {time.monotonic_ns()}"})
    head = f"PATCH /notes/n{number} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def measure_changes_inside(data: Path) -> list[float]:
    """Return the seconds of the same changes made in this process, without HTTP."""
    settings, seconds, telemetry = Settings(data_dir=data, sample_notes=0), [], Telemetry()
    async with open_service(settings, telemetry, Lifecycle(), Gate(None, Clock(), telemetry)) as tenants:
        gc.freeze()  # as the service does
        for number in range(CHANGES):
            author = f"changed again {number}"
            started = time.perf_counter()
            await tenants.default.recommender.change(f"n{number}", partial(replace, author=author))
            seconds.append(time.perf_counter() - started)
    return seconds


def run(load: Coroutine[Any, Any, T]) -> T:
    """Run a load without the garbage collector."""
    with http_load.without_collections():
        return asyncio.run(load)


def rows(figures: Figures) -> list[Row]:
    """Return the rows of the result."""
    return [
        row(f"store write throughput, {figures.notes:,} notes", round(figures.fill_rate), "notes/s"),
        row("first start, index built from the store: time until ready", round(figures.first_start), "s",
            spread=f"{figures.build_rate} notes/s in the service's log" if figures.build_rate else ""),
        row("restart from the snapshot: time until ready", round(figures.second_start, 1), "s"),
        row("resident memory of the service", figures.mib, "MiB"),
        *similar_rows(figures.similar, "without neighbour cache"),
        *similar_rows(figures.similar_kept, "with neighbour cache"),
        change_row("time until a change of a note's author is searchable", figures.changes, figures.writes),
        change_row("time until a change is searchable, without HTTP", figures.changes_inside, figures.writes),
    ]  # fmt: skip


def similar_rows(similar: SimilarFigures, cache: str) -> list[Row]:
    p50, p99 = (percentile(similar.seconds, q) for q in (50, 99))
    beside = percentile(similar.beside_writes, 99)
    rate, stored_rate = similar.rate, similar.stored_rate
    stored_ms = percentiles_text(similar.stored_seconds, 1)
    return [
        row(f"`similar` {cache}: throughput, {CONNECTIONS} clients", round(rate), "requests/s",
            against=f"static response of {similar.answer_bytes} bytes: {stored_rate:.0f} requests/s; "
            f"ratio {rate / stored_rate:.2f}x" + (f"; cache hit rate {similar.kept:.0%}" if similar.kept else ""),
            target=f"≥ {MIN_RATE_RATIO}x", met=rate >= MIN_RATE_RATIO * stored_rate),
        row(f"`similar` {cache}: latency at {rate / 2:.0f} requests/s, p50 / p95 / p99",
            percentiles_text(similar.seconds, 1), "ms",
            against=f"static response at this rate: {stored_ms} ms", spread=f"p99 is {p99 / p50:.1f}x p50",
            target=f"p99 ≤ {MAX_P99_MS} ms and ≤ {MAX_P99_TO_P50}x p50",
            met=p99 <= MAX_P99_TO_P50 * p50 and 1000 * p99 <= MAX_P99_MS),
        row(f"`similar` {cache}: latency beside {WRITE_RATE} changes/s, p50 / p95 / p99",
            percentiles_text(similar.beside_writes, 1), "ms",
            against=f"without changes: p99 ratio {beside / p99:.1f}x", target=f"≤ {MAX_BESIDE_WRITES}x",
            met=beside <= MAX_BESIDE_WRITES * p99),
    ]  # fmt: skip


def change_row(what: str, changes: Sequence[float], writes: Sequence[float]) -> Row:
    change, bare = percentile(changes, 99), percentile(writes, 99)
    return row(
        f"{what}, p50 / p95 / p99", percentiles_text(changes, 1), "ms",
        against=f"one fsynced write: {percentiles_text(writes, 1)} ms; p99 ratio {change / bare:.1f}x",
        target=f"≤ {MAX_CHANGE_RATIO}x", met=change <= MAX_CHANGE_RATIO * bare,
    )  # fmt: skip


if __name__ == "__main__":
    count = int(sys.argv[2]) if len(sys.argv) > 2 else DEFAULT_ROWS
    readers = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    name = f"similar_{count}_readers_{readers}" if readers else f"similar_{count}"
    write(name, rows(measure(Path(sys.argv[1]), count, readers)))
