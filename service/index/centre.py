"""LiveCentre: what the vectors of an index's notes have in common, kept up to date; queries by notes leave it out.

Shapes: D numbers of a vector, N notes of a sample.
"""

from __future__ import annotations

import numpy as np

from service.index.backend import Arrays
from service.records import Centre, Vector, Vectors

MIN_NOTES = 256
"""Notes from which on queries leave out a centre: the mean of 200 notes serves as well as that of all of them."""
SAMPLED_NOTES = 2048
"""Notes that a centre is estimated from, about: reading them takes some milliseconds, whatever the index has."""
CHANGES_SHARE = 8
"""A centre is estimated again once as many notes have changed as an eighth of the index has, and MIN_NOTES at least."""

MOVED = 0.03
"""Distance by which a new estimate of the mean must differ from the centre to replace it. The means of two samples of
the same notes are that far apart at the most; and each new centre drops all kept lists of neighbours."""


class LiveCentre:
    """The centre of an index that changes. `share`: that of the mean, which is the model's; 0 for no centre."""

    def __init__(self, share: float) -> None:
        self.current = Centre()
        self._share = share
        self._mean: Vector | None = None
        self._changes = 0

    def is_due(self, changes: int, notes: int) -> bool:
        """Add to the changes since the last estimate; return whether the centre should be estimated again. `notes`: how
        many the index has."""
        self._changes += changes
        if not self._share or notes < MIN_NOTES:
            return self._mean is not None
        return self._mean is None or self._changes >= max(MIN_NOTES, notes // CHANGES_SHARE)

    def renew(self, sample: Vectors, *, anew: bool = False) -> None:
        """Take the mean of a sample of the notes' vectors (N, D). With fewer than MIN_NOTES there is no centre. The
        present one stays where the mean has hardly moved, unless it is to be made `anew`."""
        self._changes = 0
        mean = sample.mean(axis=0) if self._share and len(sample) >= MIN_NOTES else None
        if not anew and mean is not None and self._mean is not None and np.linalg.norm(mean - self._mean) < MOVED:
            return
        self._set_mean(mean)

    def arrays(self) -> Arrays:
        """Return the mean as a snapshot has it: no number where there is none."""
        mean = np.zeros(0, np.float32) if self._mean is None else self._mean
        return {"mean": mean, "changes": np.array([self._changes])}

    def restore(self, arrays: Arrays) -> None:
        """Take on the mean of a snapshot."""
        self._set_mean(np.array(arrays["mean"]) if len(arrays["mean"]) else None)
        self._changes = int(arrays["changes"][0])

    def _set_mean(self, mean: Vector | None) -> None:
        self._mean = mean
        self.current = Centre() if mean is None else Centre(np.float32(self._share) * mean)
