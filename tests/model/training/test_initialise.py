"""Tests of the start of a run: weights in bfloat16, projections and memories before the first step."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import CheckpointError, NoteLLMConfig
from model.data.dataset import PairedNotes
from model.inference.engine import Engine
from model.inference.torch_runtime import TorchRuntime
from model.note import Note
from model.notellm import NoteLLM
from model.training.initialise import build_model, projection_start, store_in_bfloat16
from model.training.recipe import Data, Recipe
from model.training.teacher import write_vectors
from model.training.trainer import BEST, Trainer
from model.weights import silent
from tests.model.inference.models import add_random_generation_adapter
from tests.model.training.runs import random_vectors

pytestmark = pytest.mark.slow


def test_weights_stored_in_bfloat16_compute_as_autocast_does(tiny_checkpoint: Path, tmp_path: Path):
    model = NoteLLM.load(str(tiny_checkpoint), cache=tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    ids = torch.tensor([model.prompt.note(Note(title="river", hashtags=("daily",)))])
    mask = torch.ones_like(ids)

    def computed() -> list[torch.Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            hidden = model(ids, mask, mask.cumsum(1) - 1)
            return [hidden, model.logits(hidden)]

    before = computed()
    store_in_bfloat16(model)
    backbone = model.backbone
    assert backbone.base_model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    for layer in (backbone.get_input_embeddings(), backbone.get_output_embeddings(), model.projection):
        assert layer.weight.dtype == torch.float32
    for after, expected in zip(computed(), before, strict=True):
        torch.testing.assert_close(after, expected, rtol=0, atol=0)


def states_around(mean: torch.Tensor, notes: int = 40) -> torch.Tensor:
    """States (notes, H) with this mean, whose components are uncorrelated and have variance 1."""
    raw = torch.randn(notes, len(mean), generator=torch.Generator().manual_seed(1))
    columns, _ = torch.linalg.qr(raw - raw.mean(0))
    return columns * notes**0.5 + mean


def test_projection_starts_as_the_principal_components():
    """The states have variances 16, 4 and 1 in three directions, around a mean that is larger than all of these."""
    directions, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))
    mean = torch.tensor([100.0, -50.0, 20.0])
    states = states_around(torch.zeros(3)) * torch.tensor([4.0, 2.0, 1.0]) @ directions + mean
    start = projection_start(states, 2)
    torch.testing.assert_close(start @ start.T, torch.eye(2))
    torch.testing.assert_close((start @ directions.T).abs(), torch.eye(3)[:2], atol=1e-3, rtol=0)


def test_projection_of_a_linear_teacher_gives_its_cosines():
    mean = torch.zeros(8)
    mean[0] = 30.0
    states = states_around(mean)
    to_teacher = torch.randn(8, 3, generator=torch.Generator().manual_seed(3))
    to_teacher[0] = 0  # the teacher ignores the direction of the mean
    teacher = states @ to_teacher
    start = projection_start(states, 5, teacher)
    assert start.shape == (3, 8)  # the teacher has only three directions
    assert start.norm(dim=1).square().mean().item() == pytest.approx(1)
    torch.testing.assert_close(cosines(states @ start.T), cosines(teacher), atol=1e-4, rtol=0)


def test_projection_of_a_teacher_drops_the_mean_state():
    mean = torch.full((8,), 10.0)
    states = states_around(mean)
    teacher = states @ torch.randn(8, 3, generator=torch.Generator().manual_seed(3))
    start = projection_start(states, 3, teacher)
    kept = (states @ start.T).mean(0).norm() / mean.norm()
    assert kept < 0.01 * ((states - mean) @ start.T).norm(dim=1).mean() / (states - mean).norm(dim=1).mean()


def test_narrow_projection_keeps_what_differs_most():
    """The teacher weighs the second component less than the first, but notes differ more in it."""
    states = states_around(torch.zeros(8)) * torch.tensor([1.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    teacher = states * torch.tensor([5.0, 2.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(projection_start(states, 1, teacher).abs(), torch.eye(8)[[1]], atol=1e-3, rtol=0)
    two = projection_start(states, 2, teacher).abs()
    torch.testing.assert_close(two / two.norm(dim=1, keepdim=True), torch.eye(8)[[1, 0]], atol=1e-3, rtol=0)


def cosines(vectors: torch.Tensor) -> torch.Tensor:
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    return vectors @ vectors.T


def write_teacher(path: Path, notes: list[str]) -> Path:
    """Write a teacher's vectors that tell notes apart by their subject alone."""
    write_vectors(path, notes, np.eye(8, dtype=np.float32)[[int(i) % 8 for i in notes]])
    return path


