"""Fixtures that all tests share: the packaged backbone, and a tiny real checkpoint that loads in a moment."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from model.config import PACKAGED_BACKBONE, NoteLLMConfig
from model.inference.engine import Engine
from model.notellm import NoteLLM
from model.weights import resolve

torch.set_num_threads(1)  # two threads on two busy cores wait for each other, which is ten times slower

settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("repeatable")  # examples have no deadline, and every run has the same ones

LONGEST = (
    "service/test_chaos.py",
    "service/test_tenant_isolation.py",
    "service/api/test_fuzz.py",
    "service/index/test_vector_index.py",
    "service/cli/test_process.py",
    "service/api/test_kills.py",
    "service/test_raw_requests.py",
    "service/test_rolling_restart.py",
    "model/inference/test_openvino.py",
    "model/training/test_distributed.py",
    "model/training/test_trainer.py",
    "model/data/test_pairs.py",
)
"""Files that take longest. They run first, the longest one first, so that no worker waits for another at the end."""

DEVICE = torch.device(os.environ.get("NOTELLM_TEST_DEVICE", "cpu"))
"""Device of the tests' PyTorch engines; `benchmarks/gpu_kit` runs the tests of the engine's contract on a GPU."""

FOODS = ("Food", "Food and Drink", "Foodie", "Travel")
"""A closed set in which names are prefixes of others, as text and as tokens."""

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,  # wide enough for the vector to depend on the note
}
"""Sizes of the tiny models of FAMILIES."""
MIXED_LAYERS = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**COMMON),
    "qwen2": Qwen2Config(**{name: size for name, size in COMMON.items() if name != "head_dim"}),
    "qwen3": Qwen3Config(**COMMON),
    "gemma3": Gemma3TextConfig(**COMMON, layer_types=MIXED_LAYERS, final_logit_softcapping=30.0),
    "mistral": MistralConfig(**COMMON),
    "gemma2": Gemma2Config(**COMMON, attn_logit_softcapping=5.0, layer_types=MIXED_LAYERS),
}
"""Configurations of tiny models, one for each family of backbones; tests give them random weights."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files of LONGEST first; the others keep their order."""
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONGEST)}
    assert all(map(Path.is_file, places)), "LONGEST names a file that is not there"
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    """Restore the process-wide settings that a command run in the test's process may change: PyTorch's number of
    threads and the SIGTERM handler."""
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if signal.getsignal(signal.SIGTERM) != handler:
        signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def backbone_folder() -> Path:
    """Folder of the packaged weights as safetensors, with their tokenizer; converted once per machine."""
    cache = Path(os.environ.get("NOTELLM_TEST_CACHE", "~/.cache/notellm")).expanduser()
    return resolve(PACKAGED_BACKBONE, cache)


@pytest.fixture(scope="session")
def tiny_checkpoint(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint: a random two-layer Llama, a projection to 32 dimensions, and the real tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder)
    torch.manual_seed(0)
    backbone = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,  # wide enough for the vector to depend on the note
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    folder = tmp_path_factory.mktemp("tiny")
    NoteLLM(NoteLLMConfig(name="tiny", dimension=32), backbone, tokenizer).save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An Engine on the tiny checkpoint, in PyTorch, float32. It is shared: a test must not change its model."""
    return in_torch(tiny_checkpoint, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_task_first(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An Engine on the same weights with the prompt version that puts the task first. It is shared as well."""
    return _with_prompt_version("task-first/1", tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_short(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An Engine on the same weights with the short prompt version, hashtags last. It is shared as well."""
    return _with_prompt_version("note-first/2", tiny_checkpoint, tmp_path_factory)


def _with_prompt_version(version: str, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Load a copy of `checkpoint` whose configuration names another prompt version."""
    folder = tmp_path_factory.mktemp("tiny") / "copy"
    shutil.copytree(checkpoint, folder)
    replace(NoteLLMConfig.load(folder), prompt_version=version).save(folder)
    return in_torch(folder, tmp_path_factory.mktemp("cache"))


def in_torch(checkpoint: Path, cache: Path) -> Engine:
    """Load the reference engine: PyTorch, float32, on DEVICE."""
    return Engine.load(str(checkpoint), cache=cache, device=DEVICE.type, runtime="torch", dtype="float32")
