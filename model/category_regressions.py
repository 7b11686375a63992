"""Logistic regressions from a note to the logits of its category: one from its vector, one from its words.

Both are fitted to labelled notes by scikit-learn, with the same penalty, and need only NumPy afterwards.
Shapes: N notes, C categories, K requested ones, D dimension, W words learnt, V of them in a note, F features: D or W.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from model.note import Note
from model.words import word_hash, words_and_characters

INVERSE_PENALTY = 10.0
"""Inverse strength of the L2 penalty on the weights (scikit-learn's C). With 3, pooled categories of films are 0.3
points better and those of kuairec 0.4 worse (docs/log/categories.md#words-beside-the-vector)."""
MIN_NOTES_PER_WORD = 2
"""Minimum number of training notes that a word must occur in to be learnt. Half of the words of films and two thirds of
kuairec's occur in one note only; with them the pool was at most 0.7 points better
(docs/log/categories.md#words-beside-the-vector)."""

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class VectorRegression:
    """Logits from the vector of a note. `weights` (C, D) and `bias` (C,), float32."""

    weights: Floats
    bias: Floats

    @classmethod
    def fit(cls, vectors: Floats, truth: Sequence[int]) -> Self:
        """Fit a regression to unit vectors (N, D) and the N indices of their categories; each of 0 to C - 1 must
        occur."""
        return cls(*_fitted(vectors, truth))

    def logits(self, vectors: Floats, columns: list[int]) -> npt.NDArray[np.float64]:
        """Return logits (..., K) of the categories `columns` from vectors (..., D)."""
        logits: npt.NDArray[np.float64] = vectors @ self.weights[columns].T + self.bias[columns].astype(np.float64)
        return logits


@dataclass(frozen=True, slots=True)
class WordRegression:
    """Logits from the words of a note: a linear model on a unit TF-IDF vector (W,).

    The words are those of the hashtags and of the first MAX_CHARS characters of title and content (model/words.py),
    even where the model itself reads less. Only their hashes are stored: `hashes` (W,), uint32, ascending. A word that
    occurs n times counts (1 + ln n) idf. `idf` (W,), float32, `weights` (W, C), float16, `bias` (C,), float32.
    """

    hashes: npt.NDArray[np.uint32]
    idf: Floats
    weights: Floats
    bias: Floats

    @classmethod
    def fit(cls, notes: Sequence[Note], truth: Sequence[int]) -> Self:
        """Fit a regression to N notes and the indices of their categories; each of 0 to C - 1 must occur."""
        from scipy.sparse import csr_array

        counts = [_word_counts(note) for note in notes]
        notes_with = Counter(word for note_counts in counts for word in note_counts)
        hashes = np.array(sorted(word for word, n in notes_with.items() if n >= MIN_NOTES_PER_WORD), np.uint32)
        frequency = np.array([notes_with[word] for word in hashes.tolist()])
        # The smooth idf of scikit-learn's TfidfTransformer.
        idf = (np.log((1 + len(notes)) / (1 + frequency)) + 1).astype(np.float32)
        if not len(hashes):
            classes = max(truth) + 1
            return cls(hashes, idf, np.zeros((0, classes), np.float16), np.zeros(classes, np.float32))
        rows = [_tf_idf(note_counts, hashes, idf) for note_counts in counts]
        places = np.concatenate([row_places for row_places, _ in rows])
        entries = np.concatenate([row_entries for _, row_entries in rows])
        ends = np.cumsum([0, *(len(row_places) for row_places, _ in rows)])
        weights, bias = _fitted(csr_array((entries, places, ends), (len(notes), len(hashes))), truth)
        return cls(hashes, idf, np.ascontiguousarray(weights.T, np.float16), bias)

    def logits(self, note: Note, columns: list[int]) -> npt.NDArray[np.float64]:
        """Return logits (K,) of the categories `columns` from the words of a note; all 0 if none of them is known."""
        places, entries = _tf_idf(_word_counts(note), self.hashes, self.idf)
        if not len(places):
            return np.zeros(len(columns))
        logits: npt.NDArray[np.float64] = entries @ self.weights[places][:, columns] + self.bias[columns]
        return logits


def _word_counts(note: Note) -> Counter[int]:
    """Return how often each word of a note occurs, by its hash."""
    return Counter(word_hash(word) for word in words_and_characters(note))


def _tf_idf(
    counts: Mapping[int, int], hashes: npt.NDArray[np.uint32], idf: Floats
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Return the indices (V,) into `hashes` (W,) of the known words of a note, and their entries (V,) in its unit
    TF-IDF vector.

    `counts`: number of occurrences of each word of the note, by hash.
    """
    by_hash = np.array(list(counts), np.uint32)
    places = np.searchsorted(hashes, by_hash)
    known = np.zeros(len(places), bool)
    inside = places < len(hashes)
    known[inside] = hashes[places[inside]] == by_hash[inside]
    occurrences = np.array(list(counts.values()), np.float64)[known]
    entries: npt.NDArray[np.float64] = (1 + np.log(occurrences)) * idf[places[known]].astype(np.float64)
    return places[known], entries / max(float(np.linalg.norm(entries)), 1e-12)


def _fitted(features: Any, truth: Sequence[int]) -> tuple[Floats, Floats]:
    """Return weights (C, F) and bias (C,), float32, of a regression from `features` (N, F), dense or sparse."""
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(features, truth)
    weights, bias = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # scikit-learn keeps one row for two classes: the log odds of the second
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    # Contiguous, since safetensors writes the underlying memory and ignores strides.
    return np.ascontiguousarray(weights, np.float32), bias.astype(np.float32)
