"""Files of a training run, as tests of several files read them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from model.training.trainer import LOG


def random_vectors(count: int) -> torch.Tensor:
    """Unit vectors (count, 16), in the dimension of the recipe here."""
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(4)), dim=-1)


def losses(folder: Path) -> list[tuple[float, ...]]:
    """Steps of the log: number, contrastive, distillation and generative loss, tau."""
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [tuple(row[name] for name in ("step", "contrastive", "distillation", "generative", "tau")) for row in rows]
