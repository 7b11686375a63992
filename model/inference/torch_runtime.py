"""TorchRuntime: the model's layers in PyTorch, on a CPU or a GPU. The reference implementation, and the fallback of
other runtimes.

Shapes: T tokens of a forward; G spans of a group, Q tokens of its longest span, S tokens of its longest sequence;
H hidden size, K key-value heads, E size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from model.inference.kv_cache import DEFAULT_BLOCKS, BlockPool
from model.inference.runtime import BatchLogProbs, Integers, OutputRows, PackedSpans, Span, SpanOutput, forward_in_two
from model.notellm import NoteLLM
from model.prompt import Prompt

ATTENTION = "notellm-paged"
BLOCK_TOKENS = 32
"""Tokens of a cache block. DEFAULT_BLOCKS assumes this size."""
MAX_UNSPLIT_CELLS = 1 << 20
"""Maximum size of an attention mask (G * Q * S cells) up to which spans stay in one group, however much of it is
padding: the mask takes 1 MiB, and each further group costs several kernels in every layer."""


@dataclass(frozen=True, slots=True)
class Group:
    """Spans whose attention is computed together, padded to the longest of them.

    `rows` (G, Q): row of each token in the forward, 0 for padding. `valid`: flat indices into (G, Q) of the tokens that
    are not padding. `slots` (G, S): cache slots of the sequences. `attention_mask` (G, 1, Q, S): whether a token
    attends to another. `query_positions` (G, Q) and `key_positions` (G, S), int32: position of each token in its
    sequence, for layers with a sliding window.

    `valid` holds indices rather than a mask: how many rows a mask selects is known only on the device, and each layer
    would have to wait for it.
    """

    rows: Tensor
    valid: Tensor
    slots: Tensor
    attention_mask: Tensor
    query_positions: Tensor
    key_positions: Tensor

    def to(self, device: torch.device) -> Group:
        """Copy to `device`."""
        return Group(*(getattr(self, name).to(device) for name in self.__slots__))

    def within(self, window: int) -> Tensor:
        """Return `attention_mask` without the tokens that lie `window` positions back or more."""
        distance = self.query_positions[:, None, :, None] - self.key_positions[:, None, None, :]
        return self.attention_mask & (distance < window)


@dataclass(frozen=True, slots=True)
class PagedForward:
    """Inputs of the attention of one forward besides the layer's own: `write_slots` (T,) for keys and values, the
    groups of spans, and the cache: keys and values (slots, K, E) of each layer."""

    write_slots: Tensor
    groups: list[Group]
    cache_by_layer: dict[int, tuple[Tensor, Tensor]]
    slot_count: int


current_forward: ContextVar[PagedForward] = ContextVar("current_forward")


class TorchRuntime:
    """Runtime around a NoteLLM, which it does not modify. The model may be in training, so that its weights change
    between forwards."""

    def __init__(self, model: NoteLLM, blocks: int = DEFAULT_BLOCKS) -> None:
        self.model = model
        self.config = model.config
        self.prompt: Prompt = model.prompt
        self.dimension = model.dimension
        self.number_format = str(model.backbone.dtype).removeprefix("torch.")
        self.precision = f"PyTorch {self.number_format}"
        self.pool = BlockPool(blocks, BLOCK_TOKENS)
        self._cache_by_layer: dict[int, tuple[Tensor, Tensor]] = {}
        self._ends = torch.tensor(model.prompt.hashtag_ends, device=model.device)

    @property
    def space(self) -> str:
        return self.model.space

    @torch.inference_mode()
    def forward(self, spans: Sequence[Span]) -> list[SpanOutput]:
        self._copy_blocks()
        if self.model.decoder is None:
            return self._forward(spans)
        return forward_in_two(spans, self._forward, partial(self._forward, decode=True))

    def _forward(self, spans: Sequence[Span], decode: bool = False) -> list[SpanOutput]:
        """Run all tokens of `spans` through the trunk, or through the decoder."""
        packed = PackedSpans.of(spans)
        device = self.model.device
        forward = PagedForward(
            torch.from_numpy(_write_slots(spans)).to(device),
            [group.to(device) for group in groups_of(spans, packed)],
            self._cache_by_layer,
            self.pool.count * self.pool.block_size,
        )
        ids = torch.from_numpy(packed.ids)[:, None].to(device)
        positions = torch.from_numpy(packed.positions)[:, None].to(device)
        # A dummy, since transformers builds a mask if none is passed. The paged attention ignores it.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        with using_attention(self.model, ATTENTION), as_current(forward):
            mask_by_layer = self.model.mask_by_layer(mask, torch.zeros_like(mask, dtype=torch.int64))
            hidden = self.model(ids, mask_by_layer, positions, decode=decode)
        return self._read(spans, OutputRows.of(spans, packed.begins), hidden[:, 0])

    def _read(self, spans: Sequence[Span], rows: OutputRows, hidden: Tensor) -> list[SpanOutput]:
        """Read what `spans` ask for from the hidden states (T, H)."""
        vectors = self.model.embed(hidden[torch.from_numpy(rows.vectors).to(hidden.device)])
        batches = [self._answer(batch, hidden) for batch in rows.batches()]
        return rows.span_outputs(
            spans, on_host(vectors), [BatchLogProbs(*map(on_host, tensors)) for tensors in batches]
        )

    def _answer(self, batch: OutputRows, hidden: Tensor) -> tuple[Tensor, ...]:
        """Return the fields of BatchLogProbs for one batch of queries, on the device."""
        device = hidden.device
        query_rows = torch.from_numpy(batch.queries).to(device)
        token_queries = torch.from_numpy(batch.token_queries).to(device)
        tokens = torch.from_numpy(batch.tokens).to(device)
        exclude_ends = torch.from_numpy(batch.exclude_ends).to(device)
        next_token = self.model.logits(hidden[query_rows]).log_softmax(-1)
        log_probs = next_token[token_queries, tokens]
        end_log_probs = next_token[:, self._ends].logsumexp(1)
        next_token[:, self._ends] = next_token[:, self._ends].masked_fill(exclude_ends[:, None], -torch.inf)
        top = next_token.topk(min(batch.top_k, next_token.shape[1]))
        return top.indices, top.values, end_log_probs, log_probs

    def _copy_blocks(self) -> None:
        """Execute the block copies that `pool` has queued (copy-on-write)."""
        copies = self.pool.take_copies()
        if not copies:
            return
        sources, targets = (torch.tensor(blocks, device=self.model.device) for blocks in zip(*copies, strict=True))
        for keys_and_values in self._cache_by_layer.values():
            for cached in keys_and_values:
                blocks = cached.view(-1, self.pool.block_size, *cached.shape[1:])
                blocks[targets] = blocks[sources]


def _write_slots(spans: Sequence[Span]) -> Integers:
    """Return the cache slot of each token's key and value, shape (T,)."""
    return np.concatenate([_sequence_slots(span)[span.past :] for span in spans])


