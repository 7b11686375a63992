"""Ancestral sampling from a causal language model: one line of text for each prompt of a batch.

Serving decodes by beam search (model/inference); this generates texts, for which variety is wanted.

Shapes: B prompts of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer

from model.notellm import NoteLLM

TEMPERATURE = 0.9
MIN_PROBABILITY_RATIO = 0.05
"""Tokens less likely than this share of the likeliest one are never drawn, which keeps a small model on its topic
(min-p sampling, Nguyen et al. 2024)."""
MIN_LIVE_SHARE = 0.75
"""Finished rows are removed from the batch once fewer than this share of its rows are unfinished."""

CACHE_STEP = 64
"""Tokens by which a layer's KV cache grows when it is full."""


class SteppedLayer(DynamicLayer):
    """KV cache of one layer, with room for more tokens than it holds.

    DynamicLayer copies its whole cache for each token, which took a fifth of the time of a batch of 96 notes.
    """

    _key_room: Tensor | None = None
    _value_room: Tensor | None = None
    """Buffers (B, heads, room, head size), of which `keys` and `values` are the first tokens."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append states (B, heads, T, head size); returns all keys and all values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._key_room, self.keys = append(self._key_room, self.keys, key_states)
        self._value_room, self.values = append(self._value_room, self.values, value_states)
        return self.keys, self.values


def append(room: Tensor | None, held: Tensor | None, states: Tensor) -> tuple[Tensor, Tensor]:
    """Append `states` (B, heads, T, head size) to `held`, in `room`; returns the room and what is held in it now.

    A room that is full, or that has other rows than `states`, is replaced by one for CACHE_STEP more tokens.
    """
    rows, heads, tokens, size = states.shape
    start = held.shape[2] if held is not None and held.numel() else 0
    if room is None or len(room) != rows or room.shape[2] < start + tokens:
        room = states.new_empty(rows, heads, start + tokens + CACHE_STEP, size)
        if held is not None and start:
            room[:, :, :start] = held
    room[:, :, start : start + tokens] = states
    return room, room[:, :, : start + tokens]


class Sampler:
    """Continues prompts line by line. `seed` makes the texts repeatable on one machine and number of threads."""

    def __init__(self, model: NoteLLM, seed: int = 0) -> None:
        self.model = model
        self.tokenizer = model.tokenizer
        self._random = torch.Generator().manual_seed(seed)
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        line_ends = {token for token, text in enumerate(texts) if "\n" in text}
        self._ends = torch.tensor(sorted({*line_ends, int(self.tokenizer.eos_token_id)}))

    @torch.inference_mode()
    def write(self, context: str, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """Continue each of `prompts` to the end of its line, by at most `max_tokens`; returns the continuations.

        `context` precedes every prompt; its KV cache is computed once.
        """
        (context_ids,) = self.tokenizer([context], add_special_tokens=False).input_ids
        rows: list[list[int]] = self.tokenizer(list(prompts), add_special_tokens=False).input_ids
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        prompt_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        cache = Cache(layer_class_to_replicate=SteppedLayer)
        self._logits(torch.tensor([context_ids]), torch.ones(1, len(context_ids), dtype=torch.int64), cache)
        cache.batch_repeat_interleave(len(rows))
        mask = torch.cat([torch.ones(len(rows), len(context_ids), dtype=torch.int64), prompt_mask], 1)

        outputs: list[list[int]] = [[] for _ in rows]
        batch_rows = torch.arange(len(rows))
        live = torch.ones(len(rows), dtype=torch.bool)
        for _ in range(max_tokens):
            tokens = self._draw(self._logits(ids, mask, cache))
            live = live & ~torch.isin(tokens, self._ends)
            for row, token in zip(batch_rows[live].tolist(), tokens[live].tolist(), strict=True):
                outputs[row].append(token)
            if not live.any():
                break
            if live.sum() < MIN_LIVE_SHARE * len(batch_rows):
                cache.batch_select_indices(live.nonzero()[:, 0])
                batch_rows, tokens, mask, live = batch_rows[live], tokens[live], mask[live], live[live]
            ids = tokens[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
        return [str(text) for text in self.tokenizer.batch_decode(outputs, skip_special_tokens=True)]

    def _logits(self, ids: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """Logits (B, V) float32 after the last of `ids` (B, T); `mask` (B, cached + T) is 0 at padding."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return self.model.logits(self.model(ids, mask, positions, cache)[:, -1])

    def _draw(self, logits: Tensor) -> Tensor:
        """Draw one token (B,) int64 from each row of logits (B, V), by the Gumbel-max trick."""
        scaled = logits / TEMPERATURE
        threshold = scaled.max(1, keepdim=True).values + math.log(MIN_PROBABILITY_RATIO)
        rows, tokens = (scaled >= threshold).nonzero(as_tuple=True)
        noise = torch.empty(len(rows)).exponential_(generator=self._random).log()
        scores = torch.full_like(scaled, -torch.inf)
        scores[rows, tokens] = scaled[rows, tokens] - noise
        return scores.argmax(1)
