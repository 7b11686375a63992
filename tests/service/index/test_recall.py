"""RecallSampler in a LiveIndex: sampled searches are repeated exactly."""

from __future__ import annotations

import math
from typing import Any

import pytest

from service.filters import Filter
from service.index.segmented import SegmentedIndex
from service.interfaces import Clock
from service.records import Hit, Vector
from tests.service.conftest import GatedStore, eventually, following
from tests.service.index.live_steps import WAIT, find_ids, notes, put

pytestmark = pytest.mark.anyio


async def test_recall_damaged_search_lowers_the_mean(
    embedded_store: GatedStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.index.recall.SAMPLE_SECONDS", 0.0)
    async with following(embedded_store, clock, growing_rows=2) as index:
        await index.wait_for(await put(embedded_store, *notes(20)), WAIT)
        assert math.isnan(index.status().recall_sampled)
        await find_ids(index)
        await eventually(lambda: index.status().recall_sampled == 1.0)
        undamaged = SegmentedIndex.search

        def damaged(index: SegmentedIndex, vector: Vector, k: int, where: Filter, *options: Any) -> list[Hit]:
            hits = undamaged(index, vector, k, where, *options)
            return hits if where.exact else hits[1:]

        monkeypatch.setattr(SegmentedIndex, "search", damaged)
        await find_ids(index)
        await eventually(lambda: index.status().recall_sampled == (1.0 + 19 / 20) / 2)
