"""The model's layers in PyTorch, on a CPU or a GPU: the reference, and what is there where no other runtime is.

Shapes: T tokens of a forward, G of its spans of like kind, Q tokens of the longest of them, S tokens of their longest
sequence, H hidden size, K heads of keys, E size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from model.inference.kv_cache import BLOCKS, BlockPool
from model.inference.runtime import OutputRows, PackedSpans, Span, SpanOutput
from model.notellm import NoteLLM
from model.prompt import Prompt

ATTENTION = "notellm-paged"
BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Group:
    """Spans that attend together. `rows` (G, Q): places of their tokens in the forward, 0 where there is none; `real`:
    which of the G x Q have one; `slots` (G, S): of their sequences in the cache; `looks` and `distance` (G, 1, Q, S).

    Places are numbers and not masks: how many a mask chooses only the device knows, and the forward would wait for it
    in each layer.
    """

    rows: Tensor
    real: Tensor
    slots: Tensor
    looks: Tensor
    distance: Tensor

    def to(self, device: torch.device) -> Group:
        return Group(*(getattr(self, name).to(device) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Paged:
    """What the attention of one forward needs beside the layer's own: where keys and values are written (T,), and the
    groups."""

    written: Tensor
    groups: list[Group]
    layers: dict[int, tuple[Tensor, Tensor]]
    slots: int


current: ContextVar[Paged] = ContextVar("current")


class TorchRuntime:
    """`model` is used as it is: also one in training, whose weights change between forwards."""

    def __init__(self, model: NoteLLM, blocks: int = BLOCKS) -> None:
        self.model = model
        self.config = model.config
        self.prompt: Prompt = model.prompt
        self.dimension = model.dimension
        self.precision = f"PyTorch {str(model.backbone.dtype).removeprefix('torch.')}"
        self.pool = BlockPool(blocks, BLOCK_TOKENS)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        """Keys and values of each layer, (slots, K, E)."""
        self._ends = torch.tensor(model.prompt.hashtag_ends, device=model.device)

    @property
    def space(self) -> str:
        return self.model.space

    @torch.inference_mode()
    def forward(self, spans: Sequence[Span]) -> list[SpanOutput]:
        flat = PackedSpans.of(spans)
        self._copy()
        device = self.model.device
        paged = Paged(
            torch.from_numpy(_written(spans)).to(device),
            [group.to(device) for group in _groups(spans, flat)],
            self._layers,
            self.pool.count * self.pool.tokens,
        )
        with using_attention(self.model, ATTENTION), as_current(paged):
            ids, positions = (torch.from_numpy(array)[:, None].to(device) for array in (flat.ids, flat.positions))
            # A mask that is given is not made: the attention has its own.
            none = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
            hidden = self.model(
                ids, self.model.mask_by_layer(none, torch.zeros_like(none, dtype=torch.int64)), positions
            )
        return self._read(spans, OutputRows.of(spans, flat.begins), hidden[:, 0])

    def _read(self, spans: Sequence[Span], asked: OutputRows, hidden: Tensor) -> list[SpanOutput]:
        vectors = self.model.embed(hidden[torch.from_numpy(asked.vectors).to(hidden.device)])
        looks = [self._look(part, hidden) for part in asked.parts()]
        return asked.told(spans, on_host(vectors), [tuple(map(on_host, each)) for each in looks])

    def _look(self, asked: OutputRows, hidden: Tensor) -> tuple[Tensor, ...]:
        rows, looks, tokens, apart = (
            torch.from_numpy(each).to(hidden.device)
            for each in (asked.looks, asked.token_looks, asked.tokens, asked.ends_apart)
        )
        after = self.model.logits(hidden[rows]).log_softmax(-1)
        of_tokens = after[looks, tokens]
        ended = after[:, self._ends].logsumexp(1)
        after[:, self._ends] = after[:, self._ends].masked_fill(apart[:, None], -torch.inf)
        best = after.topk(min(asked.width, after.shape[1]))
        return best.indices, best.values, ended, of_tokens

    def _copy(self) -> None:
        if copies := self.pool.take_copies():
            size = self.pool.tokens
            of, to = (torch.tensor(blocks, device=self.model.device) for blocks in zip(*copies, strict=True))
            for layer in self._layers.values():
                for cached in layer:
                    blocks = cached.view(-1, size, *cached.shape[1:])
                    blocks[to] = blocks[of]


def _written(spans: Sequence[Span]) -> Any:
    """(T,) int64: the slot of each token's key and value."""
    return np.concatenate([_slots(span)[span.past :] for span in spans])


