"""Runtime: the port between the engine, which works on notes and tokens, and the code that runs the model's layers.

A forward takes spans of any number of cached sequences, of any lengths, without padding, so prefills and decode steps
run side by side. It returns no hidden states, only the vectors and log probabilities that the spans ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from model.config import NoteLLMConfig
from model.inference.kv_cache import BlockPool, BlockTable
from model.prompt import Prompt

QUERIES_PER_BATCH = 64
"""Maximum rows of logits held at a time, each as long as the vocabulary: larger batches are no faster, and each row
takes 0.6 MB of the output layer's working memory (decision 9)."""
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
AttentionMask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LogitQuery:
    """A question about the token that follows the token at `index` of a span.

    It asks for the `top_k` most probable next tokens and for the log probabilities of `tokens`. `exclude_ends`: tokens
    that end a hashtag are left out of the `top_k`; their total probability is returned separately.
    """

    index: int
    top_k: int = 0
    tokens: tuple[int, ...] = ()
    exclude_ends: bool = True


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens appended to a cached sequence in one forward, and what to read from their hidden states.

    `table` has already grown by `ids`. `parents[i]` is the index in the span of the token that token i follows, -1 for
    the last token cached before; so a span can be a tree. Only the stem of a tree, its tokens before the second branch,
    may stay in the table afterwards. If `parents` is None, each token follows the one before it.

    `read_out`: index of the token whose state gives the vector. Up to that token a span is no tree and has no queries.
    If the checkpoint has a generation adapter, the trunk computes these tokens and the decoder all others.
    """

    table: BlockTable
    ids: tuple[int, ...]
    parents: tuple[int, ...] | None = None
    read_out: int | None = None
    queries: tuple[LogitQuery, ...] = ()

    @property
    def past(self) -> int:
        """Number of tokens cached before the span."""
        return self.table.length - len(self.ids)


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """Answer to a LogitQuery: log probabilities of the next token.

    `top_tokens` and `top_log_probs` (top_k,): the most probable tokens, best first. `end_log_prob`: that of all tokens
    that end a hashtag together. `log_probs`: those of the query's `tokens`, in order.
    """

    top_tokens: list[int]
    top_log_probs: list[float]
    end_log_prob: float
    log_probs: list[float]


@dataclass(slots=True)
class SpanOutput:
    """Values that a forward read from one span: `vector` (D,) of unit length, None without a `read_out`, and
    `token_log_probs`, one per query."""

    vector: Floats | None = None
    token_log_probs: list[TokenLogProbs] = field(default_factory=list)


class Runtime(Protocol):
    """One model on one machine. Not thread-safe.

    `pool` allocates its KV cache, `space` names the vector space, `precision` says which library computes and with
    which number formats, `number_format` is that of the trunk alone: "float32", "bfloat16" or "int8".
    """

    config: NoteLLMConfig
    prompt: Prompt
    precision: str
    number_format: str
    dimension: int
    pool: BlockPool

    @property
    def space(self) -> str: ...
    def forward(self, spans: Sequence[Span]) -> list[SpanOutput]:
        """Compute the spans and cache their keys and values; return one output per span, in order.

        Tables of one forward may share full blocks, but no block that one of them writes to.
        """


Forward = Callable[[Sequence[Span]], list[SpanOutput]]


def forward_in_two(spans: Sequence[Span], trunk: Forward, decoder: Forward) -> list[SpanOutput]:
    """Compute each span up to its read-out with `trunk`, and then all other tokens with `decoder`, which attends to
    what the trunk has cached. Returns one output per span, in order."""
    parts = [split_at_read_out(span) for span in spans]
    trunk_spans = [part for part, _ in parts if part is not None]
    decoder_spans = [part for _, part in parts if part is not None]
    trunk_outputs = iter(trunk(trunk_spans) if trunk_spans else [])
    decoder_outputs = iter(decoder(decoder_spans) if decoder_spans else [])
    outputs = []
    for trunk_span, decoder_span in parts:
        vector = None if trunk_span is None else next(trunk_outputs).vector
        answers = [] if decoder_span is None else next(decoder_outputs).token_log_probs
        outputs.append(SpanOutput(vector, answers))
    return outputs


def split_at_read_out(span: Span) -> tuple[Span | None, Span | None]:
    """Return the part of a span up to its read-out and the part after it; None for a part without tokens.

    The table of the first part is a view, which must be neither grown nor closed.
    """
    if span.read_out is None:
        return None, span
    begin = span.read_out + 1
    assert all(query.index >= begin for query in span.queries)
    length = span.past + begin
    view = BlockTable(span.table.pool, span.table.blocks[: span.table.pool.blocks_for(length)], length)
    before = Span(view, span.ids[:begin], read_out=span.read_out)
    if begin == len(span.ids):
        return before, None
    parents = span.parents and tuple(max(parent - begin, -1) for parent in span.parents[begin:])
    queries = tuple(replace(query, index=query.index - begin) for query in span.queries)
    return before, Span(span.table, span.ids[begin:], parents, queries=queries)


@dataclass(frozen=True, slots=True)
class PackedSpans:
    """Spans of one forward as one row of T tokens, without padding."""

    ids: Integers
    """(T,)"""
    positions: Integers
    """(T,): position of each token in its sequence."""
    past: Integers
    """(spans,): number of tokens cached before each span."""
    begins: Integers
    """(spans + 1,): index in the row at which each span begins, and T."""
    attention_masks: list[AttentionMask | None]
    """For each span that is a tree, (n, n): whether a token attends to another. None: plain causal attention."""

    @classmethod
    def of(cls, spans: Sequence[Span]) -> PackedSpans:
        """Concatenate `spans`."""
        attention_masks: list[AttentionMask | None] = []
        positions: list[int] = []
        for span in spans:
            if span.parents is None:
                attention_masks.append(None)
                positions += range(span.past, span.table.length)
            else:
                attention_mask, depth = tree_attention(span.parents)
                attention_masks.append(attention_mask)
                positions += (span.past + depth).tolist()
        return cls(
            np.array([token for span in spans for token in span.ids], np.int64),
            np.array(positions, np.int64),
            np.array([span.past for span in spans], np.int64),
            np.cumsum([0, *(len(span.ids) for span in spans)], dtype=np.int64),
            attention_masks,
        )


def tree_attention(parents: Sequence[int]) -> tuple[AttentionMask, Integers]:
    """Return the attention mask (n, n) of a tree, in which a token attends to itself and its ancestors, and the depth
    of each token (n,)."""
    attention_mask = np.zeros((len(parents), len(parents)), np.bool_)
    depth = np.zeros(len(parents), np.int64)
    for node, parent in enumerate(parents):
        if parent >= 0:
            attention_mask[node] = attention_mask[parent]
            depth[node] = depth[parent] + 1
        attention_mask[node, node] = True
    return attention_mask, depth


class BatchLogProbs(NamedTuple):
    """Answers of the output layer to one batch of queries."""

    top_tokens: Integers
    """(queries, top_k or more), the most probable first."""
    top_log_probs: Floats
    """(queries, top_k or more)"""
    end_log_probs: Floats
    """(queries,)"""
    log_probs: Floats
    """(tokens,): of the tokens that the queries name."""


@dataclass(frozen=True, slots=True)
class OutputRows:
    """Rows of packed hidden states (T, H) that the output layers read, in the order of the spans."""

    vectors: Integers
    """(vectors,): row of each vector."""
    queries: Integers
    """(queries,): row of each query."""
    top_k: int
    """Largest `top_k` of all queries."""
    exclude_ends: npt.NDArray[np.bool_]
    """(queries,)"""
    tokens: Integers
    """(tokens,): tokens named by all queries, in their order."""
    token_queries: Integers
    """(tokens,): query that names each token, as an index into `queries`."""

    @classmethod
    def of(cls, spans: Sequence[Span], begins: Integers) -> OutputRows:
        """Collect the rows of `spans`, which begin at `begins` in the packed row."""
        vectors: list[int] = []
        query_rows: list[int] = []
        queries: list[LogitQuery] = []
        for begin, span in zip(begins[:-1].tolist(), spans, strict=True):
            if span.read_out is not None:
                vectors.append(begin + span.read_out)
            query_rows += [begin + query.index for query in span.queries]
            queries += span.queries
        return cls(
            np.array(vectors, np.int64),
            np.array(query_rows, np.int64),
            max((query.top_k for query in queries), default=0),
            np.array([query.exclude_ends for query in queries], np.bool_),
            np.array([token for query in queries for token in query.tokens], np.int64),
            np.repeat(np.arange(len(queries)), [len(query.tokens) for query in queries]),
        )

    def batches(self) -> Iterator[OutputRows]:
        """Yield the queries, QUERIES_PER_BATCH at a time, with their tokens."""
        for begin in range(0, len(self.queries), QUERIES_PER_BATCH):
            rows = slice(begin, begin + QUERIES_PER_BATCH)
            tokens = slice(*np.searchsorted(self.token_queries, [rows.start, rows.stop]))
            yield replace(
                self,
                queries=self.queries[rows],
                exclude_ends=self.exclude_ends[rows],
                tokens=self.tokens[tokens],
                token_queries=self.token_queries[tokens] - begin,
            )

    @staticmethod
    def span_outputs(spans: Sequence[Span], vectors: Floats, batches: Sequence[BatchLogProbs]) -> list[SpanOutput]:
        """Assign `vectors` (vectors, D) and the answers to `batches()` to the spans that asked for them."""
        top_tokens: list[list[int]] = []
        top_log_probs: list[list[float]] = []
        end_log_probs: list[float] = []
        log_probs: list[float] = []
        for batch in batches:
            top_tokens += batch.top_tokens.tolist()
            top_log_probs += batch.top_log_probs.tolist()
            end_log_probs += batch.end_log_probs.tolist()
            log_probs += batch.log_probs.tolist()

        outputs = []
        vector_row = query_row = token_begin = 0
        for span in spans:
            output = SpanOutput()
            if span.read_out is not None:
                output.vector = vectors[vector_row]
                vector_row += 1
            for query in span.queries:
                token_end = token_begin + len(query.tokens)
                output.token_log_probs.append(
                    TokenLogProbs(
                        top_tokens[query_row][: query.top_k],
                        top_log_probs[query_row][: query.top_k],
                        end_log_probs[query_row],
                        log_probs[token_begin:token_end],
                    )
                )
                query_row += 1
                token_begin = token_end
            outputs.append(output)
        return outputs
