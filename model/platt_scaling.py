"""Top-label Platt scaling: lets the highest of a note's probabilities be as high as it is often right.

Shapes: K names of a closed set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]
UNSCALED = (1.0, 0.0)
"""Weights that change nothing."""
MIN_REST = 1e-9
"""Minimum sum of all but the highest probability: a logit must be finite."""


def scale_top(probabilities: Probabilities, weights: npt.NDArray[np.float64]) -> Probabilities:
    """Return the probabilities (K,) with the highest one, p, replaced by

        sigmoid(a logit(p) + b)

    for the `weights` (a, b), and the others scaled so that all sum to 1 (Platt 1999, section 2; for the highest
    probability alone: Gupta and Ramdas 2022, Top-label calibration). The highest one stays the highest.
    """
    top = int(probabilities.argmax())
    rest = 1 - probabilities[top]
    if rest < MIN_REST:
        return probabilities
    second = np.delete(probabilities, top).max()
    least = second / (second + rest)  # where both would be equal
    highest = max(_sigmoid(weights[0] * _logit(1 - rest) + weights[1]), min(least + MIN_REST, 1.0))
    scaled: Probabilities = probabilities * (1 - highest) / rest
    scaled[top] = highest
    return scaled


def fit_platt_weights(probabilities: Sequence[Probabilities], truth: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the weights (a, b) that maximise the likelihood of which notes' highest probability is that of the true
    category. `probabilities`: (K,) for each note. `truth`: for each note, the index of its category. Minimises

        - sum_n log(p_n if it is right, else 1 - p_n) + |(a, b) - (1, 0)|^2   with a >= 0

    where p_n is the scaled probability. The penalty weighs about as much as one note.
    """
    from scipy.optimize import minimize

    tops = np.array([np.clip(one.max(), MIN_REST, 1 - MIN_REST) for one in probabilities])
    right = np.array([int(one.argmax()) == true for one, true in zip(probabilities, truth, strict=True)])
    logits = _logit(tops)

    def loss(weights: npt.NDArray[np.float64]) -> float:
        signed = np.where(right, 1, -1) * (weights[0] * logits + weights[1])
        return float(np.logaddexp(0, -signed).sum() + ((weights - UNSCALED) ** 2).sum())

    best = minimize(loss, UNSCALED, bounds=[(0, None), (None, None)])
    return np.asarray(best.x, np.float64)


def _logit(p: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
    return np.asarray(np.log(p) - np.log1p(-np.asarray(p)), np.float64)


def _sigmoid(logit: npt.NDArray[np.float64]) -> float:
    return float(1 / (1 + np.exp(-logit)))
