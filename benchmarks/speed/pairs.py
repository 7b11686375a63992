"""`notellm pairs` on five million clicks, made up: how long it takes, and the memory of its process at the peak.

.venv/bin/python benchmarks/speed/pairs.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from benchmarks.harness.report import row, write

CLICKS = """
    SELECT u AS user, hash(64 * u + i) % 200000 AS note, i AS time
    FROM range(175000) users (u), range(50) steps (i)
    WHERE i < 7 + hash(u) % 44
"""
"""175,000 users with 7 to 50 of 200,000 notes each, all equally likely: the most distinct pairs for as many clicks."""
MOST_GB = 2


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        clicks = Path(name) / "clicks.parquet"
        duckdb.sql(f"COPY ({CLICKS}) TO '{clicks}'")
        command = [Path(sys.executable).with_name("notellm"), "pairs", "--clicks", clicks]
        started = time.perf_counter()
        answer = subprocess.run(
            [*command, "--out", Path(name) / "pairs.parquet", "--json"], stdout=subprocess.PIPE, text=True, check=True
        )
        seconds = time.perf_counter() - started
    report = json.loads(answer.stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    rows = [
        row("clicks", report["clicks"], "", spread=f"{report['users']} users"),
        row("pairs kept", report["pairs"], ""),
        row("`notellm pairs`", round(seconds, 1), "s"),
        row("its memory at the peak", round(peak, 2), "GB", reach=f"< {MOST_GB} GB", held=peak < MOST_GB),
    ]
    write("pairs", rows)


if __name__ == "__main__":
    main()
