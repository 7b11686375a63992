"""Loss of writing: all outputs of a note, as branches of one tree, in one forward after the note's KV cache.

Shapes: B notes of a batch, P tokens of the longest prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from model.notellm import NoteLLM
from model.precision import bfloat16_pays
from model.training.student import pad_right
from model.training.writing_examples import WritingExample


@torch.no_grad()
def read_notes_into_cache(model: NoteLLM, examples: Sequence[WritingExample]) -> DynamicCache:
    """Prefill and return the KV cache (B, P) of the examples' prompts, padded on the right."""
    ids, lengths = pad_right([example.ids for example in examples])
    positions = torch.arange(ids.shape[1])
    cache = DynamicCache()
    with autocast():
        model(ids, (positions < lengths[:, None]).long(), positions.expand_as(ids), cache)
    return cache


def writing_loss(model: NoteLLM, examples: Sequence[WritingExample], cache: DynamicCache) -> Tensor:
    """Return the sum over the notes of their weighted cross-entropy. `cache` holds the notes; the forward appends the
    trees to it."""
    lengths = torch.tensor([len(example.ids) for example in examples])
    prompt_tokens = int(lengths.max())
    ids, _ = pad_right([example.tree.ids for example in examples])
    mask = torch.zeros(len(examples), 1, ids.shape[1], prompt_tokens + ids.shape[1], dtype=torch.bool)
    mask[:, 0, :, :prompt_tokens] = (torch.arange(prompt_tokens) < lengths[:, None])[:, None]
    positions = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        depths, tree_mask = example.tree.depths_and_mask()
        size = len(depths)
        mask[row, 0, :size, prompt_tokens : prompt_tokens + size] = tree_mask
        positions[row, :size] = len(example.ids) + torch.tensor(depths)
    distance = torch.zeros_like(mask, dtype=torch.int64)
    distance[:, 0, :, :prompt_tokens] = positions[:, :, None] - torch.arange(prompt_tokens)
    distance[:, 0, :, prompt_tokens:] = positions[:, :, None] - positions[:, None, :]
    targets = [(row, target) for row, example in enumerate(examples) for target in example.tree.targets]
    places = sorted({(row, target.at) for row, target in targets})
    index = {place: number for number, place in enumerate(places)}
    rows, columns = torch.tensor(places).T
    with autocast():
        hidden = model(ids, model.mask_by_layer(mask, distance), positions, cache)
        logits = model.logits(hidden[rows, columns])
    log_probs = logits.float().log_softmax(1)
    numbers = torch.tensor([index[row, target.at] for row, target in targets])
    tokens = torch.tensor([target.token for _, target in targets])
    weights = torch.tensor([target.weight for _, target in targets])
    return -(weights * log_probs[numbers, tokens]).sum()


def autocast() -> Any:
    """Return an autocast context for bfloat16 products, where that is faster."""
    return torch.autocast("cpu", torch.bfloat16) if bfloat16_pays("cpu") else nullcontext()
