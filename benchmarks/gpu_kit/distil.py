"""Distillation on a card within a time limit, whose checkpoint comes back in parts.

It is a separate command and not a step: it measures nothing, whatever stops it must let it save, and the same command
resumes the run where the last one ended.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu_kit.corpus import read_recipe
from benchmarks.gpu_kit.parts import archive_in_parts
from benchmarks.gpu_kit.run import DONE, FAILED, NO_CARD
from model.training import export
from model.training.distil import LOG, Distiller
from model.training.resume import newest_state
from model.training.stopping import stopped_by_signals

EXPORT_SECONDS = 120
"""Time reserved for the end of a command: the last save, the adapter, and whitening by texts of the corpus."""
RETURNED_PART_BYTES = 15 << 20
"""Size of the returned parts: an adapter of rank 32 is larger than some machines return in one file."""
MAX_RETURNED_BYTES = 64 << 20
"""Bound on the size of all returned files; beyond it the rank is too high, and the same command accepts a lower one."""
CHECKPOINT = "checkpoint"
"""Folder in the returned archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilling:
    """Options of the command.

    `run`: folder of the states. `minutes`: bound on the training time of this command. `limit`: bound on the minutes of
    the whole command. `rank`, `dimension`: of the exported checkpoint's adapter and vectors.
    """

    corpus: Path
    recipe: Path
    run: Path
    results: Path
    cache: Path
    device: str
    minutes: float
    limit: float
    rank: int
    dimension: int


def distil(options: Distilling) -> int:
    """Train until time is up, export, write log.jsonl and the checkpoint's parts to the results; return the exit
    status. After a SIGTERM or Ctrl-C the run is saved and no checkpoint is exported."""
    deadline = time.monotonic() + 60 * options.limit - EXPORT_SECONDS
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__} finds no card here", file=sys.stderr)
        return NO_CARD
    threads = torch.get_num_threads()  # a Distiller changes it
    stopped = train(options, deadline)
    options.results.mkdir(parents=True, exist_ok=True)
    shutil.copy(options.run / LOG, options.results)
    if stopped:
        print("stopped and saved; the same command goes on", file=sys.stderr)
        return FAILED
    torch.set_num_threads(threads)
    return hand_over(options)


def train(options: Distilling, deadline: float) -> bool:
    """Train until the deadline, by time.monotonic(), for the options' minutes, or until SIGTERM or Ctrl-C; return
    whether a signal came. At least one step is done and saved."""
    recipe = read_recipe(options.recipe)
    distiller = Distiller(recipe, options.corpus, options.run, options.cache, device=options.device)
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        distiller.stop()

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), distiller.stop)
    timer.start()
    try:
        with stopped_by_signals(stop):
            print(f"{len(distiller.texts.notes):,} texts; from step {distiller.step}; {recipe}", flush=True)
            distiller.run(options.minutes)
    finally:
        timer.cancel()
    print(f"step {distiller.step}; {distiller.text_count:,} texts read in {distiller.seconds:.0f} s", flush=True)
    return stopped.is_set()


def hand_over(options: Distilling) -> int:
    """Export the newest state, whitened by the corpus, as parts in the results; return the exit status."""
    state = newest_state(options.run)
    assert state is not None  # a run that has ended was saved
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / CHECKPOINT
        export.main(
            [
                f"--state={state}", f"--out={checkpoint}", f"--rank={options.rank}", f"--dimension={options.dimension}",
                f"--corpus={options.corpus}", f"--cache={options.cache}", f"--device={options.device}",
            ]
        )  # fmt: skip
        for old in options.results.glob("part-*"):
            old.unlink()
        with archive_in_parts(options.results, RETURNED_PART_BYTES) as (archive, parts):
            archive.add(checkpoint, CHECKPOINT)
    returned = sum(file.stat().st_size for file in (options.results / LOG, *options.results.glob("part-*")))
    print(f"{LOG} and {len(parts.digests)} parts are in {options.results}: {returned / 2**20:.1f} MiB", flush=True)
    if returned > MAX_RETURNED_BYTES:
        print(f"more than {MAX_RETURNED_BYTES >> 20} MiB: give a lower --rank than {options.rank}", file=sys.stderr)
        return FAILED
    return DONE
