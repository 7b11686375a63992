"""HeadedEncoder: a baseline encoder with the regressions from vectors and words of our category head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from model.category_head import CategoryHead, fit_pool_weights, log_softmax
from model.evaluation.metrics import Floats
from model.evaluation.system import MIN_PROBABILITY, Embedder
from model.note import Note
from model.platt_scaling import UNSCALED, fit_platt_weights, scale_top


class HeadedEncoder:
    """An encoder whose categories come from a regression on its vectors, pooled with one on words.

    Vectors are not centred, which is 0.4 points better for MiniLM on the films' validation notes. `known`: the training
    notes, whose categories are learnt. `validation`: the notes to which the pool's exponents and the scaling of the
    highest probability are fitted; with none, both regressions count the same, and nothing is scaled. Raises ValueError
    where the training notes have fewer than two categories.
    """

    def __init__(self, encoder: Embedder, name: str, known: Sequence[Note], validation: Sequence[Note]) -> None:
        self.name = f"{name}, category head"
        self._encoder = encoder
        labelled = [note for note in known if note.category]
        if not labelled:
            raise ValueError("no training note has a category")
        self._head = CategoryHead.fit(encoder.embed(labelled), [note.category or "" for note in labelled], labelled)
        names = self._head.names
        pooled = [note for note in validation if note.category in names]
        truth = [names.index(note.category or "") for note in pooled]
        self._exponents, self._platt = np.ones(2), np.array(UNSCALED)
        if pooled:
            log_probs = self._log_probs(pooled, names)
            self._exponents = fit_pool_weights(log_probs, truth)
            self._platt = fit_platt_weights([np.exp(log_softmax(self._exponents @ one)) for one in log_probs], truth)

    def category_log_probs(self, notes: Sequence[Note], categories: Sequence[str]) -> Floats:
        """Return log probabilities (len(notes), len(categories)) of categories that training notes have."""
        pooled = [np.exp(log_softmax(self._exponents @ log_probs)) for log_probs in self._log_probs(notes, categories)]
        scaled: Floats = np.log(np.maximum([scale_top(one, self._platt) for one in pooled], MIN_PROBABILITY))
        return scaled

    def _log_probs(self, notes: Sequence[Note], categories: Sequence[str]) -> list[npt.NDArray[np.float64]]:
        """Return for each note the log probabilities (2, len(categories)) by its vector and by its words."""
        vectors = self._encoder.embed(notes)
        return [self._head.log_probs(categories, note, vector) for note, vector in zip(notes, vectors, strict=True)]
