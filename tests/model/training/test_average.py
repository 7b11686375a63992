"""Tests of averaging checkpoints: each weight is the mean, and parts fitted to a single checkpoint are left out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.category_head import CATEGORIES_FILE
from model.config import CheckpointError, NoteLLMConfig
from model.training.average import average
from model.training.teacher import unit
from model.training.whiten import whiten
from model.weights import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    BACKBONE_FOLDER,
    GENERATION_FOLDER,
    HEAD_FILE,
    SHIPPED_CHECKPOINT,
)


@pytest.fixture
def doubled(tmp_path: Path) -> Path:
    """The shipped checkpoint with its projection doubled."""
    folder = Path(shutil.copytree(SHIPPED_CHECKPOINT, tmp_path / "doubled"))
    head = load_file(folder / HEAD_FILE)
    save_file(head | {"projection": 2 * head["projection"]}, folder / HEAD_FILE)
    return folder


def test_mean_of_checkpoints_has_the_mean_of_each_weight(doubled: Path, tmp_path: Path) -> None:
    mean = tmp_path / "mean"
    average([SHIPPED_CHECKPOINT, doubled], mean)
    before, after = (load_file(folder / HEAD_FILE)["projection"].float() for folder in (SHIPPED_CHECKPOINT, mean))
    assert (after == 1.5 * before).all()
    shipped, averaged = (load_file(folder / ADAPTER_FOLDER / ADAPTER_FILE) for folder in (SHIPPED_CHECKPOINT, mean))
    assert shipped.keys() == averaged.keys()
    assert all((averaged[name] == weight.float()).all() for name, weight in shipped.items())


def test_mean_of_checkpoints_is_one_without_what_was_fitted_to_the_first(doubled: Path, tmp_path: Path) -> None:
    mean = tmp_path / "mean"
    average([SHIPPED_CHECKPOINT, doubled], mean)
    assert (SHIPPED_CHECKPOINT / CATEGORIES_FILE).exists()
    assert (SHIPPED_CHECKPOINT / GENERATION_FOLDER).exists()
    assert not (mean / CATEGORIES_FILE).exists()
    assert not (mean / GENERATION_FOLDER).exists()
    config, shipped = NoteLLMConfig.load(mean), NoteLLMConfig.load(SHIPPED_CHECKPOINT)
    assert "the mean of 2 checkpoints" in (mean / "README.md").read_text("utf-8")
    assert (config.name, config.dimension, config.generation_adapter) == (shipped.name, shipped.dimension, False)


def test_mean_is_under_the_terms_of_all_checkpoints_and_has_their_categories(doubled: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(doubled, tmp_path / "other"))
    plain = replace(NoteLLMConfig.load(doubled), generation_adapter=False)
    replace(plain, licence="MIT; trained on ours", trained_categories=("Food", "Art")).save(doubled)
    replace(plain, licence="MIT; trained on theirs", trained_categories=("Food", "Tax")).save(other)
    average([doubled, other], tmp_path / "mean")
    mean = NoteLLMConfig.load(tmp_path / "mean")
    assert mean.licence == "MIT; trained on ours; trained on theirs"
    assert mean.trained_categories == ("Art", "Food", "Tax")


@pytest.mark.parametrize(
    ("writes", "trained", "expected"),
    [
        (True, (("Food",), ("Tax",)), ("",)),  # only the adapters for writing have learnt them
        (False, ((), ("Tax",)), ("Tax",)),
        (False, ((), ("",)), ()),  # () stands for all names
        (False, (("",), ("",)), ("",)),
    ],
)
def test_categories_of_a_mean_are_those_that_its_trunks_have_learnt(
    doubled: Path, tmp_path: Path, writes: bool, trained: tuple[tuple[str, ...], ...], expected: tuple[str, ...]
) -> None:
    folders = [doubled, Path(shutil.copytree(doubled, tmp_path / "other"))]
    for folder, names in zip(folders, trained, strict=True):
        config = NoteLLMConfig.load(folder)
        replace(config, generation_adapter=writes, trained_categories=names).save(folder)
    average(folders, tmp_path / "mean")
    assert NoteLLMConfig.load(tmp_path / "mean").trained_categories == expected


def test_checkpoints_that_were_whitened_apart_are_refused(doubled: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(doubled, tmp_path / "other"))
    dimension = NoteLLMConfig.load(doubled).dimension
    for seed, folder in enumerate((doubled, other)):
        whiten(folder, [unit(np.random.default_rng(seed).normal(size=(500, dimension)))], 64)
    with pytest.raises(CheckpointError, match=r"have other directions, .* whiten the mean"):
        average([doubled, other], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
    average([doubled, doubled], tmp_path / "mean")


def test_adapters_of_different_runs_are_refused(doubled: Path, tmp_path: Path) -> None:
    path = doubled / ADAPTER_FOLDER / ADAPTER_FILE
    torch.manual_seed(0)
    weights = {name: torch.randn_like(w) if "lora_A" in name else w for name, w in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"^the adapters of .*doubled and .* are not of one run"):
        average([SHIPPED_CHECKPOINT, doubled], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_mean_leaves_a_folder_alone_whose_name_begins_with_its_own(doubled: Path, tmp_path: Path) -> None:
    (tmp_path / "mean.previous").mkdir()
    average([SHIPPED_CHECKPOINT, doubled], tmp_path / "mean")
    assert (tmp_path / "mean.previous").is_dir()


def test_mean_after_full_fine_tuning_has_the_mean_backbone(tmp_path: Path) -> None:
    for scale in (1.0, 3.0):
        folder = tmp_path / f"{scale}"
        (folder / BACKBONE_FOLDER).mkdir(parents=True)
        (folder / BACKBONE_FOLDER / "config.json").write_text("{}", "utf-8")
        save_file({"weight": scale * torch.ones(2, 2)}, folder / BACKBONE_FOLDER / "model.safetensors")
        save_file({"projection": torch.ones(2, 2), "tau": torch.tensor(scale)}, folder / HEAD_FILE)
        NoteLLMConfig(name="full", backbone=BACKBONE_FOLDER, dimension=2).save(folder)
    average([tmp_path / "1.0", tmp_path / "3.0"], tmp_path / "mean")
    mean = load_file(tmp_path / "mean" / BACKBONE_FOLDER / "model.safetensors")
    assert mean["weight"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert float(load_file(tmp_path / "mean" / HEAD_FILE)["tau"]) == 2.0
    assert (tmp_path / "mean" / BACKBONE_FOLDER / "config.json").is_file()
    with pytest.raises(CheckpointError, match=r"differs from .* in adapter, backbone"):
        average([tmp_path / "1.0", SHIPPED_CHECKPOINT], tmp_path / "other")


def test_checkpoints_without_a_mean_are_refused(doubled: Path, tmp_path: Path) -> None:
    mean = tmp_path / "mean"
    with pytest.raises(CheckpointError, match="two checkpoints"):
        average([SHIPPED_CHECKPOINT], mean)
    with pytest.raises(CheckpointError, match="exists"):
        average([SHIPPED_CHECKPOINT, doubled], doubled)
    other = Path(shutil.copytree(doubled, tmp_path / "other"))
    replace(NoteLLMConfig.load(other), prompt_version="note-first/1").save(other)
    with pytest.raises(CheckpointError, match=r"differs from .* in prompt_version"):
        average([SHIPPED_CHECKPOINT, other], mean)
    path = doubled / ADAPTER_FOLDER / ADAPTER_CONFIG_FILE
    settings = path.read_text("utf-8")
    path.write_text(json.dumps(json.loads(settings) | {"lora_alpha": 99}), "utf-8")
    with pytest.raises(CheckpointError, match=r"differs from .* in lora_alpha"):
        average([SHIPPED_CHECKPOINT, doubled], mean)
    path.write_text(settings, "utf-8")
    head = load_file(doubled / HEAD_FILE)
    save_file(head | {"projection": head["projection"][:-1].contiguous()}, doubled / HEAD_FILE)
    with pytest.raises(CheckpointError, match="tensors of other names or shapes"):
        average([SHIPPED_CHECKPOINT, doubled], mean)
    (other / ADAPTER_FOLDER / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no \.safetensors files"):
        average([other, other], mean)
    NoteLLMConfig(name="bare").save(tmp_path)
    with pytest.raises(CheckpointError, match="neither an adapter"):
        average([tmp_path, doubled], mean)
    assert not mean.exists()
