"""CategoryHead: category probabilities from a note's vector and words, pooled with the language model's own.

It is fitted to training notes in minutes and leaves the model unchanged, so a deployment can have one for its own
categories (docs/decisions/0014-category-head.md).
Shapes: N notes, C names of the head, D dimension, K names of a closed set, E experts: the language model, the vector
and, where the head has a regression from them, the words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from model.category_regressions import VectorRegression, WordRegression
from model.config import CheckpointError
from model.note import Note
from model.platt_scaling import UNSCALED
from model.whole_file import whole_file

CATEGORIES_FILE = "categories.safetensors"
TENSORS = ("counts", "trusts", "weights", "bias")
"""Names of the stored tensors: counts, pool weights and the regression from vectors. They never change, so that older
checkpoints stay readable."""
WORD_TENSORS = ("word_hashes", "word_idf", "word_weights", "word_bias")
"""Names of the stored tensors of the optional regression from words, in the order of its fields."""
PLATT_TENSOR = "platt"
"""Name of the optional stored tensor of the weights by which the highest probability is scaled."""
MIN_NOTES_PER_CATEGORY = 20
"""Minimum training notes per name, averaged over a closed set, for the head to be used on that set. With 8 it overfits
to their wording and is worse than the model alone (docs/decisions/0014-category-head.md)."""

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class CategoryHead:
    """Regressions from a note's vector and words to category `names`, and the exponents that pool them with the model's
    own probabilities.

    Both regressions were fitted to `counts` (C,) notes of each name. In a closed set that the head `covers`,

        p(c) ~ p_written(c)^a * p_vector(c)^b * p_words(c)^w,

    where each distribution is over that set alone: a logarithmic pool (Genest and Zidek 1986, section 3). The highest
    p(c) is then scaled (platt_scaling.py). `pool_weights` (C, E) holds a, b and w for each name, `platt_weights` (C, 2)
    the weights of the scaling, both fitted to the data set that has the name; NaN, and weights that change nothing, for
    a name whose data sets all had too few notes. For a closed set, the mean over its names is used. A head from before
    there was such a scaling has None, and does not scale.
    """

    names: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    pool_weights: npt.NDArray[np.float64]
    by_vector: VectorRegression
    by_words: WordRegression | None = None
    platt_weights: npt.NDArray[np.float64] | None = None

    @classmethod
    def fit(cls, vectors: Floats, truth: Sequence[str], notes: Sequence[Note] = ()) -> CategoryHead:
        """Fit a regression from unit vectors (N, D) to their N true names, and another from the words of `notes`, if
        given.

        The result covers no closed set until `with_pool_weights` is called. Raises ValueError for fewer than two
        different names.
        """
        names = names_of_head(truth)
        indices = [names.index(name) for name in truth]
        by_words = WordRegression.fit(notes, indices) if notes else None
        not_fitted = np.full((len(names), 3 if notes else 2), np.nan)
        return cls(names, np.bincount(indices), not_fitted, VectorRegression.fit(vectors, indices), by_words)

    def with_pool_weights(
        self, categories: Sequence[str], pool_weights: Floats, platt_weights: Floats | None = None
    ) -> CategoryHead:
        """Return a copy with the exponents `pool_weights` (E,) and the `platt_weights` (2,) for some of its names; None
        for no scaling."""
        rows, pools, platts = self._rows(categories), self.pool_weights.copy(), self.platt_weights
        pools[rows] = pool_weights
        if platt_weights is not None:
            platts = np.tile(UNSCALED, (len(self.names), 1)) if platts is None else platts.copy()
            platts[rows] = platt_weights
        return replace(self, pool_weights=pools, platt_weights=platts)

    @property
    def pooled_names(self) -> tuple[str, ...]:
        """Names that have fitted pool weights."""
        fitted_rows = np.flatnonzero(~np.isnan(self.pool_weights).any(axis=1))
        return tuple(self.names[row] for row in fitted_rows)

    def covers(self, categories: Sequence[str]) -> bool:
        """Return whether the head has pool weights for all of the names and was fitted to enough notes of them."""
        return self.has_enough_notes(categories) and set(self.pooled_names).issuperset(categories)

    def has_enough_notes(self, categories: Sequence[str]) -> bool:
        """Return whether the head has all of the names and was fitted to MIN_NOTES_PER_CATEGORY notes per name, on
        average."""
        return are_enough_notes(dict(zip(self.names, self.counts.tolist(), strict=True)), categories)

    def exponents(self, categories: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return the exponents (E,) of the pool for a closed set that it `covers`: the mean over its names."""
        mean: npt.NDArray[np.float64] = self.pool_weights[self._rows(categories)].mean(0)
        return mean

    def platt(self, categories: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return the weights (2,) that scale the highest probability of a closed set: the mean over its names."""
        if self.platt_weights is None:
            return np.array(UNSCALED)
        mean: npt.NDArray[np.float64] = self.platt_weights[self._rows(categories)].mean(0)
        return mean

    def log_probs_by_vector(self, categories: Sequence[str], vectors: Floats) -> npt.NDArray[np.float64]:
        """Return log probabilities (..., K) over a closed set from vectors (..., D) alone."""
        return log_softmax(self.by_vector.logits(vectors, self._rows(categories)))

    def log_probs(self, categories: Sequence[str], note: Note, vector: Floats) -> npt.NDArray[np.float64]:
        """Return log probabilities (E - 1, K) over a closed set from the vector (D,) of a note and from its words."""
        log_probs = [self.log_probs_by_vector(categories, vector)]
        if self.by_words is not None:
            log_probs.append(log_softmax(self.by_words.logits(note, self._rows(categories))))
        return np.stack(log_probs)

    def pool(
        self,
        categories: Sequence[str],
        written: Floats,
        note: Note,
        vector: Floats,
        exponents: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float64]:
        """Return pooled logits (K,) of names that the head has.

        `written`: the model's log probabilities (K,), up to a constant. `exponents` (E,): those of the closed set that
        contains the names.
        """
        pooled: npt.NDArray[np.float64] = exponents @ np.vstack([written, self.log_probs(categories, note, vector)])
        return pooled

    def pool_unwritten(
        self, categories: Sequence[str], note: Note, vector: Floats, exponents: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Return logits (K,) from vector and words alone, before the model scores any name. The two are weighted by
        `exponents`, or by 1 each where these are 0 for both."""
        shares = exponents[1:] if exponents[1:].any() else np.ones(len(exponents) - 1)
        pooled: npt.NDArray[np.float64] = shares @ self.log_probs(categories, note, vector)
        return pooled

    def _rows(self, categories: Sequence[str]) -> list[int]:
        return [self.names.index(name) for name in categories]

    def save(self, folder: Path, space: str) -> None:
        """Write the head into a checkpoint folder. `space`: vector space of that checkpoint."""
        vector, words = self.by_vector, self.by_words
        fields: list[npt.NDArray[Any]] = [self.counts, self.pool_weights, vector.weights, vector.bias]
        tensors = dict(zip(TENSORS, fields, strict=True))
        if words is not None:
            tensors |= zip(WORD_TENSORS, (words.hashes, words.idf, words.weights, words.bias), strict=True)
        if self.platt_weights is not None:
            tensors[PLATT_TENSOR] = self.platt_weights
        with whole_file(folder / CATEGORIES_FILE) as file:
            file.write(save(tensors, {"names": json.dumps(self.names), "space": space}))

    @classmethod
    def load(cls, folder: Path, space: str) -> CategoryHead | None:
        """Read the head of a checkpoint folder, or return None if it has none. `space`: vector space of that
        checkpoint.

        Raises CheckpointError for a broken file and for a head fitted to vectors of another space.
        """
        path = folder / CATEGORIES_FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "np") as stored:
                metadata = stored.metadata()
                counts, pool_weights, weights, bias = map(stored.get_tensor, TENSORS)
                with_words = pool_weights.shape[1] == 3
                by_words = WordRegression(*map(stored.get_tensor, WORD_TENSORS)) if with_words else None
                tensors = list(stored.keys())
                platt = stored.get_tensor(PLATT_TENSOR) if PLATT_TENSOR in tensors else None
                names = tuple(json.loads(metadata["names"]))
                fitted_space = metadata["space"]
        except Exception as error:  # safetensors errors have no common base class
            raise CheckpointError(f"{path} could not be loaded: {error!r}") from error
        if fitted_space != space:
            raise CheckpointError(
                f"{path} was fitted to the vectors of another model: run `notellm fit-categories` again, or delete it"
            )
        head = cls(names, counts, pool_weights, VectorRegression(weights, bias), by_words, platt)
        if not head._shapes_agree():
            raise CheckpointError(
                f"{path} has tensors of inconsistent shapes: run `notellm fit-categories` again, or delete it"
            )
        return head

    def _shapes_agree(self) -> bool:
        """Return whether all tensors agree on the numbers of names, experts and words. The dimension of the vectors
        needs no check: `space` determines it."""
        classes, vector, words = len(self.names), self.by_vector, self.by_words
        shapes = [(self.counts, (classes,)), (self.pool_weights, (classes, 3 if words else 2)),
                  (vector.weights, (classes, *vector.weights.shape[-1:])), (vector.bias, (classes,))]  # fmt: skip
        if self.platt_weights is not None:
            shapes.append((self.platt_weights, (classes, 2)))
        if words:
            known = len(words.hashes)
            shapes += [(words.idf, (known,)), (words.weights, (known, classes)), (words.bias, (classes,))]
        return all(tensor.shape == shape for tensor, shape in shapes)


