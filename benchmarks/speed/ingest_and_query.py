"""The main job on real notes: a fresh service takes a file through `notellm ingest`, then answers 1,000 queries.

.venv/bin/python benchmarks/speed/ingest_and_query.py DATA/microlens50k/notes.jsonl.gz
"""

from __future__ import annotations

import gzip
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.harness.report import row, write
from benchmarks.harness.service_process import Running

QUERIES = 1000


def main(notes: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="nl-") as folder:
        service = Running(Path(folder))
        service.start()
        empty_mib = service.resident_mib()
        ingest = service.cli.ingest(str(notes.resolve()))
        report = json.loads(ingest.communicate()[0])
        peak_mib = service.resident_mib(peak=True)
        with httpx2.Client(base_url=service.url, timeout=60) as client:
            tokens = metric(client, "notellm_prompt_tokens_total")
            searchable = metric(client, "notellm_ingest_to_searchable_seconds_count")
            similar = latencies(client, [f"/notes/{i}/similar?k=10" for i in stored_ids(client, notes)])
            floor = latencies(client, ["/livez"] * QUERIES)
        full_mib = service.resident_mib()
        service.end()
        second_start = service.start()
        service.end()
    created, seconds = report["created"], report["seconds"]
    write(
        "main_job",
        [
            row(
                f"`notellm ingest` of {notes.parent.name}",
                created,
                "notes stored",
                spread=f"{report['rejected']} rejected",
            ),
            row("ingest, whole", round(seconds / 60, 1), "min", spread=f"{int(searchable)} batches"),
            row("ingest rate", round(created / seconds, 1), "notes/s", spread=f"{tokens / created:.0f} tokens a note"),
            row("prompt tokens", round(tokens / seconds), "tokens/s"),
            row("memory, empty / at the end / peak", f"{empty_mib} / {full_mib} / {peak_mib}", "MiB"),
            *similar_rows(similar, floor),
            row("start on these data, until ready", round(second_start, 1), "s", reach="< 5 s", held=second_start < 5),
        ],
    )


def similar_rows(similar: list[float], floor: list[float]) -> list[dict[str, Any]]:
    rows = []
    for q in (50, 95, 99):
        least = f"GET /livez: {1000 * percentile(floor, q):.2f} ms"
        rows.append(row(f"GET similar, k=10, p{q}", f"{1000 * percentile(similar, q):.2f}", "ms", against=least))
    return rows


def stored_ids(client: httpx2.Client, notes: Path) -> list[str]:
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


def latencies(client: httpx2.Client, paths: list[str]) -> list[float]:
    seconds = []
    for path in paths:
        started = time.perf_counter()
        client.get(path).raise_for_status()
        seconds.append(time.perf_counter() - started)
    return seconds


def percentile(values: list[float], q: int) -> float:
    return statistics.quantiles(values, n=100)[q - 1]


def metric(client: httpx2.Client, name: str) -> float:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
