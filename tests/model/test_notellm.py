"""Tests of NoteLLM: saved models load back, broken files are refused, and `space` covers all that shapes vectors."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import prompt
from model.config import CheckpointError, NoteLLMConfig
from model.inference.engine import Engine
from model.inference.torch_runtime import TorchRuntime
from model.note import Note
from model.notellm import NoteLLM
from model.weights import GENERATION_FOLDER, HEAD_FILE
from tests.model.inference.models import add_random_generation_adapter

NOTES = [Note("Rome", "Coffee near the river", ("food",)), Note("A cat", "sleeps"), Note()]
BROKEN = {"empty": b"", "junk": b"junk", "too long a header": b"\xff" * 64}


def load(checkpoint: Path, dtype: torch.dtype = torch.float32) -> NoteLLM:
    return NoteLLM.load(str(checkpoint), cache=checkpoint / "cache", device=torch.device("cpu"), dtype=dtype)


def embeddings(model: NoteLLM) -> Tensor:
    """Return the vectors of NOTES, (N, D)."""
    return torch.from_numpy(Engine(TorchRuntime(model)).embed(NOTES))


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


@pytest.fixture
def model(tiny_engine: Engine) -> NoteLLM:
    return tiny_engine.runtime.model


def test_model_saved_loads_back_the_same(model: NoteLLM, tmp_path: Path) -> None:
    model.save(tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(embeddings(loaded), embeddings(model))
    assert loaded.space == model.space
    assert loaded.config == model.config
    assert torch.equal(loaded.tau, model.tau)


def test_model_loaded_with_its_adapter_is_saved_with_merged_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    trained = load(tiny_checkpoint)
    trained.config = replace(trained.config, backbone=str(tiny_checkpoint / "backbone"), adapter=True)
    adapter = trained.add_adapter(2)
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:  # zero in a new adapter
            torch.nn.init.normal_(parameter, std=0.1)
    trained.save(tmp_path / "adapter", adapter)
    merged = load(tmp_path / "adapter")
    assert not torch.allclose(embeddings(merged), embeddings(load(tiny_checkpoint)), atol=0.01)
    merged.save(tmp_path / "merged")
    assert torch.equal(embeddings(load(tmp_path / "merged")), embeddings(merged))


def test_checkpoint_moved_elsewhere_loads_the_same(model: NoteLLM, copied: Path, tmp_path: Path) -> None:
    moved = copied.rename(tmp_path / "moved")
    assert load(moved).space == model.space


def test_embedding_is_a_float32_unit_vector(model: NoteLLM) -> None:
    vectors = embeddings(model)
    assert vectors.shape == (len(NOTES), 32)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(NOTES)))


def test_bfloat16_model_gives_float32_vectors_close_to_float32(model: NoteLLM, tiny_checkpoint: Path) -> None:
    half = load(tiny_checkpoint, torch.bfloat16)
    vectors = embeddings(half)
    assert half.backbone.dtype == torch.bfloat16
    assert vectors.dtype == torch.float32
    assert (vectors * embeddings(model)).sum(-1).min() > 0.99


def test_bare_backbone_is_a_model_without_a_projection(tiny_checkpoint: Path) -> None:
    bare = load(tiny_checkpoint / "backbone")
    assert bare.projection is None
    assert embeddings(bare).shape == (len(NOTES), 64)


def test_loaded_model_does_not_learn(tiny_checkpoint: Path) -> None:
    loaded = load(tiny_checkpoint)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_logits_are_those_of_the_backbone(model: NoteLLM) -> None:
    ids = torch.tensor([model.prompt.note(NOTES[0])])
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        hidden = model(ids, mask, mask.cumsum(1) - 1)
        torch.testing.assert_close(model.logits(hidden), model.backbone(input_ids=ids, attention_mask=mask).logits)


def test_space_changes_with_the_projection(model: NoteLLM, copied: Path) -> None:
    head = load_file(copied / HEAD_FILE)
    save_file({**head, "projection": head["projection"] + 1e-3}, copied / HEAD_FILE)
    assert load(copied).space != model.space


def test_space_changes_with_the_backbone(model: NoteLLM, copied: Path) -> None:
    path = copied / "backbone" / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "model.norm.weight": weights["model.norm.weight"] * 2}, path, {"format": "pt"})
    assert load(copied).space != model.space


def test_space_changes_with_the_dimension(model: NoteLLM, tiny_checkpoint: Path) -> None:
    assert load(tiny_checkpoint / "backbone").space != model.space


@pytest.mark.parametrize(
    "bound", ["max_title_tokens", "max_hashtag_tokens", "max_content_tokens", "max_content_windows"]
)
def test_space_changes_with_each_bound_of_the_prompt(bound: str, model: NoteLLM, copied: Path) -> None:
    changed: dict[str, Any] = {bound: 31}
    replace(model.config, **changed).save(copied)
    assert load(copied).space != model.space


def test_space_changes_with_the_prompt_version(model: NoteLLM, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(prompt.TEMPLATES, "next/1", prompt.TEMPLATES["note-first/1"])
    replace(model.config, prompt_version="next/1").save(copied)
    assert load(copied).space != model.space


def test_space_does_not_change_with_name_and_categories(model: NoteLLM, copied: Path) -> None:
    replace(model.config, name="other", categories=("One", "Two")).save(copied)
    assert load(copied).space == model.space


def test_head_missing_is_refused_by_name(copied: Path) -> None:
    (copied / HEAD_FILE).unlink()
    with pytest.raises(CheckpointError, match=HEAD_FILE):
        load(copied)


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_head_broken_is_refused(content: bytes, copied: Path) -> None:
    (copied / HEAD_FILE).write_bytes(content)
    with pytest.raises(CheckpointError):
        load(copied)


@pytest.mark.parametrize("missing", ["projection", "tau"])
def test_head_that_lacks_a_tensor_is_refused(missing: str, copied: Path) -> None:
    head = load_file(copied / HEAD_FILE)
    save_file({name: tensor for name, tensor in head.items() if name != missing}, copied / HEAD_FILE)
    with pytest.raises(CheckpointError):
        load(copied)


def test_head_of_another_shape_is_refused(copied: Path) -> None:
    replace(NoteLLMConfig.load(copied), dimension=16).save(copied)
    with pytest.raises(CheckpointError, match="fit"):
        load(copied)


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_weights_broken_are_refused(content: bytes, copied: Path) -> None:
    (copied / "backbone" / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError):
        load(copied)


def test_generation_adapter_broken_is_refused_by_name(copied: Path) -> None:
    add_random_generation_adapter(copied)
    (copied / GENERATION_FOLDER / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=f"{copied / GENERATION_FOLDER} could not be loaded"):
        load(copied)


def test_weights_that_lack_a_layer_are_refused(copied: Path) -> None:
    """transformers would initialise the missing layer at random, and only log it."""
    path = copied / "backbone" / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(CheckpointError):
        load(copied)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_backbone_that_lacks_a_file_is_refused(missing: str, copied: Path) -> None:
    (copied / "backbone" / missing).unlink()
    with pytest.raises(CheckpointError):
        load(copied)


def test_checkpoint_without_its_backbone_is_refused(copied: Path) -> None:
    shutil.rmtree(copied / "backbone")
    with pytest.raises(CheckpointError):
        load(copied)