def _sequence_slots(span: Span) -> Integers:
    """Return the cache slots of a whole sequence, those of `span` last, shape (length,)."""
    block_size = span.table.pool.block_size
    blocks = np.array(span.table.blocks, np.int64)
    return (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)[: span.past + len(span.ids)]


def groups_of(spans: Sequence[Span], packed: PackedSpans) -> list[Group]:
    """Group decode steps apart from longer spans, and within both spans of like size."""
    steps = [i for i, span in enumerate(spans) if len(span.ids) == 1]
    longer = [i for i, span in enumerate(spans) if len(span.ids) > 1]
    groups = [group for indices in (steps, longer) for group in _of_like_size(spans, indices)]
    return [_group([spans[i] for i in indices], indices, packed) for indices in groups]


def _of_like_size(spans: Sequence[Span], indices: Sequence[int]) -> list[list[int]]:
    """Split `indices` of spans so that padding at most doubles the cells of attention of a group that has more than
    MAX_UNSPLIT_CELLS."""
    shapes = {i: (len(spans[i].ids), spans[i].past + len(spans[i].ids)) for i in indices}
    groups: list[list[int]] = []
    cells = queries = length = 0  # of the last group: cells without padding, and the shape that its spans are padded to
    for i in sorted(indices, key=lambda i: math.prod(shapes[i])):
        own = math.prod(shapes[i])
        padded = (max(queries, shapes[i][0]), max(length, shapes[i][1]))
        if groups and (len(groups[-1]) + 1) * math.prod(padded) <= max(2 * (cells + own), MAX_UNSPLIT_CELLS):
            groups[-1].append(i)
            cells, (queries, length) = cells + own, padded
        else:
            groups.append([i])
            cells, (queries, length) = own, shapes[i]
    return groups


