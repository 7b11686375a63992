"""First step: the card's name, and the packaged weights converted once for all others."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu_kit.options import LeftOut, Options
from benchmarks.harness.report import NO_GPU, Row, row
from model.config import PACKAGED_BACKBONE
from model.weights import resolve


def rows(options: Options) -> Iterator[Row]:
    """Yield the name of the card. Raises LeftOut if PyTorch finds none."""
    if not options.rehearsal and not torch.cuda.is_available():
        raise LeftOut(f"PyTorch {torch.__version__} finds no card here")
    resolve(PACKAGED_BACKBONE, options.cache)
    yield row("card", NO_GPU if options.rehearsal else torch.cuda.get_device_name())
