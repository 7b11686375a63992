"""Query vectors: note vectors minus a share of the mean vector of their community.

The mean carries no information about which notes are related, so queries without it find more related notes
(docs/decisions/0037-centre.md).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def query_vectors(vectors: Vectors, centre: Vectors) -> Vectors:
    """Return unit query vectors (..., D) to search for notes related to given ones. `vectors` (..., D): unit vectors of
    the given notes. `centre` (D,): the community's mean vector times the share to subtract; its norm is below 1."""
    rest = vectors - centre
    queries: Vectors = rest / np.linalg.norm(rest, axis=-1, keepdims=True)
    return queries
