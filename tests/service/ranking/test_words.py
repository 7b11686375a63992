"""The weight of words beside vectors."""

from __future__ import annotations

import numpy as np
import pytest

from service.ranking.words import NO_WEIGHT_BELOW, WHOLE_WEIGHT_FROM, share_of_weight, word_factor

CONTENT = np.array([0.9, 0.5, 0.1])
MIDDLE = (NO_WEIGHT_BELOW + WHOLE_WEIGHT_FROM) / 2


def test_words_bring_their_scores_to_the_deviation_of_the_content() -> None:
    words = np.array([0.3, 0.1, 0.0])
    assert (word_factor(CONTENT, words, 0.5) * words).std() == pytest.approx(0.5 * CONTENT.std())


@pytest.mark.parametrize("words", [np.full(3, 0.7), np.zeros(3), np.zeros(0)])
def test_words_that_are_equal_have_no_say(words: np.ndarray) -> None:
    assert word_factor(CONTENT[: len(words)], words, 0.5) == 0.0


@pytest.mark.parametrize(
    ("best", "share"),
    [(0.0, 0.0), (NO_WEIGHT_BELOW, 0.0), (MIDDLE, 0.5), (WHOLE_WEIGHT_FROM, 1.0), (1.0, 1.0)],
)
def test_share_of_weight_rises_with_the_best_word_score(best: float, share: float) -> None:
    assert share_of_weight(np.array([0.0, best, 0.0])) == pytest.approx(share)
    assert share_of_weight(np.zeros(0)) == 0.0
