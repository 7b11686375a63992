"""`notellm pairs` on five million synthetic clicks: its time and the peak memory of its process.

python -m benchmarks.speed.pairs
"""

from __future__ import annotations

import json
import resource
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.harness.report import Row, row, write
from benchmarks.harness.service_process import NOTELLM

CLICKS = """
    SELECT u AS user, hash(64 * u + i) % 200000 AS note, i AS time
    FROM range(175000) users (u), range(50) steps (i)
    WHERE i < 7 + hash(u) % 44
"""
"""Clicks of 175,000 users with 7 to 50 of 200,000 notes each. All notes are equally likely, which gives the most
distinct pairs for as many clicks."""
MAX_GB = 2
"""Target for the peak memory."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The command's own report, its seconds, and the peak memory of its process in GB."""

    report: dict[str, Any]
    seconds: float
    peak_gb: float


def measure() -> Figures:
    """Write the clicks to a file and run the command on it."""
    with tempfile.TemporaryDirectory() as name:
        clicks, pairs = (str(Path(name) / f"{kind}.parquet") for kind in ("clicks", "pairs"))
        duckdb.sql(f"COPY ({CLICKS}) TO '{clicks}'")
        command = [NOTELLM, "pairs", "--clicks", clicks, "--out", pairs, "--json"]
        started = time.perf_counter()
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - started
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    return Figures(json.loads(answer.stdout), seconds, peak_gb)


def rows(figures: Figures) -> list[Row]:
    """Return the rows of the result."""
    report, peak_gb = figures.report, figures.peak_gb
    return [
        row("clicks in the file", report["clicks"], spread=f"{report['users']} users"),
        row("pairs kept", report["pairs"]),
        row("run time of `notellm pairs`", round(figures.seconds, 1), "s"),
        row("peak memory of `notellm pairs`", round(peak_gb, 2), "GB", target=f"< {MAX_GB} GB", met=peak_gb < MAX_GB),
    ]


if __name__ == "__main__":
    write("pairs", rows(measure()))
