"""Test of distillation on a GPU, without one: PyTorch's meta device, whose tensors have shapes but no values, refuses
operations on tensors of two devices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import masking_utils

from model.training.distil import Distillation, Distiller
from model.weights import BACKBONE_FOLDER
from tests.model.training.distillation import ENCODER

pytestmark = pytest.mark.slow


def unless_meta(method: Callable[[Tensor], Any], stand_in: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return `method` with a stand-in for the values that a tensor on the meta device lacks."""
    return lambda values: stand_in(values) if values.is_meta else method(values)


@pytest.fixture
def with_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return stand-in values where a distillation reads from the device, and replace what the meta device lacks."""
    monkeypatch.setattr(Tensor, "cpu", unless_meta(Tensor.cpu, lambda values: torch.zeros(values.shape)))
    monkeypatch.setattr(Tensor, "__float__", unless_meta(Tensor.__float__, lambda values: 0.5))
    monkeypatch.setattr(masking_utils, "_ignore_causal_mask_sdpa", lambda *_, **__: False)
    monkeypatch.setattr("torch.autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr("torch.optim.AdamW", partial(unfused, torch.optim.AdamW))


def unfused(optimizer: Callable[..., Any], groups: Any, *, betas: tuple[float, float], fused: bool) -> Any:
    assert fused
    return optimizer(groups, betas=betas)


@pytest.mark.usefixtures("with_values")
def test_meta_device_solves_for_a_head_and_does_a_step(tiny_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    recipe = Distillation(
        shares={"lists": 0.7, "long": 0.3}, teachers=[ENCODER], backbone=str(tiny_checkpoint / BACKBONE_FOLDER),
        threads=1, batch=16, starting_notes=40, words=0.0, ranked=30, solve_every=1,
    )  # fmt: skip
    run = Distiller(recipe, corpus, tmp_path, tmp_path, device="meta")
    run.stop()
    run.run(minutes=1)
    assert run.step == 1
    held = [*run.master_weights.masters, *run.master_weights.averages, *run.ridge.state().values(), run.ranked]
    assert {tensor.device.type for tensor in [*held, *run.student.state_dict().values()]} == {"meta"}
