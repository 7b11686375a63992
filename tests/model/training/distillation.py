"""A corpus for the tests of distillation, with vectors made by a rule instead of a teacher, and data of a held-out
domain."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from model.data.corpora import write_notes_file
from model.note import Note
from model.training.corpus_vectors import notes_path, shard_path, write_digest
from model.training.teacher import unit

WORDS = ("soup", "hike", "lamp", "yarn", "film", "horse", "piano", "tent")
DIMENSION = 12
ENCODER = "by-rule"


def vectors_by_rule(notes: list[Note]) -> np.ndarray:
    """Return unit vectors (N, 12): the sum of a direction for each word of the title, plus one that all notes share."""
    directions = np.random.default_rng(0).normal(size=(len(WORDS), DIMENSION))
    has_word = np.array([[word in note.title for word in WORDS] for note in notes], np.float32)
    return unit(has_word @ directions + 0.5)


def write_corpus(folder: Path) -> None:
    """Write two sources, `lists` of 60 notes and `long` of 20, with vectors of 12 numbers."""
    lists = [Note(title=f"{a} and {b}, {n}") for n, a in enumerate(WORDS) for b in WORDS][:60]
    long = [Note(title=f"{WORDS[n % 8]} {n}", content="and much more of it " * (1 + n % 3)) for n in range(20)]
    for source, notes in (("lists", lists), ("long", long)):
        write_notes_file(notes_path(folder, source), notes, source)
        write_digest(folder, ENCODER, source)
        np.save(shard_path(folder, ENCODER, source, 0), vectors_by_rule(notes).astype(np.float16))


def write_data(folder: Path, history: list[str]) -> None:
    """Write forty notes, and the clicks of three users who each read `history`."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "notes.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"id": str(n), "title": f"note {n}"}) + "\n" for n in range(40))
    clicks = [{"user": f"u{user}", "note": note, "time": None} for user in range(3) for note in history]
    with gzip.open(folder / "clicks.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(click) + "\n" for click in clicks)
