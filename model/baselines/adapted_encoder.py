"""AdaptedEncoder: a baseline encoder with the steps that our checkpoints get without training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.baselines.encoder import SentenceEncoder
from model.evaluation.ranking import Scorer, cosine
from model.note import Note
from model.training.whiten import whitening


class AdaptedEncoder:
    """An encoder with whitened vectors, and with queries from which a share of the mean vector is subtracted.

    `dimension`: dimension of the whitened vectors (model/training/whiten.py), fitted to `known`, the training notes;
    None leaves the vectors unchanged. `mean_share`: share of the mean of the pool's vectors that is subtracted from a
    query (model/centre.py). Raises ValueError where the training notes do not span `dimension` directions.
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
        """Return a scorer by cosine over the pool `notes`."""
        vectors = self._encoder.embed(notes)
        if self._matrix is not None:
            vectors = vectors @ self._matrix.T
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return cosine(vectors, self._mean_share)
