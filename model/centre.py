"""Query vectors: those of notes, less a share of the mean vector of their community.

The mean says nothing about which notes are related, so queries without it find more of them
(docs/decisions/0037-centre.md).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def query_vectors(vectors: Vectors, centre: Vectors) -> Vectors:
    """Return unit query vectors (..., D) to search for notes related to given ones. `vectors` (..., D): of the given
    notes, of unit length. `centre` (D,): the community's mean vector times the share to leave out; shorter than 1."""
    rest = vectors - centre
    queries: Vectors = rest / np.linalg.norm(rest, axis=-1, keepdims=True)
    return queries
