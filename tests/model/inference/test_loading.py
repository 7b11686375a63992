"""Tests of loading: the model's name, precision and licence, and the fallback to the CPU if there is no GPU."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.config import NoteLLMConfig
from model.generation import GenerationRequest
from model.inference.engine import Engine
from model.inference.loading import device_for
from tests.model.inference.samples import FEW_NOTES


def test_loaded_engine_has_the_name_of_its_checkpoint(tiny_engine: Engine) -> None:
    assert (tiny_engine.name, tiny_engine.space) == ("tiny", tiny_engine.runtime.model.space)
    assert tiny_engine.categories == NoteLLMConfig().categories
    assert tiny_engine.runtime.model.backbone.dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_gpu_the_cpu_runs_the_model_and_says_so(tiny_checkpoint: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    engine = Engine.load(str(tiny_checkpoint), cache=tmp_path, device="cuda", runtime="torch", progress=messages.append)
    request = GenerationRequest(3, ("Food", "Travel", "Home and garden"))
    assert engine.generate(FEW_NOTES[1:2], request)[0].categories
    assert any("finds no GPU" in message for message in messages)
    assert device_for("cpu", messages.append) == "cpu"


def test_licence_of_a_checkpoint_is_shown_when_it_loads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "licensed"))
    replace(NoteLLMConfig.load(folder), licence="for research alone").save(folder)
    messages: list[str] = []
    Engine.load(str(folder), cache=tmp_path, device="cpu", runtime="torch", progress=messages.append)
    assert messages[-1] == "tiny: for research alone"
