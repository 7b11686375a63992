"""Models of the tests: families of tiny configurations, the tiny checkpoint and the reference engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
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

from model.config import NoteLLMConfig
from model.inference.engine import Engine
from model.notellm import NoteLLM

DEVICE = torch.device(os.environ.get("NOTELLM_TEST_DEVICE", "cpu"))
"""Device of the tests' PyTorch engines; `benchmarks/gpu_kit` runs the tests of the engine's contract on a GPU."""

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


def save_tiny(folder: Path, backbone_folder: Path) -> None:
    """Save a complete checkpoint: a random two-layer Llama, a projection to 32 dimensions, and the real tokenizer."""
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
    NoteLLM(NoteLLMConfig(name="tiny", dimension=32), backbone, tokenizer).save(folder)


def in_torch(checkpoint: Path, cache: Path) -> Engine:
    """Load the reference engine: PyTorch, float32, on DEVICE."""
    return Engine.load(str(checkpoint), cache=cache, device=DEVICE.type, runtime="torch", dtype="float32")
