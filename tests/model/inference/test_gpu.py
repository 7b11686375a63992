"""The path of a GPU. Where there is one, it reads what the CPU reads; where there is none, a device that knows only the
shapes of what it holds shows that every tensor is where it belongs, and that nothing waits for the device before all is
computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.generation import GenerationOutput, GenerationRequest
from model.inference import torch_runtime
from model.inference.engine import Engine, device_for
from model.inference.torch_runtime import TorchRuntime
from model.note import Note
from model.notellm import NoteLLM

NOTES = [
    Note(title="Lemon tart", content="Butter, sugar and the juice of four lemons."),
    Note(title="Night train"),
    Note(title="A week in Kyoto", content="Temples at dawn, noodles at night. " * 4, hashtags=("kyoto",)),
]
JOB = GenerationRequest(3, ("Food", "Travel", "Home and garden"))


@pytest.fixture
def make(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Engine]:
    """The tiny checkpoint on a device."""

    def on(device: str) -> Engine:
        cache = tmp_path_factory.getbasetemp()
        at = torch.device(device)
        return Engine(TorchRuntime(NoteLLM.load(str(tiny_checkpoint), cache=cache, device=at, dtype=torch.float32)))

    return on


def noise(values: Tensor) -> Any:
    """In place of what the device holds. Numbers of tokens are small."""
    random = np.random.default_rng(values.numel())
    if values.dtype.is_floating_point:
        return -random.random(values.shape, np.float32)
    return random.integers(0, 100, values.shape)


def test_the_whole_job_runs_where_only_shapes_are_known(
    make: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_host, devices = torch_runtime.on_host, set[str]()

    def told(values: Tensor) -> Any:
        devices.add(values.device.type)
        return noise(values) if values.device.type == "meta" else on_host(values)

    monkeypatch.setattr(torch_runtime, "on_host", told)
    readings = make("meta").generate(NOTES, JOB)
    assert devices == {"meta"}
    assert [len(reading.categories or ()) for reading in readings] == [3, 3, 3]
    assert all(reading.usage.generated_tokens > 1 for reading in readings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_reads_what_the_cpu_reads(make: Callable[[str], Engine]) -> None:
    pairs: list[tuple[GenerationOutput, GenerationOutput]] = list(
        zip(make("cuda").generate(NOTES, JOB), make("cpu").generate(NOTES, JOB), strict=True)
    )
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours.vector, theirs.vector, atol=1e-4)
        assert [each.text for each in ours.hashtags or ()] == [each.text for each in theirs.hashtags or ()]
        ours_of, theirs_of = ({c.name: c.probability for c in each.categories or ()} for each in (ours, theirs))
        assert ours_of == pytest.approx(theirs_of, abs=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_there_is_no_gpu_a_cpu_runs_the_model_and_says_so(tiny_checkpoint: Path, tmp_path: Path) -> None:
    said: list[str] = []
    engine = Engine.load(str(tiny_checkpoint), cache=tmp_path, device="cuda", runtime="torch", progress=said.append)
    assert engine.generate(NOTES[:1], JOB)[0].categories
    assert any("finds no GPU" in line for line in said)
    assert device_for("cpu", said.append) == "cpu"
