"""OutputRows: batches of queries ask, together, what all spans ask."""

from __future__ import annotations

import numpy as np
import pytest

from model.inference.kv_cache import BlockPool, BlockTable
from model.inference.runtime import QUERIES_PER_BATCH, LogitQuery, OutputRows, Span


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
