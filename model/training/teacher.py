"""What is known of how alike training notes are, beside the pairs themselves: a vector of each, to distil from.

From behaviour, and from another model that has read them (`notellm embed`). Formulas: see `behaviour_vectors`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.data.dataset import DatasetError, PairedNotes
from model.note import Note

BEHAVIOUR_DIMENSION = 128
CONTEXT_SMOOTHING = 0.75
FEW_USERS = 0.1
"""A score of this counts half: it is one user's word."""

Vectors = Mapping[str, npt.NDArray[np.float32]]
"""Unit vectors by the id of the note."""


class Teacher:
    """Of one data set. `read`: vectors that another model gave its notes, as `write_vectors` stores them."""

    def __init__(self, paired: PairedNotes, read: Path | None = None) -> None:
        self._sources = [behaviour_vectors(paired.scores)] if paired.scores else []
        if read is not None:
            self._sources.append(read_vectors(read))

    def vectors(self, notes: Sequence[Note]) -> Tensor:
        """(len(notes), K) float32: what each source says, side by side, of unit length; zero where none knows the note.
        A cosine of two that all know is the mean of the sources' cosines."""
        parts = [np.zeros((len(notes), 0), np.float32)]
        for source in self._sources:
            unknown = np.zeros_like(next(iter(source.values())))
            parts.append(np.stack([source.get(note.id, unknown) for note in notes]))
        return torch.nn.functional.normalize(torch.from_numpy(np.concatenate(parts, axis=1)), dim=-1)


def behaviour_vectors(scores: Mapping[tuple[str, str], float], dimension: int = BEHAVIOUR_DIMENSION) -> Vectors:
    """What pairs say of each note that has one, from their scores by (id, id).

    The largest singular vectors of the notes' positive pointwise mutual information (Levy et al. 2015, sections 2.2 and
    3.2, with contexts smoothed by 0.75), where a score on few users' word counts less.
    """
    from scipy import sparse
    from sklearn.utils.extmath import randomized_svd

    ids = sorted({note_id for pair in scores for note_id in pair})
    row = {note_id: at for at, note_id in enumerate(ids)}
    ends = np.array([[row[a], row[b]] for a, b in scores], np.int64).reshape(-1, 2)
    of, to = np.concatenate([ends, ends[:, ::-1]]).T
    score = np.tile(np.fromiter(scores.values(), np.float64), 2)
    totals = np.bincount(of, score, len(ids))
    context = totals**CONTEXT_SMOOTHING / (totals**CONTEXT_SMOOTHING).sum()
    information = np.log(score / (totals[of] * context[to])).clip(0) * score / (score + FEW_USERS)
    matrix = sparse.csr_matrix((information, (of, to)), (len(ids), len(ids)))
    left, values, right = randomized_svd((matrix + matrix.T) / 2, min(dimension, len(ids) - 1), random_state=0)
    # Their mean: the two of a negative eigenvalue, which a matrix without a diagonal has, are opposite and leave.
    # Alone, one of them would make the contrary of notes that belong together.
    return dict(zip(ids, unit((left + right.T) / 2 * np.sqrt(values)), strict=True))


def unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Rows of length 1, float32; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    divided: npt.NDArray[np.floating] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return divided.astype(np.float32)


def write_vectors(path: Path, ids: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
    """`ids` and `vectors` (N, D) as one .npz file."""
    with path.open("wb") as file:  # given a path, numpy would change its name
        np.savez_compressed(file, ids=np.array(ids), vectors=vectors)


def read_vectors(path: Path) -> Vectors:
    """What `write_vectors` wrote, of unit length; DatasetError when it is no such file."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            vectors = dict(zip(stored["ids"].tolist(), unit(stored["vectors"]), strict=True))
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path} holds no vectors; make it with `notellm embed`: {error}") from error
    if not vectors:
        raise DatasetError(f"{path} holds the vectors of no note")
    return vectors
