"""Properties of whitening: the shared mean is gone, and the checkpoint still serves."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from model.category_head import CATEGORIES_FILE
from model.config import CheckpointError, NoteLLMConfig
from model.data.corpora import write_notes_file
from model.inference.engine import Engine
from model.note import Note
from model.training.whiten import whiten, whiten_by_training_notes, whitening

NOTES = [Note(title=f"{word} {number}") for word in ("soup", "hike", "lamp", "yarn") for number in range(30)]


def two_sets() -> list[np.ndarray]:
    """Unit vectors (500, 16) of two data sets, each around its own mean, wider in some directions than in others."""
    rng = np.random.default_rng(0)
    sets = [rng.normal(rng.normal(size=16), np.geomspace(1, 0.1, 16), (500, 16)) for _ in range(2)]
    return [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in sets]


def test_mean_of_each_data_set_is_removed() -> None:
    sets = two_sets()
    matrix = whitening(sets, 8)
    assert matrix.shape == (8, 16)
    for vectors in sets:
        assert np.linalg.norm(vectors.mean(0)) > 0.3
        assert np.linalg.norm(matrix @ vectors.mean(0)) < 1e-5


@pytest.mark.parametrize("power", [0.0, 0.1, 0.5])
def test_variances_are_equalised_as_the_power_says(power: float) -> None:
    sets = two_sets()
    covariance, plain = (
        np.mean([np.cov((vectors @ whitening(sets, 6, p).T).T) for vectors in sets], axis=0) for p in (power, 0.0)
    )
    assert covariance == pytest.approx(np.diag(np.diag(covariance)), abs=1e-5)
    variances = np.diag(plain)
    assert (np.diff(variances) < 0).all()
    assert np.diag(covariance) == pytest.approx(variances ** (1 - 2 * power), rel=1e-3)


def test_dimension_above_the_remaining_directions_is_refused() -> None:
    assert whitening(two_sets(), 14).shape == (14, 16)
    with pytest.raises(ValueError, match=r"16 numbers have only 14 directions .* a dimension of at most 14"):
        whitening(two_sets(), 15)


def test_dimension_above_what_few_notes_span_is_refused() -> None:
    few = [vectors[:4] for vectors in two_sets()]
    assert np.isfinite(whitening(few, 6)).all()
    with pytest.raises(ValueError, match="4, 4 notes span only 6 directions, fewer than 7: use more notes"):
        whitening(few, 7)
    with pytest.raises(ValueError, match="at least two training notes"):
        whitening([few[0], few[0][:1]], 1)


def test_whitened_checkpoint_gives_a_new_vector_space(
    tiny_checkpoint: Path, tiny_engine: Engine, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "whitened"))
    before = tiny_engine.embed(NOTES)
    (folder / CATEGORIES_FILE).write_bytes(b"fitted to the vectors as they were")
    whiten(folder, [before[::2], before[1::2]], 8)
    changed = Engine.load(str(folder), cache=tmp_path, runtime="torch", dtype="float32", device="cpu")
    expected = before @ whitening([before[::2], before[1::2]], 8).T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert changed.embed(NOTES) == pytest.approx(expected, abs=2e-3)
    assert (changed.dimension, changed.name) == (8, tiny_engine.name)
    assert changed.space != tiny_engine.space
    assert not (folder / CATEGORIES_FILE).exists()


def test_dimension_that_cannot_be_had_is_refused_before_notes_are_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_notes_file(tmp_path / "notes.jsonl.gz", [], "n")
    with pytest.raises(ValueError, match="a dimension of at most 31"):
        whiten_by_training_notes(tiny_checkpoint, [tmp_path], 32, 10, tmp_path)


def test_checkpoint_without_a_projection_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    NoteLLMConfig(name="bare").save(tmp_path)
    with pytest.raises(CheckpointError, match="no projection"):
        whiten(tmp_path, two_sets(), 8)
