"""Running the steps: each in its own process, within a time limit, with every row saved as soon as it is measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from benchmarks import ROOT
from benchmarks.gpu_kit.options import LEFT_OUT, Options
from benchmarks.harness.report import NO_GPU, Result, Row, commit, hardware, row, save, table, versions

CARD_SECONDS = 120
"""Time limit for finding the card and converting the packaged weights."""
STEP_SECONDS: Mapping[str, int] = {"contract": 420, "engine": 420, "index": 420}
"""Time limit of each step. Together with CARD_SECONDS and the unpacking, all steps take less than 25 minutes."""
KILL_SECONDS = 10
"""Bound on the wait for a killed process: one that waits for its driver may never end."""
REHEARSAL = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
"""Environment of steps in a rehearsal."""
DONE, FAILED, NO_CARD, SOMETHING_LEFT_OUT = 0, 1, 2, 3
"""Exit statuses."""


def run(steps: Sequence[str], options: Options, results: Path) -> int:
    """Run steps one after the other, write `results`/gpu_STEP.json for each, and return the exit status."""
    results.mkdir(parents=True, exist_ok=True)
    card = run_step("card", CARD_SECONDS, options, print_row)
    if exit_status(card) != DONE:
        return NO_CARD
    measured: list[Row] = []
    for step in steps:
        print(f"\n{step}, {STEP_SECONDS[step]} s at most", flush=True)
        measured += record_step(step, options, results, str(card[0]["value"]))
    return exit_status(measured)


def exit_status(rows: Sequence[Row]) -> int:
    """Return the exit status after steps that gave these rows."""
    if any(line["met"] is False for line in rows):
        return FAILED
    return SOMETHING_LEFT_OUT if any(line["value"] == LEFT_OUT for line in rows) else DONE


def record_step(step: str, options: Options, results: Path, gpu: str) -> list[Row]:
    """Run a step, save its result after each row, print its table and return its rows."""
    result = Result(
        name=f"gpu_{step}",
        commit=commit(),
        date=datetime.now(UTC).date().isoformat(),
        hardware=hardware(NO_GPU if options.rehearsal else gpu),
        versions=versions(),
        rows=[],
    )

    def add(line: Row) -> None:
        result["rows"].append(line)
        save(result, results)

    rows = run_step(step, STEP_SECONDS[step], options, add)
    print(table(rows), flush=True)
    return rows


def run_step(step: str, seconds: int, options: Options, on_row: Callable[[Row], None]) -> list[Row]:
    """Run the process of a step, and all processes that it starts, for at most `seconds`; return its rows. `on_row`
    gets each row as soon as it is printed. If the step failed or was stopped, the last row says so."""
    rows: list[Row] = []

    def add(line: Row) -> None:
        rows.append(line)
        on_row(line)

    def read(output: IO[str]) -> None:
        with output:
            for line in output:
                add(json.loads(line))

    command = [sys.executable, "-m", "benchmarks.gpu_kit.step", step, *options.arguments()]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(options), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        status = process.wait(seconds)
        failure = f"its process ended with status {status}" if status else ""
    except subprocess.TimeoutExpired:
        failure = f"stopped after {seconds} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILL_SECONDS)
        process.stdin.close()
        reader.join(KILL_SECONDS)
    if failure:
        add(row(step, "failed", spread=failure, target="ends within its time", met=False))
    return rows


def environment(options: Options) -> dict[str, str]:
    """Return the environment of a step: device and folder of weights for the tests. A rehearsal sees no card, and has
    one thread, since two wait for each other on a busy machine."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "NOTELLM_TEST_DEVICE": options.device, "NOTELLM_TEST_CACHE": str(options.cache)}
    return {**os.environ, **own, **(REHEARSAL if options.rehearsal else {})}


def print_row(line: Row) -> None:
    print(f"{line['what']}: {line['value']} {line['spread']}", flush=True)
