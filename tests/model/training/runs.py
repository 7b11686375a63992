"""Helpers of several test files for the files of a training run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from model.training.run_lock import LOCK, RunKind
from model.training.trainer import LOG

HOLD_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "wb")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
"""Program that locks a file until its input ends."""


def random_vectors(count: int) -> torch.Tensor:
    """Return unit vectors (count, 16), in the dimension of the tests' recipe."""
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(4)), dim=-1)


def losses(folder: Path) -> list[tuple[float, ...]]:
    """Return the steps of the log: number, contrastive, distillation and generative loss, tau."""
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [tuple(row[name] for name in ("step", "contrastive", "distillation", "generative", "tau")) for row in rows]


def begin_run(folder: Path, kind: RunKind) -> None:
    """Make the folder of a run that was killed before it wrote a file."""
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(kind)


@contextmanager
def training_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder in another process while the context lasts."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLD_LOCK, str(folder / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        yield
        other.communicate()


@contextmanager
def stopped_at_once(stop: Callable[[], None]) -> Iterator[None]:
    """Take the place of `stopped_by_signals`, as if a signal came before the first step."""
    stop()
    yield
