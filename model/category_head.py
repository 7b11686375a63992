"""CategoryHead: a logistic regression from a note's vector to its category, pooled with what the model would write.

It is fitted to training notes in a minute, without touching the model, so a deployment can have one for its own
categories (docs/decisions/0014-category-head.md).
Shapes: N notes, C names of the head, D dimension, K names of a closed set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from model.config import CheckpointError

CATEGORIES_FILE = "categories.safetensors"
TENSORS = {"weights": "weights", "bias": "bias", "counts": "counts", "pool_weights": "trusts"}
"""Name in the file of each field's tensor. They never change, so that older checkpoints stay readable."""
INVERSE_PENALTY = 10.0
"""Inverse strength of the L2 penalty on the weights (scikit-learn's C). 3 and 30 give accuracies within a point of it
(docs/decisions/0014-category-head.md)."""
MIN_NOTES_PER_CATEGORY = 20
"""Fewest training notes a name, on the average over a closed set, for the head to have a say in it. With 8 it learns
the wording of these few and is worse than the model alone (docs/decisions/0014-category-head.md)."""

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class CategoryHead:
    """Logits of category `names` from a vector, and the exponents that pool them with the model's own probabilities.

    `weights` (C, D) and `bias` (C,) were fitted to `counts` (C,) notes of each name. In a closed set that it `covers`,

        p(c) ~ p_written(c)^a * p_vector(c)^b,

    where each distribution is over that set alone: a logarithmic pool (Genest and Zidek 1986, section 3).
    `pool_weights` (C, 2) holds a and b for each name, fitted to the data set that has the name; a closed set takes the
    mean over its names.
    """

    names: tuple[str, ...]
    weights: Floats
    bias: Floats
    counts: npt.NDArray[np.int64]
    pool_weights: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, vectors: Floats, truth: Sequence[str]) -> CategoryHead:
        """Fit a logistic regression to unit vectors (N, D) and their N true names.

        Its pool weights are (0, 1), the vector alone, until `with_pool_weights`. Raises ValueError for fewer than two
        different names.
        """
        from sklearn.linear_model import LogisticRegression

        names = tuple(sorted(set(truth)))
        if len(names) < 2:
            raise ValueError("fewer than two categories: there is nothing to choose from")
        regression = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000)
        regression.fit(vectors, [names.index(name) for name in truth])
        weights, bias = regression.coef_, regression.intercept_
        if len(names) == 2:  # scikit-learn keeps one row for two classes: the log odds of the second
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        counts = np.array([truth.count(name) for name in names])
        vector_alone = np.tile([0.0, 1.0], (len(names), 1))
        # Contiguous, since safetensors writes the memory as it lies, whatever the strides.
        return cls(names, np.ascontiguousarray(weights, np.float32), bias.astype(np.float32), counts, vector_alone)

    def with_pool_weights(self, categories: Sequence[str], pool_weights: tuple[float, float]) -> CategoryHead:
        """Return a copy with the exponents (a, b) = `pool_weights` for some of its names."""
        changed = self.pool_weights.copy()
        changed[self._rows(categories)] = pool_weights
        return replace(self, pool_weights=changed)

    def covers(self, categories: Sequence[str]) -> bool:
        """Return whether it knows all of the names, from MIN_NOTES_PER_CATEGORY notes each on the average."""
        counts = [count for name, count in zip(self.names, self.counts.tolist(), strict=True) if name in categories]
        return len(counts) == len(set(categories)) and sum(counts) >= MIN_NOTES_PER_CATEGORY * len(counts)

    def exponents(self, categories: Sequence[str]) -> tuple[float, float]:
        """Return the exponents (a, b) of the pool for a closed set that it `covers`: the mean of its names'."""
        a, b = self.pool_weights[self._rows(categories)].mean(0)
        return float(a), float(b)

    def pool(
        self, categories: Sequence[str], written: Floats, vector: Floats, exponents: tuple[float, float]
    ) -> npt.NDArray[np.float64]:
        """Return pooled logits (K,) of names that it knows.

        `written`: the model's log probabilities (K,), up to a constant. `vector`: (D,). `exponents`: of the closed set
        that has the names.
        """
        a, b = exponents
        pooled: npt.NDArray[np.float64] = a * written + b * self.log_probs(categories, vector)
        return pooled

    def log_probs(self, categories: Sequence[str], vectors: Floats) -> npt.NDArray[np.float64]:
        """Return log probabilities (..., K) over a closed set from vectors (..., D) alone."""
        rows = self._rows(categories)
        logits = vectors @ self.weights[rows].T + self.bias[rows].astype(np.float64)
        log_probs: npt.NDArray[np.float64] = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        return log_probs

    def _rows(self, categories: Sequence[str]) -> list[int]:
        return [self.names.index(name) for name in categories]

    def save(self, folder: Path, space: str) -> None:
        """Write it into a checkpoint folder whose vectors are of `space`."""
        tensors = {name: getattr(self, field) for field, name in TENSORS.items()}
        save_file(tensors, folder / CATEGORIES_FILE, {"names": json.dumps(self.names), "space": space})

    @classmethod
    def load(cls, folder: Path, space: str) -> CategoryHead | None:
        """Read the head of a checkpoint folder whose vectors are of `space`; None where the folder has none.

        Raises CheckpointError for a broken file, and for one that was fitted to vectors of another space.
        """
        path = folder / CATEGORIES_FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "np") as stored:
                metadata = stored.metadata()
                tensors = [stored.get_tensor(name) for name in TENSORS.values()]
                names = tuple(json.loads(metadata["names"]))
                fitted_space = metadata["space"]
        except Exception as error:  # what safetensors raises has no common class
            raise CheckpointError(f"{path} could not be loaded: {error!r}") from error
        if fitted_space != space:
            raise CheckpointError(
                f"{path} was fitted to other vectors: run `notellm fit-categories` again, or delete it"
            )
        return cls(names, *tensors)


def fit_pool_weights(
    written: Sequence[Floats], by_vector: Sequence[Floats], truth: Sequence[int]
) -> tuple[float, float]:
    """Return the exponents a, b >= 0 of the pool under which the true categories of N notes are likeliest.

    `written`, `by_vector`: for each note the log probabilities (K,) over its closed set. `truth`: for each note the
    index of its category in that set. Minimises

        - sum_n log p_n(truth_n) + (a - 1/2)^2 + (b - 1/2)^2,

    which is convex. The penalty weighs about as much as one note: without it nothing would bound the exponents where
    few notes are given and all are right.
    """
    from scipy.optimize import minimize

    pairs = [np.stack(pair) for pair in zip(written, by_vector, strict=True)]

    def loss_and_gradient(exponents: Floats) -> tuple[float, Floats]:
        loss, gradient = 0.0, np.zeros(2)
        for pair, true in zip(pairs, truth, strict=True):
            logits = exponents @ pair
            log_probs = logits - np.logaddexp.reduce(logits)
            loss -= log_probs[true]
            gradient += pair @ np.exp(log_probs) - pair[:, true]
        offset = exponents - 0.5
        return float(loss + offset @ offset) / len(pairs), (gradient + 2 * offset) / len(pairs)

    best = minimize(loss_and_gradient, np.array([0.5, 0.5]), jac=True, bounds=[(0, None)] * 2)
    return float(best.x[0]), float(best.x[1])
