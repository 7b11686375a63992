"""Words beside vectors: one score from both."""

from __future__ import annotations

from service.ranking.strategies import Numbers


def word_factor(content: Numbers, words: Numbers, weight: float) -> float:
    """Return what word scores (N,) are multiplied by before they are added to content scores (N,) of the same
    candidates: weight std(content) / std(words); 0 where all word scores are equal.

    The deviations bring both to one scale, whatever the model's vector space is like: the sum orders candidates as the
    weighted sum of z-scores does (distribution-based score fusion), and stays a content score for a note without words.
    """
    deviation = float(words.std()) if len(words) else 0.0
    return weight * float(content.std()) / deviation if deviation else 0.0
