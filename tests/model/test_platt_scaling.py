"""Top-label Platt scaling: the highest probability, and the order of all."""

from __future__ import annotations

import numpy as np
import pytest

from model.platt_scaling import UNSCALED, fit_platt_weights, scale_top

PROBABILITIES = np.array([0.2, 0.7, 0.1])


def test_weights_of_no_scaling_change_nothing() -> None:
    assert scale_top(PROBABILITIES, np.array(UNSCALED)) == pytest.approx(PROBABILITIES)


def test_highest_probability_is_scaled_and_the_others_share_the_rest() -> None:
    scaled = scale_top(PROBABILITIES, np.array([0.5, 0.0]))
    top = 1 / (1 + np.exp(-0.5 * np.log(0.7 / 0.3)))
    assert scaled == pytest.approx([(1 - top) * 2 / 3, top, (1 - top) / 3])


@pytest.mark.parametrize("weights", [(0.0, -9.0), (1.0, -2.0), (0.1, 0.0)])
def test_highest_probability_stays_the_highest_and_all_sum_to_one(weights: tuple[float, float]) -> None:
    for probabilities in (PROBABILITIES, np.array([0.5, 0.5]), np.array([0.05, 0.9, 0.05])):
        scaled = scale_top(probabilities, np.array(weights))
        assert scaled.argmax() == probabilities.argmax()
        assert scaled.sum() == pytest.approx(1)
        assert (scaled >= 0).all()


@pytest.mark.parametrize("probabilities", [[1.0], [1.0, 0.0], [1 - 1e-12, 1e-12]])
def test_certain_category_stays_certain(probabilities: list[float]) -> None:
    assert scale_top(np.array(probabilities), np.array([0.5, -1.0])) == pytest.approx(probabilities)


def test_fit_makes_the_highest_probability_as_high_as_it_is_often_right() -> None:
    rng = np.random.default_rng(0)
    notes, truth = [], []
    for _ in range(4000):
        top = rng.uniform(0.5, 0.99)
        notes.append(np.array([top, 1 - top]))
        truth.append(int(rng.random() > 0.5 + 0.6 * (top - 0.5)))  # 0.9 is right in 0.74 of the cases
    weights = fit_platt_weights(notes, truth)
    scaled = np.array([scale_top(one, weights)[0] for one in notes])
    for low, high in ((0.5, 0.7), (0.7, 0.9), (0.9, 0.99)):
        chosen = [i for i, one in enumerate(notes) if low <= one[0] < high]
        right = np.mean([truth[i] == 0 for i in chosen])
        assert scaled[chosen].mean() == pytest.approx(right, abs=0.04)
    assert weights[0] < 1


def test_fit_to_a_few_notes_stays_near_no_scaling() -> None:
    assert fit_platt_weights([PROBABILITIES] * 2, [1, 1]) == pytest.approx(UNSCALED, abs=0.3)
