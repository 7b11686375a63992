"""What computes: the port between the engine, which knows notes, and whoever runs the model's layers on a machine.

A forward takes spans of any number of cached sequences, of any lengths, without padding: prefills and single steps side
by side. It hands back no states, only what was asked to be read from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from model.config import NoteLLMConfig
from model.inference.kv_cache import BlockPool, BlockTable
from model.prompt import Prompt

QUERIES_PER_BATCH = 64
"""More are no faster, and each takes 0.6 MB of what the output layer works in."""
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LogitQuery:
    """What is asked about the token after a place: the `width` likeliest, and the log probabilities of `tokens`.

    `ends_apart`: the likeliest leave out those that end a hashtag.
    """

    place: int
    width: int = 0
    tokens: tuple[int, ...] = ()
    ends_apart: bool = True


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens that follow what `table` held before it was grown for them, and what is to be read from them.

    `parents`: the place in the span of the token that each one follows, -1 for the last one held before; so spans can
    be trees, of which nothing but the trunk may stay in the table. None: each follows the one before it. `vector`: the
    place whose state is the embedding.
    """

    table: BlockTable
    ids: tuple[int, ...]
    parents: tuple[int, ...] | None = None
    vector: int | None = None
    looks: tuple[LogitQuery, ...] = ()

    @property
    def past(self) -> int:
        """Tokens held before."""
        return self.table.length - len(self.ids)


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """`likeliest` tokens and their `log_probs` (width,), best first; `ended`: the log probability of all ends of a
    hashtag together; `of_tokens`: those of the tokens that were named."""

    likeliest: list[int]
    log_probs: list[float]
    ended: float
    of_tokens: list[float]


@dataclass(slots=True)
class SpanOutput:
    """What one span asked for. `vector` (D,) of unit length; `looked`: in the order of its looks."""

    vector: Floats | None = None
    looked: list[TokenLogProbs] = field(default_factory=list)


class Runtime(Protocol):
    """One model on one machine. Not thread-safe. `pool` is its cache; `space` names the vectors' space; `precision`
    says what computes, and how precisely."""

    config: NoteLLMConfig
    prompt: Prompt
    precision: str
    dimension: int
    pool: BlockPool

    @property
    def space(self) -> str: ...
    def forward(self, spans: Sequence[Span]) -> list[SpanOutput]:
        """What each span asked for, in order. Spans of one forward may share blocks, but not the last one's rest."""


@dataclass(frozen=True, slots=True)
class PackedSpans:
    """Spans as one row of tokens, T in all, as runtimes take them. All int64 but `trees`."""

    ids: Integers
    positions: Integers
    past: Integers
    """(spans,)"""
    begins: Integers
    """(spans + 1,): where in the row each span begins, and the end."""
    trees: list[npt.NDArray[np.bool_] | None]
    """Of each span that is no line: (n, n), whether a token may look at another one."""

    @classmethod
    def of(cls, spans: Sequence[Span]) -> PackedSpans:
        trees: list[npt.NDArray[np.bool_] | None] = []
        positions = []
        for span in spans:
            looks, depth = (None, np.arange(len(span.ids))) if span.parents is None else tree(span.parents)
            trees.append(looks)
            positions.append(span.past + depth)
        return cls(
            np.concatenate([np.array(span.ids, np.int64) for span in spans]),
            np.concatenate(positions).astype(np.int64),
            np.array([span.past for span in spans], np.int64),
            np.cumsum([0, *(len(span.ids) for span in spans)], dtype=np.int64),
            trees,
        )


def tree(parents: Sequence[int]) -> tuple[npt.NDArray[np.bool_], Integers]:
    """(n, n) which tokens each may look at: itself and those on the way to the root; and how deep each stands (n,)."""
    looks = np.zeros((len(parents), len(parents)), np.bool_)
    depth = np.zeros(len(parents), np.int64)
    for at, parent in enumerate(parents):
        if parent >= 0:
            looks[at] = looks[parent]
            depth[at] = depth[parent] + 1
        looks[at, at] = True
    return looks, depth


@dataclass(frozen=True, slots=True)
class OutputRows:
    """Rows of a flat forward whose states are asked for something, in the order of the spans."""

    vectors: Integers
    looks: Integers
    width: int
    """The largest of any look."""
    ends_apart: npt.NDArray[np.bool_]
    """(looks,)"""
    tokens: Integers
    """(tokens,): those that are named, of all looks; and (tokens,) the look of each."""
    token_looks: Integers

    @classmethod
    def of(cls, spans: Sequence[Span], begins: Integers) -> OutputRows:
        starts = begins[:-1].tolist()
        vectors = [start + s.vector for start, s in zip(starts, spans, strict=True) if s.vector is not None]
        looks = [(start + look.place, look) for start, s in zip(starts, spans, strict=True) for look in s.looks]
        return cls(
            np.array(vectors, np.int64),
            np.array([row for row, _ in looks], np.int64),
            max((look.width for _, look in looks), default=0),
            np.array([look.ends_apart for _, look in looks], np.bool_),
            np.array([token for _, look in looks for token in look.tokens], np.int64),
            np.repeat(np.arange(len(looks)), [len(look.tokens) for _, look in looks]),
        )

    def parts(self) -> Iterator[OutputRows]:
        """The looks, LOOKS_AT_ONCE at a time: a row of them is as long as the model's vocabulary."""
        for begin in range(0, len(self.looks), QUERIES_PER_BATCH):
            rows = slice(begin, begin + QUERIES_PER_BATCH)
            tokens = slice(*np.searchsorted(self.token_looks, [rows.start, rows.stop]))
            yield replace(
                self,
                looks=self.looks[rows],
                ends_apart=self.ends_apart[rows],
                tokens=self.tokens[tokens],
                token_looks=self.token_looks[tokens] - begin,
            )

    def told(self, spans: Sequence[Span], vectors: Floats, answers: Sequence[Sequence[Any]]) -> list[SpanOutput]:
        """Each span's own of the answers: for each of `parts` the likeliest (looks, width), their log probabilities,
        those of the ends (looks,), and of the tokens that were named (tokens,)."""
        vector = iter(vectors)
        likeliest, log_probs, ended, of_tokens = ([x for part in answers for x in part[i].tolist()] for i in range(4))
        rows = zip(likeliest, log_probs, ended, strict=True)
        of_token = iter(of_tokens)

        def looked(look: LogitQuery) -> TokenLogProbs:
            tokens, probs, end = next(rows)
            return TokenLogProbs(tokens[: look.width], probs[: look.width], end, [next(of_token) for _ in look.tokens])

        return [
            SpanOutput(None if span.vector is None else next(vector), [looked(look) for look in span.looks])
            for span in spans
        ]
