"""Whitening of a finished checkpoint: a new projection spreads its vectors evenly, in fewer dimensions.

After training, all vectors share a mean, and a few directions dominate; neither helps to tell two notes apart
(docs/decisions/0013-whitening.md).

Shapes: N notes, K trained dimension, D whitened dimension, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save

from model.category_head import CATEGORIES_FILE
from model.config import CheckpointError, NoteLLMConfig
from model.data.dataset import read_notes
from model.evaluation.evaluate import notes_of_split
from model.evaluation.protocol import notes_path
from model.inference.engine import Engine
from model.weights import HEAD_FILE, Progress, loading_errors, silent
from model.whole_file import whole_file

Floats = npt.NDArray[np.floating]
POWER = 0.1
"""Each direction is divided by its variance to this power: 0 keeps the variances, 0.5 makes them equal.
docs/decisions/0013-whitening.md compares several powers."""
DEFAULT_DIMENSION = 128
"""Default dimension of a whitened vector; smaller where the projection has fewer directions."""
MIN_VARIANCE_SHARE = 1e-6
"""Directions with less variance than this share of the largest are dropped: the notes do not span them."""


def max_dimension(width: int, data_sets: int) -> int:
    """Return the maximum dimension of whitened vectors: `width` less one for the mean of each data set."""
    return width - data_sets


def too_large(width: int, available: int, dimension: int) -> str:
    """Return the error message for a `dimension` that vectors of `width` cannot give."""
    return (
        f"vectors of {width} numbers have only {available} directions without the mean of each data set, fewer than "
        f"{dimension}: choose a dimension of at most {available}, or train with a larger one"
    )


def whitening(vectors: Sequence[Floats], dimension: int, power: float = POWER) -> npt.NDArray[np.float32]:
    """Return the matrix (D, K) that whitens vectors (K,). `vectors`: unit vectors (N, K) of each data set.

    The mean vectors of the data sets are projected out (Arora et al. 2017). Of the remaining space the first
    `dimension` principal directions are kept, each divided by variance^power (Su et al. 2021, with a power of 0.5). All
    data sets have the same weight, whatever their size. Raises ValueError where fewer than `dimension` directions
    remain, either of K without the means or of those that the notes span.
    """
    if min(map(len, vectors)) < 2:
        raise ValueError("whitening requires at least two training notes of each data set")
    width, available = vectors[0].shape[1], max_dimension(vectors[0].shape[1], len(vectors))
    if dimension > available:
        raise ValueError(too_large(width, available, dimension))
    means = np.stack([of_set.mean(0) for of_set in vectors]).T.astype(np.float64)
    basis = np.linalg.qr(means)[0]
    remove_means = np.eye(len(basis)) - basis @ basis.T
    covariance = np.mean([np.cov(of_set.T.astype(np.float64)) for of_set in vectors], axis=0)
    variances, directions = np.linalg.eigh(remove_means @ covariance @ remove_means)
    largest = variances[-1]
    spanned = int(np.count_nonzero(variances > MIN_VARIANCE_SHARE * largest)) if largest > 0 else 0
    if dimension > spanned:
        notes = ", ".join(f"{len(of_set):,}" for of_set in vectors)
        raise ValueError(
            f"the vectors of {notes} notes span only {spanned} directions, fewer than {dimension}: use more notes"
        )
    principal = slice(None, -dimension - 1, -1)  # eigenvalues ascend
    scaled: npt.NDArray[np.floating] = (directions[:, principal] / variances[principal] ** power).T @ remove_means
    return scaled.astype(np.float32)


def whiten_by_training_notes(
    checkpoint: Path,
    data: Sequence[Path],
    dimension: int | None,
    max_notes: int,
    cache: Path,
    progress: Progress = silent,
) -> int:
    """Whiten a checkpoint by at most `max_notes` random training notes of each data set; return the dimension.

    `data`: folders with notes.jsonl.gz, or notes files. `dimension`: None for DEFAULT_DIMENSION, or the maximum if that
    is lower. Raises DatasetError, FileNotFoundError, and what `whiten` raises.
    """
    notes = [notes_of_split(read_notes(notes_path(path), progress), "train", max_notes) for path in data]
    engine = Engine.load(str(checkpoint), cache=cache, fitted=False, progress=progress)
    available = max_dimension(engine.dimension, len(notes))
    dimension = min(DEFAULT_DIMENSION, available) if dimension is None else dimension
    if dimension > available:
        raise ValueError(too_large(engine.dimension, available, dimension))
    progress(f"Reading {sum(map(len, notes)):,} notes")
    whiten(checkpoint, [engine.embed(of_set) for of_set in notes], dimension)
    return dimension


def whiten(checkpoint: Path, vectors: Sequence[Floats], dimension: int, power: float = POWER) -> None:
    """Replace a checkpoint's projection (K, H) by a whitened one (D, H).

    `vectors`: the checkpoint's vectors (N, K) of training notes, one array per data set. `power`: as for `whitening`.
    The category head is deleted, since it was fitted to the old vectors. Raises CheckpointError for a checkpoint
    without a projection, and ValueError as `whitening` does.
    """
    config = NoteLLMConfig.load(checkpoint)
    path = checkpoint / HEAD_FILE
    if config.dimension is None:
        raise CheckpointError(f"{checkpoint} has no projection to whiten")
    with loading_errors(path):
        head = load_file(path)
        projection = head["projection"]
    head["projection"] = (whitening(vectors, dimension, power) @ projection.astype(np.float32)).astype(np.float32)
    with whole_file(path) as file:
        file.write(save(head))
        file.flush()  # fails on a full disk before the outdated category head is deleted
        (checkpoint / CATEGORIES_FILE).unlink(missing_ok=True)
    # Leaving the block renamed the new head; the configuration, which must match it, follows at once.
    replace(config, dimension=dimension).save(checkpoint)
