"""Probing: how many lists and candidates a search takes, between and beyond what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from service.index.probing import MEASURED_K, Probing

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
