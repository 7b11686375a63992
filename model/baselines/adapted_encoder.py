"""AdaptedEncoder: a rival whose vectors get what a checkpoint of ours gets without training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.baselines.encoder import SentenceEncoder
from model.evaluation.ranking import Scorer, cosine
from model.note import Note
from model.training.whiten import whitening


class AdaptedEncoder:
    """Compares notes by whitened vectors of an encoder, and by queries that leave out a share of the mean.

    `dimension`: numbers of a whitened vector (model/training/whiten.py), fitted to `known`, the training notes; None
    leaves the vectors as they are. `mean_share`: share of the mean of all notes of the pool that a query leaves out
    (model/centre.py). Raises ValueError where the training notes do not span `dimension` directions.
    """

    def __init__(
        self, encoder: SentenceEncoder, known: Sequence[Note], dimension: int | None, mean_share: float
    ) -> None:
        whitened = f"whitened to {dimension}" if dimension else ""
        less_mean = f"less {mean_share:g} of the mean" if mean_share else ""
        self.name = ", ".join(filter(None, (encoder.name, whitened, less_mean)))
        self._encoder = encoder
        self._matrix = whitening([encoder.embed(known)], dimension) if dimension else None
        self._mean_share = mean_share

    def related(self, notes: Sequence[Note]) -> Scorer:
        """Return the cosines of the notes of the pool."""
        vectors = self._encoder.embed(notes)
        if self._matrix is not None:
            vectors = vectors @ self._matrix.T
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return cosine(vectors, self._mean_share)
