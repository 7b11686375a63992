"""Spans and what they ask: batches of queries ask, together, what all spans ask."""

from __future__ import annotations

import numpy as np
import pytest

from model.inference.kv_cache import BlockPool, BlockTable
from model.inference.runtime import QUERIES_PER_BATCH, LogitQuery, OutputRows, Span, split_at_read_out


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


def test_span_is_split_after_its_read_out() -> None:
    """The second part is the tree below the read-out, which it follows."""
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
