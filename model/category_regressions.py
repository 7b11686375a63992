"""Logistic regressions from a note to the logits of its category: one from its vector, one from its words.

Both are fitted to labelled notes by scikit-learn, with the same penalty, and need nothing but NumPy afterwards.
Shapes: N notes, C categories, K of them, D dimension, W words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from model.note import Note
from model.words import word_hash, words_and_characters

INVERSE_PENALTY = 10.0
"""Inverse strength of the L2 penalty on the weights (scikit-learn's C). 3 and 30 give accuracies within a point of it
(docs/decisions/0014-category-head.md)."""
MIN_NOTES_PER_WORD = 2
"""Training notes that a word must occur in to be learnt: half of all words occur in one, and say as little of others
(docs/log/categories.md)."""

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class VectorRegression:
    """Logits from the vector of a note. `weights` (C, D) and `bias` (C,), float32."""

    weights: Floats
    bias: Floats

    @classmethod
    def fit(cls, vectors: Floats, truth: Sequence[int]) -> Self:
        """Fit it to unit vectors (N, D) and the N indices of their categories, from 0 to C - 1."""
        return cls(*_fitted(vectors, truth))

    def logits(self, vectors: Floats, columns: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return logits (..., K) of the categories `columns` from vectors (..., D)."""
        logits: npt.NDArray[np.float64] = vectors @ self.weights[columns].T + self.bias[columns].astype(np.float64)
        return logits


@dataclass(frozen=True, slots=True)
class WordRegression:
    """Logits from the words of a note, title, content and hashtags: a linear model on a unit TF-IDF vector (W,).

    A word that occurs n times counts (1 + ln n) idf. Words are known by their hashes alone, `hashes` (W,), uint32,
    in ascending order. `idf` (W,), float32, `weights` (W, C), float16, `bias` (C,), float32.
    """

    hashes: npt.NDArray[np.uint32]
    idf: Floats
    weights: Floats
    bias: Floats

    @classmethod
    def fit(cls, notes: Sequence[Note], truth: Sequence[int]) -> Self:
        """Fit it to N notes and the indices of their categories, from 0 to C - 1."""
        from scipy.sparse import csr_array

        counts = [_word_counts(note) for note in notes]
        notes_with = Counter(word for note_counts in counts for word in note_counts)
        kept = sorted(word for word, number in notes_with.items() if number >= MIN_NOTES_PER_WORD)
        # The smooth idf of scikit-learn's TfidfTransformer.
        idf = np.log((1 + len(notes)) / (1 + np.array([notes_with[word] for word in kept]))) + 1
        nothing = np.zeros((len(kept), max(truth) + 1), np.float16), np.zeros(max(truth) + 1, np.float32)
        unfitted = cls(np.array(kept, np.uint32), idf.astype(np.float32), *nothing)
        if not kept:
            return unfitted
        rows = [unfitted._tf_idf(note_counts) for note_counts in counts]
        places = np.concatenate([row_places for row_places, _ in rows])
        ends = np.cumsum([0, *(len(row_places) for row_places, _ in rows)])
        matrix = csr_array((np.concatenate([entries for _, entries in rows]), places, ends), (len(notes), len(kept)))
        weights, bias = _fitted(matrix, truth)
        return replace(unfitted, weights=np.ascontiguousarray(weights.T, np.float16), bias=bias)

    def logits(self, note: Note, columns: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return logits (K,) of the categories `columns` from the words of a note."""
        places, entries = self._tf_idf(_word_counts(note))
        logits: npt.NDArray[np.float64] = entries @ self.weights[places][:, columns] + self.bias[columns]
        return logits

    def _tf_idf(self, counts: Mapping[int, int]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """Return the places in `hashes` of the known words among `counts`, and their entries in the unit vector."""
        hashes = np.array(list(counts), np.uint32)
        places = np.searchsorted(self.hashes, hashes).clip(max=max(0, len(self.hashes) - 1))
        known = self.hashes[places] == hashes if len(self.hashes) else np.zeros(len(hashes), bool)
        entries = (1 + np.log(np.array(list(counts.values()), np.float64)[known])) * self.idf[places[known]]
        return places[known], entries / max(float(np.linalg.norm(entries)), 1e-12)


def _word_counts(note: Note) -> Counter[int]:
    """Return how often each word of a note occurs, by its hash."""
    return Counter(word_hash(word) for word in words_and_characters(note))


def _fitted(features: Any, truth: Sequence[int]) -> tuple[Floats, Floats]:
    """Return the weights (C, F) and the bias (C,) of a regression from `features` (N, F), dense or sparse, float32."""
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(features, truth)
    weights, bias = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # scikit-learn keeps one row for two classes: the log odds of the second
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    # Contiguous, since safetensors writes the memory as it lies, whatever the strides.
    return np.ascontiguousarray(weights, np.float32), bias.astype(np.float32)
