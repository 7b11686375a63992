"""LiveCentre: what the vectors of an index's notes have in common, kept up to date; queries by notes leave it out.

Shapes: D numbers of a vector, N notes of a sample.
"""

from __future__ import annotations

import numpy as np

from service.index.backend import Arrays
from service.records import Centre, Vector, Vectors

MIN_NOTES = 256
"""Notes from which on a centre is left out: the mean of 200 serves as well as that of all."""
SAMPLED_NOTES = 2048
"""Notes that a centre is estimated from, about: reading them takes some milliseconds, whatever the index has."""
CHANGES_SHARE = 8
"""A centre is estimated anew after one change for so many notes."""


class LiveCentre:
    """The centre of an index that changes. `share`: that of the mean, which is the model's; 0 for no centre."""

    def __init__(self, share: float) -> None:
        self.current = Centre()
        self._share = share
        self._mean: Vector | None = None
        self._changes = 0

    def is_due(self, changes: int, notes: int) -> bool:
        """Count changes of an index that has so many notes now, and return whether to call `renew`."""
        self._changes += changes
        return bool(self._share) and notes >= MIN_NOTES and self._changes >= max(MIN_NOTES, notes // CHANGES_SHARE)

    def renew(self, sample: Vectors) -> None:
        """Take the mean of a sample of the notes' vectors (N, D)."""
        self._show(sample.mean(axis=0))
        self._changes = 0

    def arrays(self) -> Arrays:
        """Return the mean as a snapshot has it: no number where there is none."""
        mean = np.zeros(0, np.float32) if self._mean is None else self._mean
        return {"mean": mean, "changes": np.array([self._changes])}

    def restore(self, arrays: Arrays) -> None:
        """Take on the mean of a snapshot."""
        if len(arrays["mean"]):
            self._show(np.array(arrays["mean"]))
        self._changes = int(arrays["changes"][0])

    def _show(self, mean: Vector) -> None:
        self._mean = mean
        self.current = Centre(np.float32(self._share) * mean)
