"""Vectors of a corpus's notes by a teacher, in files beside them: computed once, read by each distillation.

FOLDER/<source>.<shard>.npy holds the unit vectors (n, K) float16 of SHARD_SIZE notes of FOLDER/<source>.jsonl.gz in the
file's order; the last shard is shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.data.dataset import read_notes
from model.note import Note

SHARD_SIZE = 4096
"""Notes of one file: a minute or two of work, which is what a break costs."""

Float16 = npt.NDArray[np.float16]


def notes_path(folder: Path, source: str) -> Path:
    """Path of the notes of one source."""
    return folder / f"{source}.jsonl.gz"


def shard_path(folder: Path, source: str, shard: int) -> Path:
    """Path of the vectors of one shard."""
    return folder / f"{source}.{shard:04d}.npy"


def write_corpus_vectors(
    embed: Callable[[Sequence[Note]], npt.NDArray[np.float32]],
    folder: Path,
    source: str,
    max_notes: int | None = None,
) -> int:
    """Write the missing shards of a source's first `max_notes` notes; returns how many notes were embedded.

    `embed`: notes to unit vectors (n, K). A shard's file appears when it is complete.
    """
    notes = list(read_notes(notes_path(folder, source)).values())[:max_notes]
    embedded = 0
    for shard, start in enumerate(range(0, len(notes), SHARD_SIZE)):
        path = shard_path(folder, source, shard)
        if path.exists():
            continue
        shard_notes = notes[start : start + SHARD_SIZE]
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            np.save(file, embed(shard_notes).astype(np.float16))
        unfinished.rename(path)
        embedded += len(shard_notes)
    return embedded


def read_corpus_vectors(folder: Path, source: str) -> tuple[list[Note], Float16]:
    """Read the notes of a source that have vectors, and these vectors (n, K), in the file's order."""
    shards: list[Float16] = []
    for shard in count():
        path = shard_path(folder, source, shard)
        if not path.exists():
            break
        shards.append(np.load(path))
    vectors = np.concatenate(shards) if shards else np.zeros((0, 0), np.float16)
    return list(read_notes(notes_path(folder, source)).values())[: len(vectors)], vectors
