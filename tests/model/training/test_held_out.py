"""Tests of held-out domains: validation notes and their pairs, and smaller pools for cheap evaluations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.data.dataset import DatasetError
from model.data.pairs import split_of
from model.note import Note
from model.training import held_out
from model.training.held_out import HeldOutDomain, recalls
from model.training.teacher import unit
from tests.model.training.distillation import write_data

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


def test_only_validation_notes_are_read_and_pairs_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [str(n) for n in range(40)]
    write_data(tmp_path / "films", ids)
    domain = HeldOutDomain.load(tmp_path / "films", tmp_path / "cache")
    assert {note.id for note in domain.notes} == {i for i in ids if split_of(i) == "validation"}
    assert domain.pairs
    assert all(split_of(i) == "validation" for pair in domain.pairs for i in pair)
    monkeypatch.setattr(held_out, "evaluation_pairs", None)  # the pairs come from the cache
    assert HeldOutDomain.load(tmp_path / "films", tmp_path / "cache") == domain


def test_changed_clicks_make_new_pairs(tmp_path: Path) -> None:
    validation = [str(n) for n in range(40) if split_of(str(n)) == "validation"]
    for history in (validation[:2], validation[1:3]):
        write_data(tmp_path / "films", history)
        domain = HeldOutDomain.load(tmp_path / "films", tmp_path / "cache")
        assert {note for pair in domain.pairs for note in pair} == set(history)


def test_broken_off_write_of_pairs_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path / "films", [str(n) for n in range(40)])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", no_space)
        with pytest.raises(OSError, match="no space"):
            HeldOutDomain.load(tmp_path / "films", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert HeldOutDomain.load(tmp_path / "films", tmp_path / "cache").pairs


def no_space(path: Path, target: Path) -> None:
    raise OSError("no space")


def test_domain_without_validation_pairs_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    write_data(tmp_path / "films", [str(n) for n in range(40) if split_of(str(n)) == "train"])
    for _ in ("new", "cached"):
        with pytest.raises(DatasetError, match="films has no related pairs among its validation notes"):
            HeldOutDomain.load(tmp_path / "films", tmp_path / "cache")
