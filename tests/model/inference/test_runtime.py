"""Asked: parts of the looks together ask for what all of them ask for."""

from __future__ import annotations

import numpy as np
import pytest

from model.inference.kv_cache import BlockPool, BlockTable
from model.inference.runtime import QUERIES_PER_BATCH, LogitQuery, OutputRows, Span


@pytest.mark.parametrize("looks", [0, 1, QUERIES_PER_BATCH, QUERIES_PER_BATCH + 1, 3 * QUERIES_PER_BATCH - 1])
def test_parts_ask_for_every_look_and_each_of_its_tokens(looks: int) -> None:
    pool = BlockPool(1000, 4)
    spans = []
    for first in range(0, looks, 100):
        count = min(100, looks - first)
        table = BlockTable(pool)
        table.grow(count)
        asked = tuple(LogitQuery(at, at % 3, tuple(range(at % 5)), at % 2 == 0) for at in range(count))
        spans.append(Span(table, (7,) * count, looks=asked))
    whole = OutputRows.of(spans, np.cumsum([0, *(len(span.ids) for span in spans)]))
    parts = list(whole.parts())
    assert all(len(part.looks) <= QUERIES_PER_BATCH for part in parts)
    tokens = [
        (int(part.looks[look]), int(token))
        for part in parts
        for look, token in zip(part.token_looks, part.tokens, strict=True)
    ]
    assert tokens == [(int(whole.looks[i]), int(t)) for i, t in zip(whole.token_looks, whole.tokens, strict=True)]
    for name in ("looks", "ends_apart"):
        joined = [value for part in parts for value in getattr(part, name).tolist()]
        assert joined == getattr(whole, name).tolist()
