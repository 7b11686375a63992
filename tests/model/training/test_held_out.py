"""Held-out domains: validation notes and their pairs, and a smaller pool of them for a cheap look."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from model.data.pairs import split_of
from model.note import Note
from model.training.held_out import HeldOutDomain, recalls
from model.training.teacher import unit

NOTES = tuple(Note(id=str(n), title=f"note {n}") for n in range(60))
PAIRS = tuple((str(n), str(n + 1)) for n in range(0, 40, 2))


def vectors_near_in_pairs(notes: tuple[Note, ...]) -> np.ndarray:
    """Unit vectors in which a pair's notes are nearest to each other."""
    directions = np.random.default_rng(0).normal(size=(60, 16))
    return unit(np.stack([directions[int(note.id) // 2] for note in notes]) + 3.0)


def test_recall_counts_targets_within_the_cutoff() -> None:
    domain = HeldOutDomain("x", NOTES, PAIRS, cutoff=1)
    assert domain.recall(vectors_near_in_pairs(NOTES)) == 1.0
    assert domain.recall(unit(np.random.default_rng(1).normal(size=(60, 16)))) < 0.3


def test_sampled_pool_keeps_pairs_and_lowers_the_cutoff() -> None:
    domain = HeldOutDomain("x", NOTES, PAIRS, cutoff=12)
    small = domain.sample(30)
    assert len(small.notes) == 30
    assert small.cutoff == 6
    ids = {note.id for note in small.notes}
    assert 7 <= len(small.pairs) < 20
    assert all(ids.issuperset(pair) for pair in small.pairs)
    assert small == domain.sample(30)
    assert domain.sample(60) is domain


def test_recall_is_of_plain_and_of_centred_vectors() -> None:
    domain = HeldOutDomain("x", NOTES, PAIRS, cutoff=1)
    assert recalls(lambda notes: vectors_near_in_pairs(tuple(notes)), [domain]) == {
        "x": {"as it is": pytest.approx(100.0), "centred": pytest.approx(100.0)}
    }


def test_only_validation_notes_are_read_and_pairs_kept(tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    ids = [str(n) for n in range(40)]
    with gzip.open(folder / "notes.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"id": i, "title": f"note {i}"}) + "\n" for i in ids)
    with gzip.open(folder / "clicks.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"user": f"u{u}", "note": i, "time": None}) + "\n" for u in range(3) for i in ids)
    domain = HeldOutDomain.load(folder, tmp_path)
    assert {note.id for note in domain.notes} == {i for i in ids if split_of(i) == "validation"}
    assert domain.pairs
    assert all(split_of(i) == "validation" for pair in domain.pairs for i in pair)
    (folder / "clicks.jsonl.gz").unlink()
    assert HeldOutDomain.load(folder, tmp_path) == domain
