"""A space in which vectors use all of their room: what a checkpoint's projection becomes once training has ended.

Training leaves what all notes share in every vector, and a few directions that outweigh the rest. Neither tells two
notes apart. Shapes: N notes, K dimension as trained, D dimension afterwards, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from model.category_head import CATEGORIES_FILE
from model.config import CheckpointError, NoteLLMConfig
from model.weights import HEAD_FILE, loading_errors

Floats = npt.NDArray[np.floating]
POWER = 0.1
"""Of the variances by which directions are divided: 0 leaves them, 0.5 makes all alike. What each power does:
docs/decisions/0013-whitening.md."""
LEAST_VARIANCE = 1e-6
"""Of the largest; below are directions that the notes do not fill."""


def whitening(vectors: Sequence[Floats], dimension: int, power: float = POWER) -> npt.NDArray[np.float32]:
    """(D, K) by which unit vectors (N, K) of some data sets' notes are to be multiplied.

    The directions of the sets' means are taken out; of what is left the `dimension` principal directions stay, each
    divided by variance^power (Su et al. 2021 with a power of 0.5; Arora et al. 2017 take out what is common). Every set
    counts as much as any other. ValueError where that leaves fewer directions than `dimension`.
    """
    if min(map(len, vectors)) < 2:
        raise ValueError("a data set has fewer than two training notes to whiten by")
    shared = np.linalg.qr(np.stack([of.mean(0) for of in vectors]).T.astype(np.float64))[0]
    kept = np.eye(len(shared)) - shared @ shared.T
    covariance = np.mean([np.cov(of.T.astype(np.float64)) for of in vectors], axis=0)
    variances, directions = np.linalg.eigh(kept @ covariance @ kept)
    left = int(np.count_nonzero(variances > LEAST_VARIANCE * variances[-1])) if variances[-1] > 0 else 0
    if dimension > left:
        notes = ", ".join(f"{len(of):,}" for of in vectors)
        raise ValueError(f"the vectors of {notes} notes fill {left} directions, fewer than {dimension}: read more")
    best = slice(None, -dimension - 1, -1)
    scaled: npt.NDArray[np.floating] = (directions[:, best] / variances[best] ** power).T @ kept
    return scaled.astype(np.float32)


def whiten(checkpoint: Path, vectors: Sequence[Floats], dimension: int) -> None:
    """Change a checkpoint's projection (K, H) to (D, H), by what it made of training notes: one array a data set.

    What `notellm fit-categories` made is deleted. Raises CheckpointError when it has no projection, ValueError as
    `whitening`.
    """
    config = NoteLLMConfig.load(checkpoint)
    path = checkpoint / HEAD_FILE
    if config.dimension is None:
        raise CheckpointError(f"{checkpoint} has no projection that could be changed")
    with loading_errors(path):
        head = load_file(path)
        projection = head["projection"]
    head["projection"] = (whitening(vectors, dimension) @ projection.astype(np.float32)).astype(np.float32)
    save_file(head, path)
    (checkpoint / CATEGORIES_FILE).unlink(missing_ok=True)  # fitted to what its vectors were
    replace(config, dimension=dimension).save(checkpoint)