def names_of_head(truth: Iterable[str]) -> tuple[str, ...]:
    """Return the names of a head that is fitted to notes of the categories `truth`. Raises ValueError for fewer than
    two different ones."""
    names = tuple(sorted(set(truth)))
    if len(names) < 2:
        raise ValueError(f"a category head needs notes of at least two categories, not of {len(names)}")
    return names


def are_enough_notes(counts: Mapping[str, int], categories: Sequence[str]) -> bool:
    """Return whether `counts`, numbers of training notes by category, have all of `categories` and on average
    MIN_NOTES_PER_CATEGORY notes of them."""
    numbers = [count for name, count in counts.items() if name in categories]
    return len(numbers) == len(set(categories)) and sum(numbers) >= MIN_NOTES_PER_CATEGORY * len(numbers)


def fit_pool_weights(log_probs: Sequence[Floats], truth: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the non-negative pool exponents (E,) that maximise the likelihood of the true categories of N notes.

    `log_probs`: for each note, those of E experts over its closed set, (E, K). `truth`: for each note, the index of its
    category in that set. Minimises

        - sum_n log p_n(truth_n) + |exponents - 1/E|^2,

    which is convex. The penalty weighs about as much as one note. Without it the exponents would grow without bound
    where there are few notes and all are classified correctly.
    """
    from scipy.optimize import minimize

    experts = len(log_probs[0])

    def loss_and_gradient(exponents: npt.NDArray[np.float64]) -> tuple[float, Floats]:
        loss, gradient = 0.0, np.zeros(experts)
        for expert_log_probs, true in zip(log_probs, truth, strict=True):
            pooled = log_softmax(exponents @ expert_log_probs)
            loss -= pooled[true]
            gradient += expert_log_probs @ np.exp(pooled) - expert_log_probs[:, true]
        offset = exponents - 1 / experts
        return float(loss + offset @ offset) / len(log_probs), (gradient + 2 * offset) / len(log_probs)

    best = minimize(loss_and_gradient, np.full(experts, 1 / experts), jac=True, bounds=[(0, None)] * experts)
    return np.asarray(best.x, np.float64)


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return log softmax of logits (..., K) over their last axis."""
    log_probs: npt.NDArray[np.float64] = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return log_probs
