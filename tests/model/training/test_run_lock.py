"""Tests of the lock on a run's folder: a command trains in an empty folder or in one of its own kind, and in no other.

That a second process is refused is tested with each command.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from model.training.recipe import RecipeError
from model.training.run_lock import LOCK, FolderLock, RunKind
from tests.model.training.runs import begin_run


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def lock(folder: Path, kind: RunKind) -> None:
    FolderLock(folder, kind, print).close()


def test_folder_of_a_run_of_another_kind_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    begin_run(tmp_path, "notellm train")
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    before = contents(tmp_path)
    with pytest.raises(RecipeError, match=r"holds a run of notellm train: choose a new folder or an empty one"):
        lock(tmp_path, "model.training.writing")
    assert contents(tmp_path) == before
    lock(tmp_path, "notellm train")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["notellm train", "notellm train-encoder", "model.training.distil"])
def test_folder_with_files_of_no_run_is_refused_and_left_as_it_is(tmp_path: Path, kind: RunKind) -> None:
    (tmp_path / "notellm.json").write_text("{}")
    with pytest.raises(RecipeError, match=f"holds files that are not of a run of {kind}: choose a new folder"):
        lock(tmp_path, kind)
    assert contents(tmp_path) == {"notellm.json": "{}"}


@pytest.mark.parametrize(
    ("state", "kind", "other"),
    [
        ("last.pt", "notellm train", "model.training.writing"),
        ("state.00000001.pt", "model.training.writing", "notellm train"),
        ("state.00000001.pt", "model.training.distil", "notellm train-encoder"),
    ],
)
@pytest.mark.parametrize("locked", [False, True])
def test_run_of_an_earlier_version_is_known_by_its_state(
    tmp_path: Path, state: str, kind: RunKind, other: RunKind, locked: bool
) -> None:
    (tmp_path / state).touch()
    if locked:
        (tmp_path / LOCK).touch()
    with pytest.raises(RecipeError, match="holds files that are not of a run of"):
        lock(tmp_path, other)
    lock(tmp_path, kind)


def test_folder_of_a_run_that_wrote_no_file_may_have_one_of_another_kind(tmp_path: Path) -> None:
    lock(tmp_path, "model.training.writing")
    lock(tmp_path, "notellm train")
    assert contents(tmp_path) == {LOCK: "notellm train"}
