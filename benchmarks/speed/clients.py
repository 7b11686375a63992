"""32 clients of one service, who embed, generate and ask for related notes, against the engine called directly.

.venv/bin/python benchmarks/speed/clients.py

On our own sample notes; four minutes, and nothing else should run: clients, service and engine share the processor.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2

from benchmarks.harness.report import row, write
from benchmarks.harness.service_process import Running
from benchmarks.speed.engine import JOB, notes_of
from benchmarks.speed.ingest_and_query import percentile
from model.data.dataset import read_notes
from model.generation import VECTOR_ONLY
from model.inference.engine import Engine
from model.note import Note
from service.samples import SAMPLES
from service.settings import Settings

CLIENTS = 32
ROUNDS = 8
"""Requests of each kind by each client."""
EMBED, GENERATE, SIMILAR = "embed", "generate", "similar"
KINDS = (EMBED, GENERATE, SIMILAR)
MILLION_WEIGHTS = 134.5
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
"""Of a weight."""


def directly(engine: Engine, notes: Sequence[Note]) -> float:
    """Notes a second that are embedded or get hashtags, half of each."""
    asked = [engine.tokenize(note, wanted) for note in notes for wanted in (VECTOR_ONLY, JOB)]
    engine.run(asked[: 2 * CLIENTS])
    started = time.perf_counter()
    engine.run(asked)
    return len(asked) / (time.perf_counter() - started)


class Load:
    """`seconds`: how long each request took, by its kind."""

    def __init__(self, url: str, notes: Sequence[Note], stored: Sequence[str]) -> None:
        self.client = httpx2.AsyncClient(base_url=url, timeout=60, limits=httpx2.Limits(max_connections=CLIENTS))
        self.notes = notes
        self.stored = stored
        self.seconds: dict[str, list[float]] = defaultdict(list)

    async def run(self, kinds: Sequence[str]) -> float:
        """Seconds until every client has sent ROUNDS requests of each kind, in an order of its own."""
        self.seconds.clear()
        started = time.perf_counter()
        await asyncio.gather(*(self._client(number, kinds) for number in range(CLIENTS)))
        return time.perf_counter() - started

    async def _client(self, number: int, kinds: Sequence[str]) -> None:
        at = itertools.count(number * ROUNDS)
        for turn in range(ROUNDS * len(kinds)):
            kind = kinds[(turn + number) % len(kinds)]
            await self._ask(kind, next(at) if kind != SIMILAR else number + turn)

    async def _ask(self, kind: str, at: int) -> None:
        note = self.notes[at % len(self.notes)]
        started = time.perf_counter()
        if kind == EMBED:
            answer = await self.client.post("/similar", json={"content": note.content, "k": 10})
        elif kind == GENERATE:
            asked = {"content": note.content, "count": JOB.hashtags, "policy": "open"}
            answer = await self.client.post("/generate/hashtags", json=asked)
        else:
            answer = await self.client.get(f"/notes/{self.stored[at % len(self.stored)]}/similar", params={"k": 10})
        answer.raise_for_status()
        self.seconds[kind].append(time.perf_counter() - started)


@dataclass
class Measured:
    """`rate`: notes a second. `seconds` of each kind of request; `alone`: the p99 of embedding beside no generation.
    `mib`: the service's memory when it is ready and after each load."""

    rate: float
    seconds: dict[str, list[float]]
    alone: float
    mib: list[int]


async def through_http(notes: Sequence[Note], stored: Sequence[str]) -> Measured:
    with tempfile.TemporaryDirectory(prefix="nl-") as folder:
        service = Running(Path(folder))
        del service.environment["NOTELLM_SAMPLE_NOTES"]
        service.start()
        mib = [service.resident_mib()]
        load = Load(service.url, notes, stored)
        for _ in range(2):  # the first one warms up
            await load.run((EMBED, SIMILAR))
            mib.append(service.resident_mib())
        alone = percentile(load.seconds[EMBED], 99)
        for _ in range(2):
            seconds = await load.run(KINDS)
            mib.append(service.resident_mib())
        rate = (len(load.seconds[EMBED]) + len(load.seconds[GENERATE])) / seconds
        service.end()
    return Measured(rate, load.seconds, alone, mib)


def main() -> None:
    engine = Engine.load(cache=Settings().cache_dir)
    weights_mib = MILLION_WEIGHTS * 1e6 * BYTES[engine.runtime.precision.split()[-1]] / 2**20
    notes = notes_of(engine, CLIENTS * ROUNDS)
    direct = directly(engine, notes)
    del engine
    of = asyncio.run(through_http(notes, list(read_notes(SAMPLES))))
    embedding = percentile(of.seconds[EMBED], 99)
    rows = [
        row(
            f"{CLIENTS} clients, notes embedded or given 5 hashtags", round(of.rate, 2), "notes/s",
            against=f"engine called directly: {direct:.2f}, so {of.rate / direct:.0%}", reach="85% or more",
            held=of.rate >= 0.85 * direct,
        ),
        row(
            "embedding beside generation, p99", round(1000 * embedding), "ms",
            against=f"beside none: {1000 * of.alone:.0f} ms, so {embedding / of.alone:.1f}x", reach="2x or less",
            held=embedding <= 2 * of.alone,
        ),
    ]  # fmt: skip
    for kind in KINDS:
        told = " / ".join(f"{1000 * percentile(of.seconds[kind], q):.0f}" for q in (50, 95, 99))
        rows.append(row(f"{kind}, p50 / p95 / p99", told, "ms"))
    sent = [CLIENTS * ROUNDS * n for n in (0, 2, 4, 7, 10)]
    rows.append(row(
        f"memory after {' / '.join(f'{n:,}' for n in sent)} requests", " / ".join(map(str, of.mib)), "MiB",
        against=f"weights: {weights_mib:.0f} MiB, so {of.mib[-1] / weights_mib:.1f}x", reach="2.5x or less",
        held=of.mib[-1] <= 2.5 * weights_mib,
    ))  # fmt: skip
    write("clients", rows)


if __name__ == "__main__":
    main()
