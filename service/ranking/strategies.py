"""Scores of notes against several positive and negative examples.

Formulas, with positive examples p_i of weights w_i and negative ones n_j of weights v_j, all of unit length:

- `average`: cosine to 2 mean(p) - mean(n), the means weighted (Rocchio 1971; Qdrant's `average_vector`).
- `sum_scores`: sum of w_i cos(p_i, x) - sum of v_j cos(n_j, x) (Qdrant's `sum_scores`).
- `best_score`: with P = max w_i cos(p_i, x), N = max v_j cos(n_j, x) and s(t) = (1 + t / (1 + |t|)) / 2, the score is
  s(P) where P > N, else -s(N) (Qdrant's `best_score`). Weights are divided by the largest one. Without negative
  examples it is s(P), without positive ones -s(N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from service.records import Vector, Vectors

Strategy = Literal["average", "best_score", "sum_scores"]
Numbers = npt.NDArray[np.float64]
MIN_LENGTH = 1e-4
"""Length of a combined vector, relative to the sum of the weights, below which its direction is only rounding error."""


class NoDirection(ValueError):
    """Positive and negative examples cancel out."""


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """Vectors (E, D) of examples and their weights (E,), which are above 0."""

    vectors: Vectors
    weights: Numbers

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def total(self) -> Numbers:
        """Weighted sum of the vectors, (D,)."""
        total: Numbers = self.weights @ self.vectors.astype(np.float64)
        return total


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """Examples and how they are combined. At least one of `positive` and `negative` is not empty."""

    strategy: Strategy
    positive: Weighted
    negative: Weighted


@dataclass(frozen=True, slots=True, eq=False)
class LinearQuery:
    """A query whose score of x is `scale` times the inner product of the unit vector `direction` (D,) and x."""

    direction: Vector
    scale: float = 1.0


def linear_query(query: Query) -> LinearQuery:
    """Return the one vector that the strategies `average` and `sum_scores` search with. Raises NoDirection."""
    positive, negative = query.positive, query.negative
    if query.strategy == "average" and len(positive) == 1 and not len(negative):
        return LinearQuery(positive.vectors[0])  # bit for bit: its scores are those of the vector itself
    if query.strategy == "average":
        combined = 2 * positive.total / positive.weights.sum()
        if len(negative):
            combined = combined - negative.total / negative.weights.sum()
        size = 3.0
    else:
        combined = (positive.total if len(positive) else 0) - (negative.total if len(negative) else 0)
        size = total_weight(query)
    length = float(np.linalg.norm(combined))
    if length < MIN_LENGTH * size:
        raise NoDirection
    scale = length if query.strategy == "sum_scores" else 1.0
    return LinearQuery(np.asarray(combined / length, np.float32), scale)


def total_weight(query: Query) -> float:
    """Return the sum of all weights: the bound on the scores of `sum_scores`."""
    return float(query.positive.weights.sum() + query.negative.weights.sum())


def scaled_sigmoid(value: Numbers) -> Numbers:
    """Map numbers to (0, 1), rising: (1 + t / (1 + |t|)) / 2."""
    mapped: Numbers = 0.5 * (1 + value / (1 + np.abs(value)))
    return mapped


def best_scores(query: Query, vectors: Vectors) -> Numbers:
    """Return the `best_score` of each vector (N, D), shape (N,)."""
    positive, negative = best_cosines(query, query.positive, vectors), best_cosines(query, query.negative, vectors)
    return np.where(positive > negative, scaled_sigmoid(positive), -scaled_sigmoid(negative))


def best_cosines(query: Query, examples: Weighted, vectors: Vectors) -> Numbers:
    """Return the largest weighted cosine of each vector (N, D) to any of the examples, shape (N,); without examples a
    number below every cosine."""
    if not len(examples):
        return np.full(len(vectors), -np.finfo(np.float64).max)
    weights = examples.weights / max_weight(query)
    best: Numbers = (cosines(vectors, examples.vectors) * weights).max(axis=1)
    return best


def max_weight(query: Query) -> float:
    """Return the largest weight of any example."""
    return float(np.concatenate([query.positive.weights, query.negative.weights]).max())


def cosines(vectors: Vectors, others: Vectors) -> Numbers:
    """Return the inner products of vectors (N, D) and others (M, D), shape (N, M). `einsum` computes them in this
    thread: those of NumPy's BLAS busy-wait (docs/decisions/0011-segments.md)."""
    products: Numbers = np.einsum("nd,md->nm", vectors, others).astype(np.float64)
    return products
