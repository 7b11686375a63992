"""A run that was broken off goes on as if it had not been."""

from __future__ import annotations

import resource
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.training import resume
from model.training.recipe import Recipe, RecipeError
from model.training.resume import LAST, newest_state, replaced_folder, save_state, wait_while_exists
from model.training.trainer import BEST, Trainer
from tests.model.training.runs import losses

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("beyond_gcl", [False, True])
def test_killed_run_resumes_to_the_identical_losses(recipe: Recipe, tmp_path: Path, beyond_gcl: bool):
    if beyond_gcl:
        recipe = replace(recipe, memory=True, distillation=0.5, reread_notes=7, unpaired_notes=9)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    list(Trainer(recipe, whole, cache=tmp_path).run())
    run = Trainer(recipe, broken, cache=tmp_path).run()
    for _ in range(5):  # the state was saved after step 4, so the fifth step is lost
        next(run)
    del run
    list(Trainer(recipe, broken, cache=tmp_path).run())
    assert losses(broken)[:5] == losses(whole)[:5]
    assert losses(broken)[5:] == losses(whole)[4:]


def test_folder_with_a_run_of_another_recipe_is_refused(recipe: Recipe, tmp_path: Path):
    list(Trainer(replace(recipe, steps=2), tmp_path, cache=tmp_path).run())
    with pytest.raises(RecipeError, match=r"another recipe \(learning_rate\)"):
        Trainer(replace(recipe, steps=2, learning_rate=1.0), tmp_path, cache=tmp_path)


def test_run_from_before_a_field_was_there_is_resumed(recipe: Recipe, tmp_path: Path):
    recipe = replace(recipe, steps=2)
    list(Trainer(recipe, tmp_path, cache=tmp_path).run())
    state = torch.load(tmp_path / LAST, weights_only=True)
    del state["recipe"]["reread_notes"]
    torch.save(state, tmp_path / LAST)
    assert Trainer(recipe, tmp_path, cache=tmp_path).ended


def test_folder_with_a_run_on_other_notes_is_refused(recipe: Recipe, tmp_path: Path):
    (data,) = recipe.data
    notes = Path(shutil.copy(data.notes, tmp_path))
    recipe = replace(recipe, steps=2, data=(replace(data, notes=notes),))
    (tmp_path / "run").mkdir()
    list(Trainer(recipe, tmp_path / "run", cache=tmp_path).run())
    assert Trainer(recipe, tmp_path / "run", cache=tmp_path).ended
    with notes.open("a") as file:
        file.write('{"id": "new", "title": "one more"}\n')
    with pytest.raises(RecipeError, match=r"notes.jsonl changed since the run .* began: choose a new folder"):
        Trainer(recipe, tmp_path / "run", cache=tmp_path)


def test_folder_with_a_run_on_another_frozen_backbone_is_refused(recipe: Recipe, tmp_path: Path):
    backbone = Path(shutil.copytree(recipe.backbone, tmp_path / "backbone"))
    recipe = replace(recipe, steps=2, backbone=str(backbone))
    run = tmp_path / "run"
    run.mkdir()
    list(Trainer(recipe, run, cache=tmp_path).run())
    (file,) = backbone.glob("*.safetensors")
    save_file({name: 2 * weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(RecipeError, match=rf"^{backbone} changed since the run .* began: choose a new folder"):
        Trainer(recipe, run, cache=tmp_path)


def test_run_from_before_backbones_were_checked_is_resumed_and_says_so(recipe: Recipe, tmp_path: Path):
    recipe = replace(recipe, steps=2)
    list(Trainer(recipe, tmp_path, cache=tmp_path).run())
    state = torch.load(tmp_path / LAST, weights_only=True)
    del state["files"][recipe.backbone]
    torch.save(state, tmp_path / LAST)
    messages: list[str] = []
    assert Trainer(recipe, tmp_path, cache=tmp_path, progress=messages.append).ended
    unchecked = f"{tmp_path / LAST} is of an earlier version: whether {recipe.backbone} changed since the run began"
    assert [message for message in messages if message.startswith(unchecked)]


def test_no_pause_file_is_no_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "time", SimpleNamespace(sleep=lambda seconds: pytest.fail("waited")))
    assert wait_while_exists(None, lambda: True)
    assert wait_while_exists(tmp_path / "pause", lambda: True)


def test_pause_ends_once_the_file_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pause"
    file.touch()
    monkeypatch.setattr(resume, "time", SimpleNamespace(sleep=lambda seconds: file.unlink()))
    assert wait_while_exists(file, lambda: False)
    assert not file.exists()


def test_stop_ends_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, checks = tmp_path / "pause", iter((False, True))
    file.touch()
    monkeypatch.setattr(resume, "PAUSE_CHECK_SECONDS", 0.0)
    assert not wait_while_exists(file, lambda: next(checks))


def test_two_newest_states_stay(tmp_path: Path) -> None:
    assert newest_state(tmp_path) is None
    for step in (9, 10, 200):
        save_state(tmp_path, step, {"step": step})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["state.00000010.pt", "state.00000200.pt"]
    assert newest_state(tmp_path) == tmp_path / "state.00000200.pt"


def test_folder_that_cannot_be_written_whole_leaves_the_earlier_one(tmp_path: Path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "weights").write_text("earlier")

    def write_anew() -> None:
        with replaced_folder(tmp_path / "best") as new:
            new.mkdir()
            save_file({"weights": torch.zeros(1000)}, new / "weights")

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"best\.unfinished cannot be written"):
            write_anew()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "best" / "weights").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_folder_that_a_kill_left_between_its_renames_gets_its_name_back(recipe: Recipe, tmp_path: Path):
    recipe = replace(recipe, steps=2)
    list(Trainer(recipe, tmp_path, cache=tmp_path).run())
    assert (tmp_path / BEST).is_dir()
    (tmp_path / BEST).rename(tmp_path / f"{BEST}.previous")
    Trainer(recipe, tmp_path, cache=tmp_path)
    assert (tmp_path / BEST).is_dir()
    assert not (tmp_path / f"{BEST}.previous").exists()
