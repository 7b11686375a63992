"""Percentiles of measured times."""

from __future__ import annotations

from benchmarks.harness.statistics import percentile


def test_percentile_is_not_above_the_largest_of_a_few_values():
    values = [float(n) for n in range(1, 61)]
    assert percentile(values, 99) <= 60
    assert percentile([1.0, 2.0], 99) <= 2
    assert percentile(values, 50) == 30.5
