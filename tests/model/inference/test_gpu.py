"""Tests of the GPU path of the PyTorch runtime.

With a GPU, outputs equal those of the CPU. Without one, PyTorch's meta device, whose tensors have shapes but no values,
shows that all tensors are on the device, and that nothing waits for the device before a forward is computed.
"""

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
from model.inference.engine import Engine
from model.inference.torch_runtime import TorchRuntime
from model.note import Note
from model.notellm import NoteLLM

pytestmark = pytest.mark.slow

NOTES = [
    Note(title="Lemon tart", content="Butter, sugar and the juice of four lemons."),
    Note(title="Night train"),
    Note(title="A week in Kyoto", content="Temples at dawn, noodles at night. " * 4, hashtags=("kyoto",)),
]
REQUEST = GenerationRequest(3, ("Food", "Travel", "Home and garden"))


@pytest.fixture
def engine_on(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Engine]:
    """Return a function that loads the tiny checkpoint on a device."""

    def load(device: str) -> Engine:
        cache = tmp_path_factory.getbasetemp()
        model = NoteLLM.load(str(tiny_checkpoint), cache=cache, device=torch.device(device), dtype=torch.float32)
        return Engine(TorchRuntime(model))

    return load


def noise(values: Tensor) -> Any:
    """Random values for a tensor that has none; integers are valid token ids, below 100."""
    random = np.random.default_rng(values.numel())
    if values.dtype.is_floating_point:
        return -random.random(values.shape, np.float32)
    return random.integers(0, 100, values.shape)


def test_meta_device_runs_a_whole_request(engine_on: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    on_host, devices = torch_runtime.on_host, set[str]()

    def recording_on_host(values: Tensor) -> Any:
        devices.add(values.device.type)
        return noise(values) if values.device.type == "meta" else on_host(values)

    monkeypatch.setattr(torch_runtime, "on_host", recording_on_host)
    outputs = engine_on("meta").generate(NOTES, REQUEST)
    assert devices == {"meta"}
    assert [len(output.categories or ()) for output in outputs] == [3, 3, 3]
    assert all(output.usage.generated_tokens > 1 for output in outputs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_outputs_equal_those_of_the_cpu(engine_on: Callable[[str], Engine]) -> None:
    pairs: list[tuple[GenerationOutput, GenerationOutput]] = list(
        zip(engine_on("cuda").generate(NOTES, REQUEST), engine_on("cpu").generate(NOTES, REQUEST), strict=True)
    )
    for gpu, cpu in pairs:
        np.testing.assert_allclose(gpu.vector, cpu.vector, atol=1e-4)
        assert [hashtag.text for hashtag in gpu.hashtags or ()] == [hashtag.text for hashtag in cpu.hashtags or ()]
        gpu_probabilities, cpu_probabilities = (
            {category.name: category.probability for category in output.categories or ()} for output in (gpu, cpu)
        )
        assert gpu_probabilities == pytest.approx(cpu_probabilities, abs=1e-3)
