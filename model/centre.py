"""Queries by notes: their vectors without a share of what all vectors of their community have in common.

That common direction says nothing about which notes are related, so queries without it find more of them
(docs/decisions/0037-centre.md).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def query_vectors(vectors: Vectors, centre: Vectors) -> Vectors:
    """Return the unit vectors (..., D) by which the notes related to some notes are searched. `vectors`: those of these
    notes, (..., D), of unit length. `centre`: the share of the community's mean vector that is left out, (D,), shorter
    than 1."""
    rest = vectors - centre
    queries: Vectors = rest / np.linalg.norm(rest, axis=-1, keepdims=True)
    return queries