def _slots(span: Span) -> Any:
    """(length,) int64: those of the whole sequence."""
    size = span.table.pool.tokens
    blocks = np.array(span.table.blocks, np.int64)
    return (blocks[:, None] * size + np.arange(size)).reshape(-1)[: span.past + len(span.ids)]


def _groups(spans: Sequence[Span], flat: PackedSpans) -> list[Group]:
    """Single steps together, and the rest: a step would be padded to the longest prefill."""
    steps = [i for i, span in enumerate(spans) if len(span.ids) == 1]
    others = [i for i, span in enumerate(spans) if len(span.ids) > 1]
    return [_group([spans[i] for i in places], places, flat) for places in (steps, others) if places]


def _group(spans: Sequence[Span], places: Sequence[int], flat: PackedSpans) -> Group:
    queries = max(len(span.ids) for span in spans)
    length = max(span.past + len(span.ids) for span in spans)
    rows = np.zeros((len(spans), queries), np.int64)
    real = np.zeros((len(spans), queries), np.bool_)
    slots = np.zeros((len(spans), length), np.int64)
    looks = np.zeros((len(spans), 1, queries, length), np.bool_)
    looks[..., 0] = True  # no row of a softmax may be empty, also where there is no token
    distance = np.zeros((len(spans), 1, queries, length), np.int64)
    for at, (place, span) in enumerate(zip(places, spans, strict=True)):
        begin, n, past = flat.begins[place], len(span.ids), span.past
        rows[at, :n] = np.arange(begin, begin + n)
        real[at, :n] = True
        slots[at, : past + n] = _slots(span)
        tree = flat.trees[place]
        looks[at, 0, :n, :past] = True
        looks[at, 0, :n, past : past + n] = np.tril(np.ones((n, n), np.bool_)) if tree is None else tree
        own = flat.positions[begin : begin + n]
        distance[at, 0, :n, : past + n] = own[:, None] - np.concatenate([np.arange(past), own])
    return Group(*map(torch.from_numpy, (rows, np.flatnonzero(real), slots, looks, distance)))


def on_host(values: Tensor) -> Any:
    """As an array: here, and nowhere before, a forward waits for its device."""
    return values.cpu().numpy()


@contextmanager
def using_attention(model: NoteLLM, name: str) -> Iterator[None]:
    """While this is open the model's layers attend so."""
    config = model.backbone.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def as_current(paged: Paged) -> Iterator[None]:
    token = current.set(paged)
    try:
        yield
    finally:
        current.reset(token)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it, one token a row. query: (T, heads, 1, E); key, value: (T, K, 1, E).

    The outcome is (T, 1, heads, E).
    """
    paged = current.get()
    query, key, value = query[:, :, 0], key[:, :, 0], value[:, :, 0]
    layer: Any = module.layer_idx
    if layer not in paged.layers:
        paged.layers[layer] = (
            key.new_zeros(paged.slots, *key.shape[1:]),
            value.new_zeros(paged.slots, *value.shape[1:]),
        )
    keys, values = paged.layers[layer]
    keys[paged.written] = key.to(keys.dtype)
    values[paged.written] = value.to(values.dtype)
    out = torch.empty(*query.shape[:2], value.shape[-1], dtype=query.dtype, device=query.device)
    for group in paged.groups:
        q = query[group.rows].transpose(1, 2)
        k, v = (cached[group.slots].transpose(1, 2).to(query.dtype) for cached in (keys, values))
        looks = group.looks if sliding_window is None else group.looks & (group.distance < sliding_window)
        attended = _attend(q, k, v, looks, scaling, softcap).transpose(1, 2).flatten(0, 1)
        out[group.rows.flatten()[group.real]] = attended[group.real].to(out.dtype)
    return out[:, None], None


def _attend(q: Tensor, k: Tensor, v: Tensor, looks: Tensor, scaling: float | None, softcap: float | None) -> Tensor:
    """(G, heads, Q, E)."""
    if softcap is None:
        attended: Tensor = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=looks, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        return attended
    k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    capped = softcap * torch.tanh(scores / softcap)
    return capped.masked_fill(~looks, -torch.inf).softmax(-1).to(v.dtype) @ v


AttentionInterface.register(ATTENTION, paged_attention)
