"""Tests of packed spans: batches of their logit queries, groups for attention, and splits at the read-out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from model.inference.kv_cache import BlockPool, BlockTable
from model.inference.runtime import (
    QUERIES_PER_BATCH,
    LogitQuery,
    OutputRows,
    PackedSpans,
    Span,
    split_at_read_out,
)
from model.inference.torch_runtime import MAX_UNSPLIT_CELLS, groups_of


@pytest.mark.parametrize("count", [0, 1, QUERIES_PER_BATCH, QUERIES_PER_BATCH + 1, 3 * QUERIES_PER_BATCH - 1])
def test_batches_hold_every_query_and_its_tokens(count: int) -> None:
    pool = BlockPool(1000, 4)
    spans = []
    for first in range(0, count, 100):
        length = min(100, count - first)
        table = BlockTable(pool)
        table.grow(length)
        queries = tuple(LogitQuery(i, i % 3, tuple(range(i % 5)), i % 2 == 0) for i in range(length))
        spans.append(Span(table, (7,) * length, queries=queries))
    whole = OutputRows.of(spans, np.cumsum([0, *(len(span.ids) for span in spans)]))
    batches = list(whole.batches())
    assert all(len(batch.queries) <= QUERIES_PER_BATCH for batch in batches)
    tokens = [
        (int(batch.queries[query]), int(token))
        for batch in batches
        for query, token in zip(batch.token_queries, batch.tokens, strict=True)
    ]
    assert tokens == [(int(whole.queries[i]), int(t)) for i, t in zip(whole.token_queries, whole.tokens, strict=True)]
    for name in ("queries", "exclude_ends"):
        joined = [value for batch in batches for value in getattr(batch, name).tolist()]
        assert joined == getattr(whole, name).tolist()


def cells_by_group(shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Number of spans and of attention-mask cells in each group, for spans of `shapes`: (cached tokens, own tokens)."""
    pool = BlockPool(5000, 32)
    spans = []
    for past, count in shapes:
        table = BlockTable(pool)
        table.grow(past + count)
        spans.append(Span(table, (7,) * count))
    groups = groups_of(spans, PackedSpans.of(spans))
    return [(len(group.rows), group.attention_mask.numel()) for group in groups]


def test_short_spans_are_not_padded_to_a_long_one() -> None:
    shapes = [(0, 40)] * 8 + [(60, 1110)] + [(0, 40)] * 7
    assert cells_by_group(shapes) == [(15, 15 * 40 * 40), (1, 1110 * 1170)]


def test_padding_at_most_doubles_the_cells_of_large_groups() -> None:
    shapes = [(past, count) for count in range(2, 1200, 50) for past in (0, 5, 900)]
    cells = cells_by_group(shapes)
    own = sum(count * (past + count) for past, count in shapes)
    assert own < sum(count for _, count in cells) <= 2 * own + MAX_UNSPLIT_CELLS
    assert sum(spans for spans, _ in cells) == len(shapes)
    assert len(cells) <= len(shapes) / 4


def test_few_cells_stay_in_a_group_beside_the_decode_steps() -> None:
    shapes = [(30, 1), (0, 8), (90, 1), (0, 90), (200, 9)]
    assert cells_by_group(shapes) == [(2, 2 * 91), (3, 3 * 90 * 209)]


def test_span_is_split_after_its_read_out() -> None:
    """The second part is the token tree that follows the read-out."""
    table = BlockTable(BlockPool(10, 4))
    table.grow(3 + 5)
    queries = (LogitQuery(3, 2), LogitQuery(4, tokens=(9,)))
    span = Span(table, (1, 2, 3, 4, 5), (-1, 0, 1, 2, 2), read_out=2, queries=queries)
    note, tasks = split_at_read_out(span)
    assert note is not None
    assert tasks is not None
    assert (note.past, note.ids, note.parents, note.read_out, note.queries) == (3, (1, 2, 3), None, 2, ())
    assert note.table.blocks == table.blocks[:2]
    assert (tasks.past, tasks.ids, tasks.parents, tasks.read_out) == (6, (4, 5), (-1, -1), None)
    assert tasks.queries == (LogitQuery(0, 2), LogitQuery(1, tokens=(9,)))
    assert table.length == 8


def test_span_without_a_part_is_not_split() -> None:
    table = BlockTable(BlockPool(10, 4))
    table.grow(2)
    step, note = Span(table, (1,)), Span(table, (1, 2), read_out=1)
    assert split_at_read_out(step) == (None, step)
    assert split_at_read_out(note) == (note, None)
