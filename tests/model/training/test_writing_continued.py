"""Tests of training that continues a checkpoint's own generation adapter instead of starting with an untrained one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.config import CheckpointError, NoteLLMConfig
from model.data.corpora import write_notes_file
from model.note import Note
from model.training.recipe import RecipeError
from model.training.writing import GenerationTrainer, main
from model.training.writing_recipe import GenerationRecipe
from tests.model.inference.models import add_random_generation_adapter


def trainer(checkpoint: Path, notes_file: Path, folder: Path, **changes: Any) -> GenerationTrainer:
    settings = {"shares": {"own": 1.0}, "rank": 4, "batch": 16, "learning_rate": 1e-2, "warmup_steps": 1, "steps": 10}
    recipe = GenerationRecipe(**settings | {"continue_adapter": True} | changes)
    return GenerationTrainer(recipe, checkpoint, {"own": notes_file}, folder, folder)


@pytest.fixture
def taught(tiny_checkpoint: Path, notes_file: Path, tmp_path: Path) -> Path:
    trainer(tiny_checkpoint, notes_file, tmp_path / "taught", continue_adapter=False).run(60)
    return tmp_path / "taught" / "checkpoint"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, 6])
def test_continued_run_begins_with_what_the_adapter_has_learnt(
    tiny_checkpoint: Path, taught: Path, notes_file: Path, tmp_path: Path, rank: int
) -> None:
    untaught = trainer(tiny_checkpoint, notes_file, tmp_path / "anew", continue_adapter=False).measure()
    continued = trainer(taught, notes_file, tmp_path / "continued", rank=rank)
    before = continued.measure()
    assert before < 0.9 * untaught
    continued.run(60)
    assert continued.measure() < before


def test_names_that_the_adapter_has_learnt_count_as_trained(taught: Path, notes_file: Path, tmp_path: Path) -> None:
    write_notes_file(notes_file, [Note(title=f"river {i}", category="Rivers") for i in range(40)], "own")
    trainer(taught, notes_file, tmp_path / "continued", steps=1).run(60)
    config = NoteLLMConfig.load(tmp_path / "continued" / "checkpoint")
    assert {"Food", "Cooking", "Hill walks", "Rivers"} <= set(config.trained_categories)


def test_checkpoint_without_an_adapter_is_refused(
    tiny_checkpoint: Path, notes_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "run"), "--cache", str(tmp_path)]
    with pytest.raises(SystemExit):
        main([*options, "--notes", f"{notes_file}=1", "--continue-adapter"])
    assert "no generation adapter to continue: leave out --continue-adapter" in capsys.readouterr().err


def test_adapter_of_another_trunk_is_refused(tiny_checkpoint: Path, notes_file: Path, tmp_path: Path) -> None:
    stale = Path(shutil.copytree(tiny_checkpoint, tmp_path / "stale"))
    add_random_generation_adapter(stale)
    replace(NoteLLMConfig.load(stale), generation_trunk="0" * 64).save(stale)
    with pytest.raises(CheckpointError, match="was trained on another trunk"):
        trainer(stale, notes_file, tmp_path / "run")


def test_adapter_of_a_higher_rank_is_refused(tiny_checkpoint: Path, notes_file: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "high"))
    add_random_generation_adapter(checkpoint, rank=8)
    with pytest.raises(CheckpointError, match=r"generation has rank 8: choose a rank of at least 8"):
        trainer(checkpoint, notes_file, tmp_path / "run")


def test_run_whose_adapter_changed_is_not_resumed(tiny_checkpoint: Path, notes_file: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "own"))
    add_random_generation_adapter(checkpoint)
    trainer(checkpoint, notes_file, tmp_path / "run", steps=1).run(60)
    with pytest.raises(RecipeError, match=r"different: continue_adapter"):
        trainer(checkpoint, notes_file, tmp_path / "run", steps=1, continue_adapter=False)
    add_random_generation_adapter(checkpoint, rank=2)
    with pytest.raises(RecipeError, match=r"^generation adapter changed since the run"):
        trainer(checkpoint, notes_file, tmp_path / "run", steps=1)
