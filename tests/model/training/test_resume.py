"""Tests of resuming: an interrupted run continues as if it had not been interrupted."""

from __future__ import annotations

import resource
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.training import resume
from model.training.model_card import read_log
from model.training.recipe import Recipe, RecipeError
from model.training.resume import (
    LAST,
    RunState,
    input_digests,
    lower_rate_in,
    newest_state,
    read_newest_state,
    replaced_folder,
    restore_log,
    save_state,
    wait_while_exists,
)
from model.training.trainer import BEST, FINAL, LOG, Trainer
from model.weights import HEAD_FILE
from tests.model.training.runs import losses, training_in

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
    assert losses(broken) == losses(whole)


def test_stopped_run_saves_after_its_step_and_goes_on_to_the_identical_losses(recipe: Recipe, tmp_path: Path):
    recipe = replace(recipe, memory=True, distillation=0.5)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    list(Trainer(recipe, whole, cache=tmp_path).run())
    trainer = Trainer(recipe, stopped, cache=tmp_path)
    run = trainer.run()
    next(run)
    trainer.stop()
    assert ([step.step for step in run], trainer.saved_step) == ([2], 2)
    assert not (stopped / FINAL).exists()
    list(Trainer(recipe, stopped, cache=tmp_path).run())
    assert losses(stopped) == losses(whole)
    assert (stopped / FINAL).is_dir()


