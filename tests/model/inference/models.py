"""Engines around small models whose outputs the tests control."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

from model.config import DEFAULT_PROMPT, NoteLLMConfig
from model.generation import Vocabulary
from model.inference.engine import Engine
from model.inference.kv_cache import DEFAULT_BLOCKS
from model.inference.torch_runtime import TorchRuntime
from model.notellm import NoteLLM, save_generation_adapter
from tests.model.inference.samples import WORDS
from tests.models import COMMON, DEVICE, MIXED_LAYERS

ENDS = [" #", "#", "<|im_end|>", "\n"]
"""Texts of tokens that end a hashtag."""
SHORT_WINDOWS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**COMMON, use_sliding_window=True, sliding_window=16, layer_types=MIXED_LAYERS),
    "gemma3": Gemma3TextConfig(**COMMON, sliding_window=16, layer_types=MIXED_LAYERS),
    "mistral": MistralConfig(**COMMON, sliding_window=16),
}
"""Families with an attention window that is shorter than a note."""


def random_engine(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, version: str = DEFAULT_PROMPT
) -> Engine:
    """Return an engine on a `random_model`, on DEVICE."""
    model = random_model(config, tokenizer, version)
    return Engine(TorchRuntime(model.to(DEVICE).eval().requires_grad_(False)))


def random_model(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, version: str = DEFAULT_PROMPT
) -> NoteLLM:
    """Return a random float32 model of any family with the real tokenizer."""
    config = copy.deepcopy(config)  # tests share the configuration, and creating a model changes it
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 2
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return NoteLLM(NoteLLMConfig(name="random", dimension=32, prompt_version=version), backbone, tokenizer)


def add_random_generation_adapter(checkpoint: Path, rank: int = 4) -> None:
    """Add a random generation adapter to a checkpoint, with weights large enough to change what the model writes."""
    model = NoteLLM.load(str(checkpoint), cache=checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    adapter = model.add_adapter(rank)
    torch.manual_seed(1)
    for name, parameter in adapter.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    save_generation_adapter(adapter, checkpoint, cache=checkpoint)


def with_random_decoder(engine: Engine) -> Engine:
    """Give the engine's model a decoder: its own layers, changed at random."""
    model = engine.runtime.model
    config = model.backbone.config
    model.decoder = copy.deepcopy(model.backbone, {id(config): config})
    torch.manual_seed(3)
    for layer in model.decoder.base_model.layers.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data += 0.1 * torch.randn_like(layer.weight)
    return engine


def writes_only(engine: Engine, texts: Sequence[str], weights: Tensor, others: float = -torch.inf) -> Engine:
    """Make the engine's model write only tokens of `texts`, each with its row of `weights` (len(texts), H). `others` is
    the logit of all other tokens."""
    ids = [token_of(engine, text) for text in texts]
    output = nn.Linear(weights.shape[1], len(engine.runtime.model.tokenizer))
    nn.init.zeros_(output.weight)
    nn.init.constant_(output.bias, others)
    output.weight.data[ids] = weights
    output.bias.data[ids] = 0
    engine.runtime.model.backbone.set_output_embeddings(output.to(DEVICE).requires_grad_(False))
    return engine


def token_of(engine: Engine, text: str) -> int:
    """Return the id of the single token of `text`."""
    (token,) = engine.runtime.model.tokenizer(text, add_special_tokens=False).input_ids
    assert isinstance(token, int)
    return token


def random_rows(count: int, seed: int = 1) -> Tensor:
    """Return weights (count, 64) whose logits are random and so close that no token is nearly certain."""
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(seed)) / 4


def opposite_rows() -> Tensor:
    """Return weights (2, 64) of two tokens, one of which is nearly certain whatever the hidden state."""
    row = torch.randn(64, generator=torch.Generator().manual_seed(2))
    return torch.stack([row, -row])


def random_writer(tokenizer: PreTrainedTokenizerBase, version: str) -> Engine:
    """Return an engine on a random model that writes few words and many '#', so that its searches end at different
    steps and in different ways."""
    texts = [*ENDS, ".", *(f" {word}" for word in WORDS)]
    engine = random_engine(LlamaConfig(**COMMON), tokenizer, version)
    return writes_only(engine, texts, random_rows(len(texts)), others=-30)  # other tokens are needed for categories


def bigram_engine(tokenizer: PreTrainedTokenizerBase, bigrams: Mapping[str, Mapping[str, float]]) -> Engine:
    """Return an engine whose next token depends only on the last one. `bigrams[last]` are the probabilities of the next
    tokens, `bigrams[""]` those of a hashtag's first token. All other tokens have probability 0."""
    engine = random_engine(LlamaConfig(**COMMON), tokenizer)
    for layer in engine.runtime.model.backbone.base_model.layers:  # makes each layer the identity
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    embedding = engine.runtime.model.backbone.get_input_embeddings().weight
    nn.init.zeros_(embedding)
    texts = sorted({text for next_tokens in bigrams.values() for text in next_tokens})
    weights = torch.full((len(texts), 64), -1e3)
    for feature, (last, next_tokens) in enumerate(bigrams.items()):
        assert sum(next_tokens.values()) == pytest.approx(1)
        last_token = token_of(engine, last) if last else engine.prompt.hashtag_task(1)[-1]
        embedding.data[last_token, feature] = 1e3
        for text, probability in next_tokens.items():
            weights[texts.index(text), feature] = math.log(probability)
    return writes_only(engine, texts, weights / 8)  # the final norm scales the only non-zero feature to 8


def vocabulary_of(engine: Engine, hashtags: Sequence[str]) -> Vocabulary:
    """Return the vocabulary of `hashtags` in the engine's tokens."""
    vocabulary = engine.vocabulary()
    vocabulary.add(hashtags)
    return vocabulary


def fresh_engine(engine: Engine, blocks: int = DEFAULT_BLOCKS) -> Engine:
    """Return another engine on the same model, with its own empty KV cache."""
    return Engine(TorchRuntime(engine.runtime.model, blocks))
