"""A data set and a recipe that train in a moment, a corpus to distil from and notes to learn to write from, for every
test of training."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from model.data.corpora import write_notes_file
from model.data.pairs import PairOptions, related_pairs, split_of
from model.note import Note
from model.training.recipe import Data, Recipe
from tests.model.training.distillation import write_corpus

WORDS = ("river", "bread", "lamp", "cloud", "horse", "piano", "stone", "apple")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Notes of eight subjects; each user reads two notes of one subject."""
    folder = tmp_path_factory.mktemp("data")
    notes = [{"id": str(i), "title": f"{WORDS[i % 8]} number {i}"} for i in range(400)]
    for note in notes:
        subject = WORDS[int(note["id"]) % 8]
        note |= {"content": f"about the {subject}", "hashtags": [subject, "daily"], "category": subject.title()}
    (folder / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    with (folder / "clicks.jsonl").open("w") as clicks:
        for user, (a, b) in enumerate(itertools.combinations(range(400), 2)):
            if a % 8 == b % 8 and (b - a) < 60 and split_of(str(a)) == split_of(str(b)):
                clicks.writelines(json.dumps({"user": user, "note": str(i)}) + "\n" for i in (a, b))
    related_pairs(folder / "clicks.jsonl", folder / "pairs.parquet", PairOptions())
    return Data(notes=folder / "notes.jsonl", pairs=folder / "pairs.parquet")


@pytest.fixture(scope="session")
def recipe(data: Data, tiny_checkpoint: Path) -> Recipe:
    return Recipe(
        name="tiny-trained",
        data=(data,),
        backbone=str(tiny_checkpoint / "backbone"),
        dimension=16,
        batch_pairs=4,
        steps=6,
        lora_rank=4,
        bfloat16=False,
        evaluate_every=3,
        save_every=2,
        validation_notes=40,
    )


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with teacher's vectors (`distillation.write_corpus`). It is shared: a test must not change its files."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture
def notes_file(tmp_path: Path) -> Path:
    """Notes of two categories, each with two hashtags, as a notes file."""
    notes = [
        Note(title=f"{word} number {number}", hashtags=(word, "daily"), category=category)
        for number in range(20)
        for word, category in (("soup", "Food"), ("hike", "Hill walks"))
    ]
    path = tmp_path / "own.jsonl.gz"
    write_notes_file(path, notes, "own")
    return path