def test_run_whose_log_a_full_disk_cut_off_goes_on_with_a_whole_one(recipe: Recipe, tmp_path: Path):
    run = Trainer(recipe, tmp_path, cache=tmp_path).run()
    for _ in range(4):
        next(run)
    del run
    with (tmp_path / LOG).open("a") as log:
        log.write('{"step": 5, "lo')
    told: list[str] = []
    list(Trainer(recipe, tmp_path, cache=tmp_path, progress=told.append).run())
    assert f"{tmp_path / LOG}: removed 1 damaged lines" in told
    assert [step["step"] for step in read_log(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_step_behind_a_line_that_was_cut_off_stays_in_the_log(tmp_path: Path):
    log, told = tmp_path / LOG, list[str]()
    log.write_text('{"step": 4}\n{"step": 5, "lo{"step": 5, "loss": 1.0}\n{"step": 6}\n{"step": 7}\n{"st')
    restore_log(log, 6, told.append)
    assert log.read_text() == '{"step": 4}\n{"step": 5, "loss": 1.0}\n{"step": 6}\n'
    assert told == [f"{log}: removed 2 damaged lines"]


def test_folder_in_which_another_process_trains_is_refused(recipe: Recipe, tmp_path: Path):
    with training_in(tmp_path), pytest.raises(RecipeError, match=f"another process trains in {tmp_path}"):
        Trainer(recipe, tmp_path, cache=tmp_path)
    Trainer(recipe, tmp_path, cache=tmp_path)


def test_damaged_state_is_named_with_what_to_do(recipe: Recipe, tmp_path: Path):
    recipe = replace(recipe, steps=2)
    list(Trainer(recipe, tmp_path, cache=tmp_path).run())
    cut_in_half(tmp_path / LAST)
    with pytest.raises(RecipeError, match=r"last\.pt cannot be read \(.+\): restore a copy .* in a new folder"):
        Trainer(recipe, tmp_path, cache=tmp_path)


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_folder_with_a_run_of_another_recipe_is_refused(recipe: Recipe, tmp_path: Path):
    list(Trainer(replace(recipe, steps=2), tmp_path, cache=tmp_path).run())
    with pytest.raises(RecipeError, match=r"another recipe \(different: learning_rate\)"):
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


@pytest.mark.parametrize("frozen", [{}, {"lora_rank": 0, "frozen_embeddings": True}], ids=["all", "embeddings"])
def test_folder_with_a_run_on_another_frozen_backbone_is_refused(
    recipe: Recipe, tmp_path: Path, frozen: dict[str, Any]
):
    backbone = Path(shutil.copytree(recipe.backbone, tmp_path / "backbone"))
    recipe = replace(recipe, steps=2, backbone=str(backbone), **frozen)
    run = tmp_path / "run"
    run.mkdir()
    list(Trainer(recipe, run, cache=tmp_path).run())
    (file,) = backbone.glob("*.safetensors")
    save_file({name: 2 * weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(RecipeError, match=rf"^{backbone} changed since the run .* began: choose a new folder"):
        Trainer(recipe, run, cache=tmp_path)


def test_frozen_embeddings_of_the_checkpoint_that_a_run_starts_from_are_inputs(recipe: Recipe, tmp_path: Path):
    (tmp_path / "first").mkdir()
    list(Trainer(replace(recipe, steps=2), tmp_path / "first", cache=tmp_path).run())
    later = replace(recipe, start=tmp_path / "first" / FINAL, lora_rank=0, frozen_embeddings=True)
    assert {str(later.start), recipe.backbone} <= input_digests(later).keys()
    assert recipe.backbone not in input_digests(replace(later, frozen_embeddings=False))


def test_run_from_before_backbones_were_checked_is_resumed_and_says_so(recipe: Recipe, tmp_path: Path):
    recipe = replace(recipe, steps=2)
    list(Trainer(recipe, tmp_path, cache=tmp_path).run())
    state = torch.load(tmp_path / LAST, weights_only=True)
    del state["files"][recipe.backbone]
    torch.save(state, tmp_path / LAST)
    messages: list[str] = []
    assert Trainer(recipe, tmp_path, cache=tmp_path, progress=messages.append).ended
    unchecked = (
        f"{tmp_path / LAST} is from an earlier version: it is not checked whether {recipe.backbone} changed since the "
        "run began"
    )
    assert [message for message in messages if message.startswith(unchecked)]


def test_folder_with_a_run_from_another_start_is_refused_before_the_start_is_loaded(recipe: Recipe, tmp_path: Path):
    first, run = tmp_path / "first", tmp_path / "run"
    first.mkdir()
    run.mkdir()
    list(Trainer(replace(recipe, steps=2), first, cache=tmp_path).run())
    recipe = replace(recipe, steps=2, start=first / BEST)
    list(Trainer(recipe, run, cache=tmp_path).run())
    (first / BEST / HEAD_FILE).write_bytes(b"no weights")
    with pytest.raises(RecipeError, match=rf"^{first / BEST} changed since the run .* began: choose a new folder"):
        Trainer(recipe, run, cache=tmp_path)


def test_run_from_before_starts_were_checked_is_resumed_and_says_so(recipe: Recipe, tmp_path: Path):
    list(Trainer(replace(recipe, steps=2), tmp_path, cache=tmp_path).run())
    recipe, run = replace(recipe, steps=2, start=tmp_path / BEST), tmp_path / "run"
    run.mkdir()
    list(Trainer(recipe, run, cache=tmp_path).run())
    state = torch.load(run / LAST, weights_only=True)
    del state["files"][str(recipe.start)]
    torch.save(state, run / LAST)
    told: list[str] = []
    assert Trainer(recipe, run, cache=tmp_path, progress=told.append).ended
    unchecked = (
        f"{run / LAST} is from an earlier version: it is not checked whether {recipe.start} changed since the run began"
    )
    assert [message for message in told if message.startswith(unchecked)]


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


def test_disk_that_fills_within_a_state_is_the_error_and_leaves_the_earlier_state(tmp_path: Path) -> None:
    save_state(tmp_path, 9, {"step": 9})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # in place of a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            save_state(tmp_path, 10, {"weights": torch.zeros(2**22)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["state.00000009.pt"]


def test_older_state_is_read_where_the_newest_is_damaged(tmp_path: Path) -> None:
    told: list[str] = []
    assert read_newest_state(tmp_path, told.append) is None
    for step in (10, 20):
        save_state(tmp_path, step, {"step": step})
    older, newest = sorted(tmp_path.iterdir())
    assert read_newest_state(tmp_path, told.append) == (newest, {"step": 20})
    cut_in_half(newest)
    assert read_newest_state(tmp_path, told.append) == (older, {"step": 10})
    (message,) = told
    assert message.startswith(f"{newest} cannot be read (")
    assert message.endswith(": resuming from state.00000010.pt")
    assert lower_rate_in(tmp_path).endswith(" resumes from state.00000010.pt")
    save_state(tmp_path, 15, {"step": 15})
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "state.00000010.pt",
        "state.00000015.pt",
        "state.00000020.pt.damaged",
    ]


def test_state_that_the_disk_does_not_give_is_not_taken_for_damaged(tmp_path: Path) -> None:
    save_state(tmp_path, 10, {"step": 10})
    unreadable = tmp_path / "state.00000020.pt"
    unreadable.symlink_to("/proc/self/mem")  # its first read is an input/output error
    with pytest.raises(OSError, match=rf"Input/output error: '{unreadable}'"):
        read_newest_state(tmp_path, print)
    assert unreadable.is_symlink()


@pytest.mark.parametrize("kept_bytes", [0, 10, -10])
def test_state_that_was_cut_off_is_damaged(tmp_path: Path, kept_bytes: int) -> None:
    for step in (10, 20):
        save_state(tmp_path, step, {"step": step})
    newest = tmp_path / "state.00000020.pt"
    newest.write_bytes(newest.read_bytes()[:kept_bytes])
    assert read_newest_state(tmp_path, print) == (tmp_path / "state.00000010.pt", {"step": 10})


def test_folder_whose_states_are_all_damaged_is_refused(tmp_path: Path) -> None:
    for step in (10, 20):
        save_state(tmp_path, step, {"step": step})
        cut_in_half(tmp_path / f"state.{step:08}.pt")
    with pytest.raises(
        RecipeError, match=r"00020\.pt cannot .*00010\.pt cannot .*: restore a copy of a file, or start"
    ):
        read_newest_state(tmp_path, print)


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


def test_weight_without_a_gradient_before_the_break_starts_afresh_after_it(recipe: Recipe, tmp_path: Path):
    """As does the projection, of which only a batch with pairs has a gradient."""

    def state_of_a_run() -> RunState:
        torch.manual_seed(0)
        model: Any = torch.nn.ModuleDict({name: torch.nn.Linear(3, 1) for name in ("every", "pairs")})
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return RunState(model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), ())

    def step(run: RunState, *names: str) -> None:
        model: Any = run.model
        torch.autograd.backward(torch.stack([model[name](torch.tensor([1.0, 2.0, 3.0])) for name in names]).sum())
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)

    whole, broken, resumed = state_of_a_run(), state_of_a_run(), state_of_a_run()
    for run in (whole, broken):
        step(run, "every")
    broken.save(tmp_path, recipe)
    resumed.restore(torch.load(tmp_path / LAST, weights_only=True))
    for run in (whole, resumed):
        step(run, "every", "pairs")
    for weight, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(weight, expected)
