"""Gpu: copies of sealed segments on a card, or on a stand-in for one."""

from __future__ import annotations

import numpy as np
import pytest

from service.index.gpu import Gpu, find_gpu
from service.index.merging import MERGE_FACTOR
from service.index.native import swig, trained_ivf
from service.index.segmented import SegmentedIndex
from tests.service.index.reference import (
    ANY,
    clustered,
    do_jobs,
    vector_of,
)


def copies_on(card: Gpu) -> int:
    """Count the copies of inverted files that the card holds after unused ones are freed."""
    with card._exclusive():
        return sum(not isinstance(index, swig.IndexShards) for index in card._indexes.values())


def test_gpu_after_merges_holds_one_copy_of_each_segment(card: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.index.building.IVF_ROWS", 100)
    index = SegmentedIndex(16, growing_rows=100, gpu=card)
    before = copies_on(card)
    for n in range(100 * MERGE_FACTOR * MERGE_FACTOR + 1):
        index.upsert([clustered(n)])
        do_jobs(index)
        assert index.search(vector_of(clustered(n)), 1, ANY, 0.0)[0].id == f"c{n}"
    assert (index.segments, copies_on(card) - before) == (2, 1)


def test_gpu_copy_in_joined_index_stays_until_that_goes(card: Gpu) -> None:
    vectors = np.eye(4, dtype=np.float32)
    index = trained_ivf(vectors, lists=1)
    index.add(vectors)
    copy = card.copy(index, lists=1)
    assert copy is not None
    joined = card.concatenate([copy, index])
    copy_number, joined_number = copy._number, joined._number
    del copy
    scores, rows = joined.search(vectors[:1], 2)
    assert (scores.tolist(), sorted(rows[0].tolist())) == ([[1.0, 1.0]], [0, 4])
    assert copy_number not in card._indexes
    del joined
    with card._exclusive():
        assert joined_number not in card._indexes


def test_gpu_without_room_leaves_search_to_processor(card: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(swig, "index_cpu_to_gpu", full)
    monkeypatch.setattr("service.index.building.IVF_ROWS", 100)
    index = SegmentedIndex(16, growing_rows=100, gpu=card)
    index.upsert([clustered(n) for n in range(100 * MERGE_FACTOR + 1)])
    do_jobs(index)
    assert [index.search(vector_of(clustered(n)), 1, ANY, 0.0)[0].id for n in (5, 400)] == ["c5", "c400"]


def test_find_gpu_without_card_returns_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swig, "get_num_gpus", lambda: 0)
    assert find_gpu() is None
