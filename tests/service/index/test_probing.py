"""Probing: how many lists and candidates a search takes, between and beyond what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from service.index.bitmaps import RowNumbers
from service.index.native import fast_scan, lists_of_rows, nearest_lists, search_lists, trained_codes, trained_ivf
from service.index.probing import MEASURED_K, MEASURED_QUERIES, RECALL, Probing, measure

LISTS = dict(zip(MEASURED_K, (10, 20, 40, 80, 160), strict=True))


@pytest.mark.parametrize(("k", "lists"), [(1, 10), (10, 10), (30, 20), (100, 40), (1000, 160), (10_000, 200)])
def test_lists_are_those_measured_and_beyond_in_proportion(k: int, lists: int) -> None:
    assert Probing(10_000, 200, LISTS, {}).lists_for(k) == lists


def test_lists_of_a_filter_grow_as_fewer_rows_pass() -> None:
    probing = Probing(10_000, 200, LISTS, {})
    assert [probing.lists_for(10, share) for share in (1.0, 0.5, 0.1, 0.0)] == [10, 20, 100, 200]


@pytest.mark.parametrize(("k", "candidates"), [(2.5, 60), (10, 120), (17.32, 170), (30, 240), (30.1, None)])
def test_candidates_end_with_what_was_measured(k: float, candidates: float | None) -> None:
    found = Probing(10_000, 200, LISTS, {10: 120, 30: 240}).candidates_for(k)
    assert found == (candidates and pytest.approx(candidates, rel=0.01))


def test_candidates_of_one_measurement_serve_up_to_it() -> None:
    probing = Probing(10_000, 200, LISTS, {10: 120})
    assert [probing.candidates_for(k) for k in (2.5, 10, 11)] == [60, 120, None]


def test_codes_scan_a_quarter_more_lists_but_never_more_than_there_are() -> None:
    probing = Probing(10_000, 170, LISTS, {})
    assert [probing.scanned_lists(k) for k in (10, 1000)] == [13, 170]


def test_probing_restored_equals_what_was_kept() -> None:
    probing = Probing(10_000, 200, LISTS, {10: 120, 30: 240})
    assert Probing.restored(10_000, 200, np.array(probing.by_k)) == probing


def test_measured_lists_and_candidates_find_the_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.index.probing.ROWS_PER_CANDIDATE", 1)
    monkeypatch.setattr("service.index.probing.CANDIDATES_PER_NEIGHBOUR", (10, 20, 40, 60, 80, 100, 120))
    rows, lists, dimension = 10_000, 100, 64
    rng = np.random.default_rng(1)
    turned, _ = np.linalg.qr(
        rng.standard_normal((dimension, dimension))
    )  # a rotation, so that all components vary alike
    vectors = (rng.standard_normal((rows, dimension)) / np.arange(1, dimension + 1)) @ turned
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    ivf = trained_ivf(vectors, lists)
    coded = trained_codes(ivf, vectors[::4])
    assert coded is not None
    ivf.add(vectors)
    coded.add(vectors)
    ivf.make_direct_map()
    codes = fast_scan(coded)

    np.testing.assert_array_equal(lists_of_rows(ivf, np.arange(rows)), nearest_lists(ivf, vectors, 1)[:, 0])
    probing = measure(ivf, codes)

    queries = vectors[:: rows // MEASURED_QUERIES]
    true_neighbours = search_lists(ivf, queries, MEASURED_K[-1] + 1, lists)

    def recall(found: RowNumbers, k: int) -> float:
        pairs = zip(found, true_neighbours[:, : k + 1], strict=True)
        return float(np.mean([len(np.intersect1d(rows, true)) - 1 for rows, true in pairs])) / k

    assert list(probing.lists_by_k) == list(MEASURED_K)
    for k, enough in probing.lists_by_k.items():
        assert recall(search_lists(ivf, queries, k + 1, enough), k) >= RECALL
    too_few = probing.lists_by_k[10] * 4 // 5
    assert 0 < recall(search_lists(ivf, queries, 11, too_few), 10) < RECALL
    assert probing.candidates_by_k
    for k, candidates in probing.candidates_by_k.items():
        assert recall(search_lists(codes, queries, candidates, probing.scanned_lists(k)), k) >= RECALL
