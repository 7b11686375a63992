"""Tests of cutting an adapter to a lower rank: best approximation of each product, and no files of the old trunk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.category_head import CATEGORIES_FILE
from model.config import CONFIG_FILE, CheckpointError, NoteLLMConfig
from model.notellm import NoteLLM
from model.training.cut_adapter import cut_adapter, cut_product, main
from model.weights import ADAPTER_CONFIG_FILE, ADAPTER_FILE, ADAPTER_FOLDER, GENERATION_FOLDER, HEAD_FILE
from tests.model.inference.models import add_random_generation_adapter

RANK = 8


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a random adapter of rank RANK, a generation adapter, and the file of a category head."""
    folder = tmp_path_factory.mktemp("trained")
    model = NoteLLM.load(str(tiny_checkpoint), cache=folder, device=torch.device("cpu"), dtype=torch.float32)
    model.config = replace(model.config, backbone=str(tiny_checkpoint / "backbone"), adapter=True)
    adapter = model.add_adapter(RANK)
    torch.manual_seed(1)
    for name, parameter in adapter.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    model.save(folder, adapter)
    add_random_generation_adapter(folder)
    (folder / CATEGORIES_FILE).touch()
    return folder


def products(checkpoint: Path) -> dict[str, Tensor]:
    """Return the matrix that a checkpoint's adapter adds to each linear layer's weights, by the layer's name."""
    folder = checkpoint / ADAPTER_FOLDER
    weights = load_file(folder / ADAPTER_FILE)
    config = json.loads((folder / ADAPTER_CONFIG_FILE).read_text("utf-8"))
    layers = [name.removesuffix("lora_A.weight") for name in weights if name.endswith("lora_A.weight")]
    scale = config["lora_alpha"] / config["r"]
    return {
        name: scale * weights[f"{name}lora_B.weight"].float() @ weights[f"{name}lora_A.weight"].float()
        for name in layers
    }


def test_cut_product_is_the_truncated_singular_value_decomposition_of_the_product() -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = torch.randn(7, 4, generator=generator), torch.randn(4, 5, generator=generator)
    cut_b, cut_a = cut_product(b, a, 2)
    assert cut_b.shape == (7, 2)
    assert cut_a.shape == (2, 5)
    left, values, right = torch.linalg.svd(b @ a)
    torch.testing.assert_close(cut_b @ cut_a, left[:, :2] * values[:2] @ right[:2])


def test_cut_checkpoint_has_an_adapter_of_the_rank_that_adds_nearly_the_same(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    main(["--checkpoint", str(checkpoint), "--rank", "1", "--out", str(out)])
    before, after = products(checkpoint), products(out)
    assert before.keys() == after.keys()
    for name, product in before.items():
        assert torch.linalg.matrix_rank(after[name]) == 1
        left, values, right = torch.linalg.svd(product, full_matrices=False)
        best = values[0] * left[:, :1] @ right[:1]
        assert (after[name] - best).norm() < 0.01 * best.norm()  # bfloat16 keeps eight bits


def test_cut_checkpoint_keeps_the_projection_and_nothing_of_the_old_trunk(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    main(["--checkpoint", str(checkpoint), "--rank", "1", "--out", str(out)])
    assert (out / HEAD_FILE).read_bytes() == (checkpoint / HEAD_FILE).read_bytes()
    assert not (out / CATEGORIES_FILE).exists()
    assert not (out / GENERATION_FOLDER).exists()
    config, before = NoteLLMConfig.load(out), NoteLLMConfig.load(checkpoint)
    assert (config.dimension, config.adapter, config.generation_adapter) == (before.dimension, True, False)


def test_names_that_a_generation_adapter_has_learnt_are_not_kept(checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    replace(NoteLLMConfig.load(source), trained_categories=("Food",)).save(source)
    cut_adapter(source, 1, tmp_path / "cut")
    assert NoteLLMConfig.load(tmp_path / "cut").trained_categories == ("",)
    replace(NoteLLMConfig.load(source), generation_adapter=False, generation_trunk="").save(source)
    cut_adapter(source, 1, tmp_path / "without")
    assert NoteLLMConfig.load(tmp_path / "without").trained_categories == ("Food",)


@pytest.mark.parametrize("rank", [0, RANK])
def test_rank_that_is_no_lower_one_is_refused_and_writes_nothing(checkpoint: Path, tmp_path: Path, rank: int) -> None:
    out = tmp_path / "cut"
    with pytest.raises(CheckpointError, match="choose a lower rank"):
        cut_adapter(checkpoint, rank, out)
    assert not out.exists()


def test_adapter_without_a_setting_or_a_factor_is_refused_by_its_folder(checkpoint: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    file = broken / ADAPTER_FOLDER / ADAPTER_FILE
    weights = load_file(file)
    del weights[next(name for name in weights if "lora_B" in name)]
    save_file(weights, file)
    with pytest.raises(CheckpointError, match=f"{broken / ADAPTER_FOLDER} could not be loaded: .*lora_B"):
        cut_adapter(broken, 1, tmp_path / "cut")
    (broken / ADAPTER_FOLDER / ADAPTER_CONFIG_FILE).write_text('{"r": 8}')
    with pytest.raises(CheckpointError, match=f"{broken / ADAPTER_FOLDER} could not be loaded: 'lora_alpha'"):
        cut_adapter(broken, 1, tmp_path / "cut")


def test_folder_that_is_there_is_refused_and_left_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--checkpoint", str(checkpoint), "--rank", "1", "--out", str(tmp_path)])
    assert f"{tmp_path} already exists: choose a new folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_cut_that_cannot_be_written_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    (broken / CONFIG_FILE).write_text("no JSON")
    with pytest.raises(CheckpointError):
        cut_adapter(broken, 1, tmp_path / "made" / "cut")
    assert not list((tmp_path / "made").iterdir())


def test_checkpoint_without_an_adapter_is_refused(tmp_path: Path) -> None:
    NoteLLMConfig(name="bare").save(tmp_path)
    with pytest.raises(CheckpointError, match="no adapter"):
        cut_adapter(tmp_path, 1, tmp_path / "cut")
