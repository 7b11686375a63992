"""32 clients of one service that embed, generate and ask for related notes, against the engine called directly.

python -m benchmarks.speed.clients

On our own sample notes. Four minutes on an idle machine: clients, service and engine share the processor.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.inputs import notes_of_one_length
from benchmarks.harness.report import Row, row, write
from benchmarks.harness.scenario import Load, Scenario
from benchmarks.harness.service_process import ServiceProcess
from benchmarks.harness.statistics import percentile, percentiles_text
from benchmarks.harness.weights import model_mib
from model.data.dataset import read_notes
from model.generation import VECTOR_ONLY, GenerationRequest
from model.inference.engine import Engine
from model.note import Note
from service import SAMPLES
from service.settings import Settings

SCENARIO = Scenario.load("mixed")
CLIENTS, ROUNDS = SCENARIO.clients, SCENARIO.rounds or 0
EMBED, GENERATE, SIMILAR = KINDS = tuple(SCENARIO.requests)
HASHTAGS: int = (SCENARIO.requests[GENERATE].body or {})["count"]
MIN_SHARE, MAX_SLOWDOWN, MAX_MEMORY_RATIO = 0.85, 2, 2.5
"""Targets: the share of the engine's own rate, the factor by which generation may slow embedding, and memory as a
multiple of the weights' size."""


@dataclass(frozen=True, slots=True)
class ServiceFigures:
    """Figures of the service. `rate`: notes a second. `seconds`: of each request by kind; `embed_alone`: of embedding
    without generation. `mib`: the service's memory when it is ready and after each load."""

    rate: float
    seconds: Mapping[str, Sequence[float]]
    embed_alone: Sequence[float]
    mib: Sequence[int]


@dataclass(frozen=True, slots=True)
class Figures:
    """The service, the notes a second of the engine called directly, and the size of its weights."""

    service: ServiceFigures
    engine_rate: float
    weights_mib: float


def measure() -> Figures:
    """Measure the engine in this process, then the service."""
    engine = Engine.load(cache=Settings().cache_dir)
    weights_mib = model_mib(engine.runtime.number_format)
    notes = notes_of_one_length(engine, CLIENTS * ROUNDS)
    engine_rate = measure_engine(engine, notes)
    del engine
    service = asyncio.run(measure_service(notes, list(read_notes(SAMPLES))))
    return Figures(service, engine_rate, weights_mib)


def measure_engine(engine: Engine, notes: Sequence[Note]) -> float:
    """Return the notes a second that are embedded or given hashtags, half of each."""
    kinds = (VECTOR_ONLY, GenerationRequest(hashtags=HASHTAGS))
    requests = [engine.tokenize(note, kind) for note in notes for kind in kinds]
    engine.run(requests[: 2 * CLIENTS])
    started = time.perf_counter()
    engine.run(requests)
    return len(requests) / (time.perf_counter() - started)


async def measure_service(notes: Sequence[Note], stored: Sequence[str]) -> ServiceFigures:
    """Run two loads without generation and two with it; the first of each pair warms up."""
    with tempfile.TemporaryDirectory(prefix="nl-") as folder, ServiceProcess(Path(folder)) as service:
        del service.environment["NOTELLM_SAMPLE_NOTES"]
        service.start()
        mib = [service.resident_mib()]
        load = Load(service.url, SCENARIO, [note.content for note in notes], stored)
        for _ in range(2):
            await load.run((EMBED, SIMILAR))
            mib.append(service.resident_mib())
        embed_alone = load.seconds[EMBED]
        for _ in range(2):
            seconds = await load.run(KINDS)
            mib.append(service.resident_mib())
        rate = (len(load.seconds[EMBED]) + len(load.seconds[GENERATE])) / seconds
    return ServiceFigures(rate, load.seconds, embed_alone, mib)


def rows(figures: Figures) -> list[Row]:
    """Return the rows of the result."""
    service, engine_rate, weights_mib = figures.service, figures.engine_rate, figures.weights_mib
    embedding, alone = percentile(service.seconds[EMBED], 99), percentile(service.embed_alone, 99)
    sent = " / ".join(f"{CLIENTS * ROUNDS * n:,}" for n in (0, 2, 4, 7, 10))
    return [
        row(
            f"throughput, {CLIENTS} clients, embedding or {HASHTAGS} hashtags", round(service.rate, 2), "notes/s",
            against=f"engine called directly: {engine_rate:.2f} notes/s; ratio {service.rate / engine_rate:.0%}",
            target=f"≥ {MIN_SHARE:.0%}", met=service.rate >= MIN_SHARE * engine_rate,
        ),
        row(
            "embedding latency beside generation, p99", round(1000 * embedding), "ms",
            against=f"without generation: {1000 * alone:.0f} ms; ratio {embedding / alone:.1f}x",
            target=f"≤ {MAX_SLOWDOWN}x", met=embedding <= MAX_SLOWDOWN * alone,
        ),
        *(row(f"{kind} latency, p50 / p95 / p99", percentiles_text(service.seconds[kind], 0), "ms") for kind in KINDS),
        row(
            f"resident memory after {sent} requests", " / ".join(map(str, service.mib)), "MiB",
            against=f"model weights: {weights_mib:.0f} MiB; ratio {service.mib[-1] / weights_mib:.1f}x",
            target=f"≤ {MAX_MEMORY_RATIO}x", met=service.mib[-1] <= MAX_MEMORY_RATIO * weights_mib,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    write("clients", rows(measure()))
