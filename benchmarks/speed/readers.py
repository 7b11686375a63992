"""Related notes over HTTP with reader processes (NOTELLM_READERS): requests a second, and memory that reader processes
do not share.

python -m benchmarks.speed.readers DATA/microlens50k/notes.jsonl.gz [--rows ROWS] [--readers N ...] [--folder FOLDER]

One service for each number of reader processes, all on one store with the notes of benchmarks.speed.similar, loaded in
turns; the client runs on the same cores. 20,000 notes unless said: three minutes. FOLDER is kept; the notes that it
lacks are written into it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import http_load
from benchmarks.harness.http_load import CONNECTIONS
from benchmarks.harness.report import Row, row, write
from benchmarks.harness.service_process import ServiceProcess, private_mib
from benchmarks.speed.search_options import wait_until_idle
from benchmarks.speed.similar import QUERIED_NOTES, fill, run
from service.store.embedded_redis import EmbeddedRedis

DEFAULT_ROWS = 20_000
READERS = (0, 1, 2)
TURNS = 3
"""Measured loads of each service, after one to warm up."""
MIN_RATIO, MAX_MIB = 1.5, 150
"""Targets: the rate of two processes that answer reads on two cores, as a multiple of that of one; and private memory
of a reader process at a million notes."""


@dataclass(slots=True)
class Figures:
    """Requests a second of each load of a service with some reader processes, and MiB of private memory of each
    of them."""

    readers: int
    rates: list[float] = field(default_factory=list)
    private_mib: list[int] = field(default_factory=list)


def measure(folder: Path, notes: Path, count: int, numbers: Sequence[int]) -> list[Figures]:
    """Measure services with these numbers of reader processes, on a store in `folder` with `count` notes."""
    step = max(1, count // QUERIED_NOTES)
    similar = http_load.random_gets([f"/notes/n{number}/similar?k=10" for number in range(0, count, step)])
    figures = [Figures(number) for number in numbers]
    with ExitStack() as stack:
        store = EmbeddedRedis(folder / "data")
        stack.callback(store.stop)
        store.start()
        run(fill(store.url, notes, count))
        services = [stack.enter_context(ServiceProcess(folder)) for _ in numbers]
        for service, one in zip(services, figures, strict=True):
            service.environment |= {"NOTELLM_READERS": str(one.readers), "NOTELLM_LOG_FORMAT": "json"}
            service.start()
            wait_until_idle(service)
            run(http_load.closed_loop(service.port, similar))
        for _ in range(TURNS):
            for service, one in zip(services, figures, strict=True):
                one.rates.append(run(http_load.closed_loop(service.port, similar)))
        for service, one in zip(services, figures, strict=True):
            one.private_mib = [private_mib(pid) for pid in service.reader_pids()]
    return figures


def rows(figures: Sequence[Figures], count: int) -> list[Row]:
    """Return the rows of the result."""
    alone = next((mean(one.rates) for one in figures if not one.readers), None)
    results = []
    for one in figures:
        rate, what, against, target, met = mean(one.rates), "no reader process", "", "", None
        if one.readers:
            what = f"{one.readers} reader process{'es' if one.readers > 1 else ''}"
            against = f"no reader process: {alone:.0f} requests/s; ratio {rate / alone:.2f}x" if alone else ""
        if one.readers == 1 and alone:
            target, met = f"≥ {MIN_RATIO}x", rate >= MIN_RATIO * alone
        results.append(
            row(f"`similar` throughput, {count:,} notes, {CONNECTIONS} clients, {what}", round(rate), "requests/s",
                against=against, spread=f"range {min(one.rates):.0f} to {max(one.rates):.0f}", target=target, met=met)
        )  # fmt: skip
    for one in figures:
        if len(one.private_mib) > 1:  # a single reader process shares the mapped files with no process
            mib = max(one.private_mib)
            results.append(
                row(f"private memory per reader process, {count:,} notes, {one.readers} readers", mib, "MiB",
                    target=f"≤ {MAX_MIB} MiB", met=mib <= MAX_MIB)
            )  # fmt: skip
    return results


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notes", type=Path)
    parser.add_argument("--rows", type=int, default=DEFAULT_ROWS)
    parser.add_argument("--readers", type=int, nargs="+", default=READERS)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nl-") as made:
        folder = arguments.folder or Path(made)
        figures = measure(folder, arguments.notes, arguments.rows, arguments.readers)
    write(f"readers_{arguments.rows}", rows(figures, arguments.rows))


if __name__ == "__main__":
    main()
