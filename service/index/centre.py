"""LiveCentre: a share of the mean vector of an index's notes, kept up to date; it is subtracted from queries by notes.

Shapes: D numbers of a vector, N notes of a sample.
"""

from __future__ import annotations

import numpy as np

from service.index.backend import Arrays
from service.records import Centre, Vector, Vectors

MIN_NOTES = 256
"""Minimum number of notes for a centre: the mean of 200 notes serves as well as that of all of them."""
SAMPLED_NOTES = 2048
"""Approximate size of the sample for an estimate: reading it takes some milliseconds, whatever the size of the
index."""
MIN_CHANGED_SHARE = 1 / 8
"""Share of the index's notes, at least MIN_NOTES of them, after whose change the mean is estimated again."""
MIN_CENTRE_SHIFT = 0.03
"""Minimum distance of a new estimate of the mean from the old one to replace it. The means of two samples of the same
notes are at most this far apart, and each new centre invalidates all cached lists of neighbours."""


class LiveCentre:
    """The centre of a changing index. `share`: the share of the mean that the model has queries leave out; 0 for no
    centre."""

    def __init__(self, share: float) -> None:
        self.current = Centre()
        self._share = share
        self._mean: Vector | None = None
        self._changes = 0

    def count_changes(self, changes: int, notes: int) -> bool:
        """Add to the changes since the last estimate; return whether the centre should be estimated again. `notes`: the
        number of notes in the index."""
        self._changes += changes
        if not self._share or notes < MIN_NOTES:
            return self._mean is not None
        return self._mean is None or self._changes >= max(MIN_NOTES, int(MIN_CHANGED_SHARE * notes))

    def renew(self, sample: Vectors, *, force: bool = False) -> None:
        """Estimate the mean from a sample of the notes' vectors (N, D). With fewer than MIN_NOTES there is no centre.
        The current centre stays where the mean has hardly moved, unless `force`."""
        self._changes = 0
        mean = sample.mean(axis=0) if self._share and len(sample) >= MIN_NOTES else None
        if (
            not force
            and mean is not None
            and self._mean is not None
            and np.linalg.norm(mean - self._mean) < MIN_CENTRE_SHIFT
        ):
            return
        self._set_mean(mean)

    def arrays(self) -> Arrays:
        """Return the arrays for a snapshot; the mean is empty where there is none."""
        mean = np.zeros(0, np.float32) if self._mean is None else self._mean
        return {"mean": mean, "changes": np.array([self._changes])}

    def restore(self, arrays: Arrays) -> None:
        """Load the mean from a snapshot."""
        self._set_mean(np.array(arrays["mean"]) if len(arrays["mean"]) else None)
        self._changes = int(arrays["changes"][0])

    def _set_mean(self, mean: Vector | None) -> None:
        self._mean = mean
        self.current = Centre() if mean is None else Centre(np.float32(self._share) * mean)
