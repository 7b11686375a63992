"""Lexical search: TF-IDF and BM25 over the words of the notes, fitted on the pool that is searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.baselines.encoder import plain_text
from model.data.dataset import DatasetError
from model.evaluation.ranking import Scorer
from model.note import Note


def _word_matrix(vectorizer: Any, notes: Sequence[Note]) -> Any:
    """Fit a scikit-learn vectorizer to notes and return their sparse matrix. Raises DatasetError for notes without
    words."""
    try:
        return vectorizer.fit_transform([plain_text(note) for note in notes])
    except ValueError as error:  # "empty vocabulary"
        raise DatasetError(
            f"none of {len(notes):,} notes has a word of two letters or more, by which notes are compared"
        ) from error


class TfIdf:
    """Cosine of TF-IDF vectors of words, with sublinear counts. Raises DatasetError for notes without words."""

    name = "tf-idf"

    def related(self, notes: Sequence[Note]) -> Scorer:
        from sklearn.feature_extraction.text import TfidfVectorizer

        matrix = _word_matrix(TfidfVectorizer(sublinear_tf=True), notes)
        return lambda rows: (matrix[rows] @ matrix.T).toarray()


class Bm25:
    """Okapi BM25 (Robertson and Zaragoza 2009, section 3.2), with the words of a note as the query.

    Raises DatasetError for notes without words.
    """

    name = "bm25"

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        self._k1 = k1
        self._b = b

    def related(self, notes: Sequence[Note]) -> Scorer:
        from scipy import sparse
        from sklearn.feature_extraction.text import CountVectorizer

        counts = _word_matrix(CountVectorizer(), notes).astype(np.float32)
        lengths = np.asarray(counts.sum(1)).ravel()
        document_frequency = np.asarray((counts > 0).sum(0)).ravel()
        idf = np.log1p((len(notes) - document_frequency + 0.5) / (document_frequency + 0.5))
        norm = self._k1 * (1 - self._b + self._b * lengths / lengths.mean())
        weights = counts.tocoo()
        weights.data = idf[weights.col] * weights.data * (self._k1 + 1) / (weights.data + norm[weights.row])
        documents = sparse.csr_matrix(weights)
        return lambda rows: (counts[rows] @ documents.T).toarray()
