"""The main job on real notes: a fresh service gets a file by `notellm ingest`, then answers 1,000 queries.

python -m benchmarks.speed.ingest_and_query DATA/microlens50k/notes.jsonl.gz
"""

from __future__ import annotations

import gzip
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.harness.metrics import read_metric
from benchmarks.harness.report import Row, row, write
from benchmarks.harness.service_process import ServiceProcess
from benchmarks.harness.statistics import SHOWN_PERCENTILES, percentile_ms

QUERIES = 1000
MAX_START_SECONDS = 5
"""Target for a start with the ingested notes."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The report of `notellm ingest` and two of the service's counters; seconds of each query and of each GET /livez,
    the lower bound of a request; memory before the ingest, at the end and at its peak; seconds of a second start."""

    report: dict[str, Any]
    prompt_tokens: float
    batches: int
    similar: list[float]
    livez: list[float]
    empty_mib: int
    full_mib: int
    peak_mib: int
    second_start: float


def measure(notes: Path) -> Figures:
    """Ingest the file into a fresh service, query it, and start it again."""
    with tempfile.TemporaryDirectory(prefix="nl-") as folder, ServiceProcess(Path(folder)) as service:
        service.start()
        empty_mib = service.resident_mib()
        ingest = service.ingest(str(notes.resolve()))
        report = json.loads(ingest.communicate()[0])
        peak_mib = service.resident_mib(peak=True)
        with httpx2.Client(base_url=service.url, timeout=60) as client:
            tokens = read_metric(service.url, "notellm_prompt_tokens_total")
            batches = int(read_metric(service.url, "notellm_ingest_to_searchable_seconds_count"))
            similar = latencies(client, [f"/notes/{i}/similar?k=10" for i in stored_ids(client, notes)])
            livez = latencies(client, ["/livez"] * QUERIES)
        full_mib = service.resident_mib()
        service.stop()
        second_start = service.start()
    return Figures(report, tokens, batches, similar, livez, empty_mib, full_mib, peak_mib, second_start)


def stored_ids(client: httpx2.Client, notes: Path) -> list[str]:
    """Draw QUERIES ids of notes in the file that the service has; some lines of a file are rejected."""
    with gzip.open(notes) as lines:
        ids = [json.loads(line)["id"] for line in lines]
    random.Random(0).shuffle(ids)
    stored: list[str] = []
    for note_id in ids:
        if len(stored) == QUERIES:
            break
        if client.get(f"/notes/{note_id}").status_code == 200:
            stored.append(note_id)
    return stored


def latencies(client: httpx2.Client, paths: Sequence[str]) -> list[float]:
    """Return the seconds of a GET of each path, one after the other."""
    seconds = []
    for path in paths:
        started = time.perf_counter()
        client.get(path).raise_for_status()
        seconds.append(time.perf_counter() - started)
    return seconds


def rows(figures: Figures, data: str) -> list[Row]:
    """Return the rows of the result; `data` names the data set."""
    created, seconds = figures.report["created"], figures.report["seconds"]
    tokens, start = figures.prompt_tokens, figures.second_start
    memory = f"{figures.empty_mib} / {figures.full_mib} / {figures.peak_mib}"
    return [
        row(f"notes stored by `notellm ingest`, {data}", created, spread=f"{figures.report['rejected']} rejected"),
        row("ingest time", round(seconds / 60, 1), "min", spread=f"{figures.batches} batches"),
        row("ingest throughput", round(created / seconds, 1), "notes/s", spread=f"{tokens / created:.0f} tokens/note"),
        row("prompt token throughput", round(tokens / seconds), "tokens/s"),
        row("resident memory, empty service / at the end / peak", memory, "MiB"),
        *(similar_row(figures, q) for q in SHOWN_PERCENTILES),
        row(
            "restart with these notes: time until ready", round(start, 2), "s",
            target=f"< {MAX_START_SECONDS} s", met=start < MAX_START_SECONDS,
        ),
    ]  # fmt: skip


def similar_row(figures: Figures, q: int) -> Row:
    similar, livez = (f"{percentile_ms(seconds, q):.2f}" for seconds in (figures.similar, figures.livez))
    return row(f"latency of GET /notes/{{id}}/similar, k=10, p{q}", similar, "ms", against=f"GET /livez: {livez} ms")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write("ingest_and_query", rows(measure(path), path.resolve().parent.name))
