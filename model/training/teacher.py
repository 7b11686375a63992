"""The teacher of the distillation loss: a vector for each training note, whose inner products give similarities.

It has two sources: behaviour (the scores of the pairs) and another model's vectors (`notellm embed`).
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.data.dataset import DatasetError, PairedNotes
from model.note import Note
from model.whole_file import whole_file

BEHAVIOUR_DIMENSION = 128
"""Number of singular vectors that are kept, the dimension of the paper's embedding."""
CONTEXT_SMOOTHING = 0.75
"""Exponent of the context's frequency, which lowers the information of rare notes (Levy et al. 2015, section 3.2)."""
SCORE_OF_ONE_USER = 0.1
"""Score at which a pair counts half; higher scores count more. Typically one user who clicked ten notes made it."""

Vectors = Mapping[str, npt.NDArray[np.float32]]
"""Unit vectors (or zeros) by the id of the note."""


class Teacher:
    """The teacher of one data set. `vectors_file`: another model's vectors of its notes, from `write_vectors`. Pairs
    with a score of 0 or less teach nothing. Raises DatasetError where the file has a vector of none of the notes."""

    def __init__(self, paired: PairedNotes, vectors_file: Path | None = None) -> None:
        scores = {pair: score for pair, score in paired.scores.items() if score > 0}
        self._sources = [behaviour_vectors(scores)] if scores else []
        if vectors_file is not None:
            read = read_vectors(vectors_file)
            if read.keys().isdisjoint(paired.notes):
                raise DatasetError(
                    f"{vectors_file} has vectors for none of {len(paired.notes):,} training notes: it has ids such as "
                    f"{next(iter(read))!r}, the notes have {next(iter(paired.notes))!r}. Make it from the same notes "
                    "file"
                )
            self._sources.append(read)

    def vectors(self, notes: Sequence[Note]) -> Tensor:
        """Return vectors (len(notes), K) float32, of unit length for a note that all sources know, shorter for others.

        The sources' vectors are concatenated and scaled so that the inner product of two notes is the mean of the
        sources' cosines. A source that does not know one of the two contributes a cosine of 0, as for unrelated notes.
        A note that no source knows gets a zero vector.
        """
        parts = [np.zeros((len(notes), 0), np.float32)]
        for source in self._sources:
            unknown = np.zeros_like(next(iter(source.values())))
            parts.append(np.stack([source.get(note.id, unknown) for note in notes]))
        scale: float = max(1, len(self._sources)) ** -0.5
        return torch.from_numpy(np.concatenate(parts, axis=1)) * scale


def behaviour_vectors(scores: Mapping[tuple[str, str], float], dimension: int = BEHAVIOUR_DIMENSION) -> Vectors:
    """Return vectors of all notes that have a pair, from the pairs' scores by (id, id), which are above 0.

    They are the largest singular vectors of the notes' positive pointwise mutual information (Levy et al. 2015,
    sections 2.2 and 3.2, with smoothed contexts), with low scores, made by few users, damped.
    """
    from scipy import sparse
    from sklearn.utils.extmath import randomized_svd

    ids = sorted({note_id for pair in scores for note_id in pair})
    row = {note_id: i for i, note_id in enumerate(ids)}
    pairs = np.array([[row[a], row[b]] for a, b in scores], np.int64).reshape(-1, 2)
    targets, contexts = np.concatenate([pairs, pairs[:, ::-1]]).T
    score = np.tile(np.fromiter(scores.values(), np.float64), 2)
    totals = np.bincount(targets, score, len(ids))
    context_share = totals**CONTEXT_SMOOTHING / (totals**CONTEXT_SMOOTHING).sum()
    damping = score + SCORE_OF_ONE_USER
    information = np.log(score / (totals[targets] * context_share[contexts])).clip(0) * score / damping
    matrix = sparse.csr_matrix((information, (targets, contexts)), (len(ids), len(ids)))
    left, values, right = randomized_svd((matrix + matrix.T) / 2, min(dimension, len(ids) - 1), random_state=0)
    # The matrix has no diagonal, so some eigenvalues are negative, with opposite left and right singular vectors.
    # Averaging both removes these directions, in which notes that belong together would be opposites.
    return dict(zip(ids, unit((left + right.T) / 2 * np.sqrt(values)), strict=True))


def unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Scale rows to length 1, float32; rows of zeros stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    divided: npt.NDArray[np.floating] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return divided.astype(np.float32, copy=False)


def write_vectors(path: Path, ids: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
    """Write `ids` and `vectors` (N, D) atomically as one .npz file, and create its folder. Raises OSError."""
    with whole_file(path) as file:
        np.savez_compressed(file, ids=np.array(ids), vectors=vectors)


def read_vectors(path: Path) -> Vectors:
    """Read what `write_vectors` wrote, scaled to unit length. Raises DatasetError for any other file."""
    with _vectors_file(path) as stored:
        vectors = dict(zip(stored["ids"].tolist(), unit(stored["vectors"]), strict=True))
    if not vectors:
        raise DatasetError(f"{path} has no vectors")
    return vectors


def known_share(path: Path, ids: Collection[str]) -> float:
    """Return the share of `ids` that a file of `write_vectors` has; only the ids are read. Raises DatasetError as
    `read_vectors` does."""
    with _vectors_file(path) as stored:
        known = set(stored["ids"].tolist())
    return sum(note_id in known for note_id in ids) / max(1, len(ids))


@contextmanager
def _vectors_file(path: Path) -> Iterator[Any]:
    """Open a file of `write_vectors`. Raises DatasetError for any other file, also when reading inside the context."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            yield stored
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path} is not a file of vectors; make it with `notellm embed`: {error}") from error