def _group(spans: Sequence[Span], indices: Sequence[int], packed: PackedSpans) -> Group:
    """Return the group of `spans`, which have `indices` in `packed`."""
    queries = max(len(span.ids) for span in spans)
    length = max(span.past + len(span.ids) for span in spans)
    rows = np.zeros((len(spans), queries), np.int64)
    is_token = np.zeros((len(spans), queries), np.bool_)
    slots = np.zeros((len(spans), length), np.int64)
    attention_mask = np.zeros((len(spans), 1, queries, length), np.bool_)
    attention_mask[..., 0] = True  # no row of a softmax may be empty, not even that of padding
    query_positions = np.zeros((len(spans), queries), np.int32)
    key_positions = np.zeros((len(spans), length), np.int32)
    for i, (index, span) in enumerate(zip(indices, spans, strict=True)):
        begin, n, past = packed.begins[index], len(span.ids), span.past
        rows[i, :n] = np.arange(begin, begin + n)
        is_token[i, :n] = True
        slots[i, : past + n] = _sequence_slots(span)
        tree_mask = packed.attention_masks[index]
        within_span = np.tril(np.ones((n, n), np.bool_)) if tree_mask is None else tree_mask
        attention_mask[i, 0, :n, :past] = True
        attention_mask[i, 0, :n, past : past + n] = within_span
        query_positions[i, :n] = packed.positions[begin : begin + n]
        key_positions[i, :past] = np.arange(past)
        key_positions[i, past : past + n] = query_positions[i, :n]
    arrays = (rows, np.flatnonzero(is_token), slots, attention_mask, query_positions, key_positions)
    return Group(*map(torch.from_numpy, arrays))


def on_host(values: Tensor) -> Any:
    """Return `values` as an array. A forward waits for its device only here."""
    return values.cpu().numpy()


@contextmanager
def using_attention(model: NoteLLM, name: str) -> Iterator[None]:
    """Make the model's layers use the attention registered as `name` inside the block."""
    config = model.backbone.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def as_current(forward: PagedForward) -> Iterator[None]:
    """Make `forward` the one that `paged_attention` reads inside the block."""
    token = current_forward.set(forward)
    try:
        yield
    finally:
        current_forward.reset(token)


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
    """Attention over the paged cache, with the signature that transformers calls, one token per row.

    `query`: (T, heads, 1, E); `key` and `value`: (T, K, 1, E). Returns (T, 1, heads, E). `attention_mask` is ignored:
    `current_forward` has its own.
    """
    forward = current_forward.get()
    query, key, value = query[:, :, 0], key[:, :, 0], value[:, :, 0]
    layer: Any = module.layer_idx
    if layer not in forward.cache_by_layer:
        forward.cache_by_layer[layer] = (
            key.new_zeros(forward.slot_count, *key.shape[1:]),
            value.new_zeros(forward.slot_count, *value.shape[1:]),
        )
    keys, values = forward.cache_by_layer[layer]
    keys[forward.write_slots] = key.to(keys.dtype)
    values[forward.write_slots] = value.to(values.dtype)
    out = torch.empty(*query.shape[:2], value.shape[-1], dtype=query.dtype, device=query.device)
    for group in forward.groups:
        q = query[group.rows].transpose(1, 2)
        k, v = (cached[group.slots].transpose(1, 2).to(query.dtype) for cached in (keys, values))
        mask = group.attention_mask if sliding_window is None else group.within(sliding_window)
        attended = _attend(q, k, v, mask, scaling, softcap).transpose(1, 2).flatten(0, 1)
        out[group.rows.flatten()[group.valid]] = attended[group.valid].to(out.dtype)
    return out[:, None], None


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None, softcap: float | None) -> Tensor:
    """Softmax attention of one group, shape (G, heads, Q, E). `softcap` bounds the scores as in Gemma 2."""
    if softcap is None:
        attended: Tensor = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        return attended
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    capped = softcap * torch.tanh(scores / softcap)
    return capped.masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype) @ v


AttentionInterface.register(ATTENTION, paged_attention)