def test_trainer_starts_the_projection_from_its_datas_teacher(recipe: Recipe, data: Data, tmp_path: Path):
    """The teacher tells notes apart by their subject alone, and so does the new model before any step."""
    notes = PairedNotes(data.notes, None).notes
    subjects = np.array([int(i) % 8 for i in notes])
    teacher = write_teacher(tmp_path / "teacher.npz", list(notes))
    contrast = {}
    for name, row in {"with": replace(data, teacher=teacher), "without": data}.items():
        trainer = Trainer(replace(recipe, data=(row,), distillation=0.5), tmp_path / name, cache=tmp_path)
        vectors = Engine(TorchRuntime(trainer.model)).embed(list(notes.values()))
        alike = subjects[:, None] == subjects
        scores = vectors @ vectors.T
        contrast[name] = scores[alike].mean() - scores[~alike].mean()
    assert contrast["with"] > max(0.3, 1.2 * contrast["without"])


def test_memory_starts_with_a_sample_of_notes_as_the_model_reads_them(
    recipe: Recipe, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("model.training.initialise.STARTING_NOTES", 100)
    trainer = Trainer(replace(recipe, memory=True), tmp_path, cache=tmp_path)
    (objective,) = trainer.objectives
    assert objective is not None
    assert objective.memory is not None
    filled = objective.memory.any(1)
    assert filled.sum() == 100 < len(filled)
    read = torch.from_numpy(Engine(TorchRuntime(trainer.model)).embed(objective.notes))
    torch.testing.assert_close(objective.memory[filled], read[filled], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("version", "kept"), [("note-first/1", True), ("note-first/2", False)])
def test_later_stage_keeps_its_projection_if_the_prompt_is_equal_and_says_otherwise(
    recipe: Recipe, tmp_path: Path, version: str, kept: bool
):
    assert recipe.prompt_version == "note-first/1"
    first = Trainer(recipe, tmp_path, cache=tmp_path)
    with torch.no_grad():
        first.model.projection.weight.copy_(random_vectors(64).T)
        first.model.tau.fill_(2.5)
    first._save_checkpoint(BEST)
    recipe = replace(recipe, prompt_version=version)
    told: list[str] = []
    later = Trainer(replace(recipe, start=tmp_path / BEST), tmp_path / "later", cache=tmp_path, progress=told.append)
    assert any('set prompt_version = "note-first/1"' in line for line in told) != kept
    fresh = Trainer(recipe, tmp_path / "fresh", cache=tmp_path)  # the adapter is still the identity: states are equal
    assert later.model.tau.item() == 2.5
    expected = first if kept else fresh
    torch.testing.assert_close(later.model.projection.weight, expected.model.projection.weight, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(later.model.projection.weight, (fresh if kept else first).model.projection.weight)


def test_start_on_another_backbone_is_refused(recipe: Recipe, tmp_path: Path):
    Trainer(recipe, tmp_path, cache=tmp_path)._save_checkpoint(BEST)
    config = NoteLLMConfig.load(tmp_path / BEST)
    replace(config, backbone="packaged:another").save(tmp_path / BEST)
    with pytest.raises(CheckpointError, match="has an adapter for packaged:another"):
        Trainer(replace(recipe, start=tmp_path / BEST), tmp_path / "later", cache=tmp_path)


def test_start_on_a_moved_backbone_needs_the_same_weights(recipe: Recipe, tmp_path: Path):
    former = Path(shutil.copytree(recipe.backbone, tmp_path / "former"))
    first = Trainer(replace(recipe, backbone=str(former)), tmp_path / "first", cache=tmp_path)
    first._save_checkpoint(BEST)
    later, told = replace(recipe, start=tmp_path / "first" / BEST), list[str]()
    Trainer(later, tmp_path / "later", cache=tmp_path, progress=told.append)
    assert not any("which no longer exists" in line for line in told)

    (file,) = former.glob("*.safetensors")
    save_file({name: 2 * weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"has an adapter for {former}: set `backbone` to that"):
        Trainer(later, tmp_path / "later", cache=tmp_path)

    shutil.rmtree(former)
    Trainer(later, tmp_path / "later", cache=tmp_path, progress=told.append)
    assert any(f"has an adapter for {former}, which no longer exists: {recipe.backbone} must" in line for line in told)


def test_full_fine_tuning_starts_without_the_generation_adapter_of_its_start(
    recipe: Recipe, tiny_checkpoint: Path, tmp_path: Path
):
    stale = Path(shutil.copytree(tiny_checkpoint, tmp_path / "stale"))
    add_random_generation_adapter(stale)
    replace(NoteLLMConfig.load(stale), generation_trunk="0" * 64).save(stale)
    recipe = replace(recipe, lora_rank=0, start=stale, dimension=32)
    model, adapter = build_model(recipe, ("",), tmp_path, torch.device("cpu"), silent)
    assert (model.decoder, adapter, model.config.generation_adapter) == (None, None, False)
