"""Words beside vectors: one score from both."""

from __future__ import annotations

import numpy as np

from service.ranking.strategies import Numbers

NO_WEIGHT_BELOW, WHOLE_WEIGHT_FROM = 0.15, 0.2
"""Bounds on the best word score of a query's candidates: below the first, words have none of their weight; from the
second on, all of it; in between, a part. Where no note shares more words with the query than any two long texts do,
words mislead (docs/log/words.md)."""

MIN_SPREAD = 1e-6
"""Word scores that differ by less count as equal: their deviation is only rounding error."""


def word_factor(content: Numbers, words: Numbers, weight: float) -> float:
    """Return the factor of word scores (N,) when they are added to content scores (N,) of the same candidates: weight
    std(content) / std(words); 0 where all word scores are equal.

    The deviations bring both to one scale in any vector space: the sum orders candidates as the weighted sum of
    z-scores does (distribution-based score fusion), and equals the content score for a note that shares no words.
    """
    if not len(words) or float(np.ptp(words)) < MIN_SPREAD:
        return 0.0
    return weight * float(content.std() / words.std())


def share_of_weight(words: Numbers) -> float:
    """Return the share, 0 to 1, of their weight that words have where the service chooses it, given the word scores
    (N,) of the candidates: it rises with the best of them."""
    best = float(words.max(initial=0.0))
    return float(np.clip((best - NO_WEIGHT_BELOW) / (WHOLE_WEIGHT_FROM - NO_WEIGHT_BELOW), 0.0, 1.0))
