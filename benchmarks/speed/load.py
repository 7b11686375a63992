"""Runs a scenario of deploy/load against a running service on any machine.

python -m benchmarks.speed.load mixed http://127.0.0.1:8000 IDS

IDS is a file with ids of stored notes, one a line; the texts are those of our sample notes. Prints requests a second
and milliseconds by kind, and writes no result file, since the service may run on another machine.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.scenario import Load, Scenario
from benchmarks.harness.statistics import percentiles_text
from model.data.dataset import read_notes
from service import SAMPLES


async def run(name: str, url: str, ids: Sequence[str]) -> list[str]:
    """Run a scenario once; return a line for each kind of request. ValueError for a scenario with rates, which has a
    benchmark of its own."""
    scenario = Scenario.load(name)
    if any(request.rate or request.times_possible for request in scenario.requests.values()):
        raise ValueError(f"{name} has rates: benchmarks.speed.{name} runs it")
    texts = [note.content or note.title for note in read_notes(SAMPLES).values()]
    load = Load(url, scenario, texts, ids)
    async with load.client:
        seconds = await load.run(list(scenario.requests))
    return [
        f"{kind}: {len(taken) / seconds:.1f} requests/s; p50 / p95 / p99 {percentiles_text(taken, 1)} ms"
        for kind, taken in load.seconds.items()
    ]


if __name__ == "__main__":
    name, url, ids = sys.argv[1:]
    print("\n".join(asyncio.run(run(name, url, Path(ids).read_text("utf-8").split()))))
