"""CategoryHead: what a note's vector says of its category, beside the name that the model would write.

Learnt from training notes in a minute, without touching the model; so a deployment's own categories can be, too.
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
"""The name of each field in the file: files made before the field was renamed stay readable."""
INVERSE_PENALTY = 10.0
"""Of the squared weights: sklearn's C, the middle one of 3, 10 and 30 (docs/decisions/0014-category-head.md)."""
MIN_NOTES_PER_CATEGORY = 20
"""For each name of a closed set, on the average: from 8 it learns how those few were put, and loses to the model."""

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class CategoryHead:
    """`weights` (C, D) and `bias` (C,) of the logits of `names`, learnt from `counts` (C,) notes. Of a closed set that
    it `covers` the probability is

        p(c) ~ p_written(c)^a * p_vector(c)^b,

    each distribution over that set alone: a logarithmic pool (Genest and Zidek 1986, section 3). `pool_weights` (C, 2): a and
    b for sets of the data set that has the name; for names of several data sets their mean.
    """

    names: tuple[str, ...]
    weights: Floats
    bias: Floats
    counts: npt.NDArray[np.int64]
    pool_weights: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, vectors: Floats, truth: Sequence[str]) -> CategoryHead:
        """Logistic regression on unit vectors (N, D) and the N names that are true. ValueError for fewer than two
        different names. It trusts the vector alone, until `trusting`."""
        from sklearn.linear_model import LogisticRegression

        names = tuple(sorted(set(truth)))
        if len(names) < 2:
            raise ValueError("fewer than two categories: there is nothing to choose from")
        found = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(vectors, [names.index(name) for name in truth])
        weights, bias = found.coef_, found.intercept_
        if len(names) == 2:  # of two it keeps the second one's odds
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        counts = np.array([truth.count(name) for name in names])
        alone = np.tile([0.0, 1.0], (len(names), 1))
        # Contiguous: safetensors writes what lies in memory, in whatever order.
        return cls(names, np.ascontiguousarray(weights, np.float32), bias.astype(np.float32), counts, alone)

    def with_pool_weights(self, categories: Sequence[str], trusts: tuple[float, float]) -> CategoryHead:
        """The same with these trusts for some of its names."""
        changed = self.pool_weights.copy()
        changed[self._rows(categories)] = trusts
        return replace(self, pool_weights=changed)

    def covers(self, categories: Sequence[str]) -> bool:
        """Whether it knows all of them, and from enough notes to have a say."""
        known = [count for name, count in zip(self.names, self.counts.tolist(), strict=True) if name in categories]
        return len(known) == len(set(categories)) and sum(known) >= MIN_NOTES_PER_CATEGORY * len(known)

    def pool(self, categories: Sequence[str], written: Floats, vector: Floats) -> npt.NDArray[np.float64]:
        """(K,) logits of a closed set that it `covers`. `written`: (K,) log probabilities, up to a constant."""
        a, b = self.pool_weights[self._rows(categories)].mean(0)
        pooled: npt.NDArray[np.float64] = a * written + b * self.log_probs(categories, vector)
        return pooled

    def log_probs(self, categories: Sequence[str], vectors: Floats) -> npt.NDArray[np.float64]:
        """(..., K) of vectors (..., D)."""
        rows = self._rows(categories)
        logits = vectors @ self.weights[rows].T + self.bias[rows].astype(np.float64)
        of_all: npt.NDArray[np.float64] = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        return of_all

    def _rows(self, categories: Sequence[str]) -> list[int]:
        return [self.names.index(name) for name in categories]

    def save(self, folder: Path, space: str) -> None:
        """Into a checkpoint of this vector space."""
        tensors = {name: getattr(self, field) for field, name in TENSORS.items()}
        save_file(tensors, folder / CATEGORIES_FILE, {"names": json.dumps(self.names), "space": space})

    @classmethod
    def load(cls, folder: Path, space: str) -> CategoryHead | None:
        """Of a checkpoint folder whose vectors are of `space`; None where it has none. CheckpointError."""
        path = folder / CATEGORIES_FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "np") as stored:
                told = stored.metadata()
                tensors = [stored.get_tensor(name) for name in TENSORS.values()]
                names = tuple(json.loads(told["names"]))
                made_for = told["space"]
        except Exception as error:  # the reader's errors have no common class
            raise CheckpointError(f"{path} could not be loaded: {error!r}") from error
        if made_for != space:
            raise CheckpointError(
                f"{path} was fitted to other vectors: run `notellm fit-categories` again, or delete it"
            )
        return cls(names, *tensors)


def pool_weights_for(written: Sequence[Floats], seen: Sequence[Floats], truth: Sequence[int]) -> tuple[float, float]:
    """The exponents, none below 0, under which N true categories are likeliest, kept near one half by as much as one
    more note would say: where few are asked and all are right, nothing else would bound them.

    `written`, `seen`: N times (K,) log probabilities, K that of each note's closed set. `truth`: N places in them. The
    negative log likelihood is convex in both.
    """
    from scipy.optimize import minimize

    pairs = [np.stack(both) for both in zip(written, seen, strict=True)]

    def loss(trusts: Floats) -> tuple[float, Floats]:
        total, slope = 0.0, np.zeros(2)
        for pair, true in zip(pairs, truth, strict=True):
            logits = trusts @ pair
            log_probs = logits - np.logaddexp.reduce(logits)
            total -= log_probs[true]
            slope += pair @ np.exp(log_probs) - pair[:, true]
        off = trusts - 0.5
        return float(total + off @ off) / len(pairs), (slope + 2 * off) / len(pairs)

    best = minimize(loss, np.array([0.5, 0.5]), jac=True, bounds=[(0, None)] * 2)
    return float(best.x[0]), float(best.x[1])
