"""Percentiles of measured times."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

SHOWN_PERCENTILES = (50, 95, 99)


def percentile(values: Sequence[float], q: int) -> float:
    """The `q`-th percentile, 0 < q < 100, of two values or more, interpolated between measured values: it is never
    above the largest (the method "inclusive" of `statistics.quantiles`)."""
    return statistics.quantiles(values, n=100, method="inclusive")[q - 1]


def percentile_ms(seconds: Sequence[float], q: int) -> float:
    """The `q`-th percentile of times in seconds, as milliseconds."""
    return 1000 * percentile(seconds, q)


def percentiles_text(seconds: Sequence[float], decimals: int) -> str:
    """Return p50, p95 and p99 of times in seconds as text, in milliseconds: "1.2 / 3.4 / 5.6"."""
    return " / ".join(f"{percentile_ms(seconds, q):.{decimals}f}" for q in SHOWN_PERCENTILES)
