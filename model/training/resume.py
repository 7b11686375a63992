"""Going on after a break: everything that a run changes, saved to one file and restored from it."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from model.notellm import NoteLLM
from model.training.contrastive import ContrastiveObjective
from model.training.distributed import rank_and_size
from model.training.optimizer import Schedule
from model.training.recipe import Recipe, RecipeError
from model.weights import ADAPTER_FOLDER, BACKBONE_FOLDER, HEAD_FILE, Progress, file_digest, folder_digest
from model.whole_file import whole_file, whole_folder

KEPT_STATES = 2
"""Numbered states that stay in a folder: the newest, and one more should its file be damaged."""
DAMAGED = ".damaged"
"""End of the name that a numbered state gets which cannot be read."""
PREVIOUS = ".previous"
"""End of the name of a folder while a new one takes its place."""
LAST = "last.pt"
"""File of a run's folder with its latest state."""
PAUSE_CHECK_SECONDS = 1.0
_OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


@dataclass(slots=True)
class RunState:
    """All that changes from step to step.

    `step`: updates done. `best`: highest validation recall so far, -1 before the first evaluation.
    `evaluations_without_gain`: evaluations since then. `files`: digests of the files that are trained on, and of the
    frozen weights, by path.
    """

    model: NoteLLM
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    objectives: Sequence[ContrastiveObjective | None]
    step: int = 0
    best: float = -1.0
    evaluations_without_gain: int = 0
    files: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: Path, recipe: Recipe) -> None:
        """Write `folder`/last.pt through a temporary file, so that a kill leaves the previous one whole.

        Called by every process, since sharded weights are gathered; rank 0 writes.
        """
        weights, optimizer = get_state_dict(self.model, self.optimizer, options=_OPTIONS)
        state = {
            "recipe": _fields_as_text(recipe),
            "files": dict(self.files),
            "weights": weights,
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "progress": (self.step, self.best, self.evaluations_without_gain),
            "memory": [objective and objective.memory for objective in self.objectives],
        }
        rank, _ = rank_and_size()
        if rank == 0:
            _write_state(folder / LAST, state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `read_run` returned."""
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizer"],
            options=replace(_OPTIONS, strict=False),  # frozen weights are not in the file
        )
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.best, self.evaluations_without_gain = state["progress"]
        for objective, memory in zip(self.objectives, state["memory"], strict=True):
            if objective is not None and memory is not None:
                objective.update_memory(objective.notes, memory.to(self.model.tau.device))


def read_run(folder: Path, recipe: Recipe, files: Mapping[str, str], progress: Progress) -> dict[str, Any]:
    """Read the state that `RunState.save` wrote to `folder`; `progress` gets a message where an earlier version wrote
    fewer digests. `files`: digests of the run's files by path.

    Raises RecipeError for a run of another recipe or of other files, and names what differs, and for a damaged state;
    OSError.
    """
    path = folder / LAST
    try:
        state = _read_state(path)
    except DamagedStateError as error:
        raise RecipeError(f"{error}: put back a copy of the file, or begin anew in a new folder") from error
    defaults = {column.name: str(column.default) for column in fields(Recipe)}  # older states lack newer fields
    refuse_other_recipe(folder, defaults | state["recipe"], _fields_as_text(recipe))
    refuse_other_inputs(path, state.get("files", {}), files, progress)
    return state


def refuse_other_recipe(
    folder: Path, saved: Mapping[str, Any], fields: Mapping[str, Any], free: Collection[str] = ()
) -> None:
    """Raise RecipeError, naming the fields, where a recipe differs from the saved one in others than `free`."""
    if changed := sorted(name for name in fields if name not in free and fields[name] != saved.get(name)):
        raise RecipeError(f"{folder} holds a run of another recipe ({', '.join(changed)}): choose a new folder")


def refuse_other_files(folder: Path, saved: Mapping[str, str], files: Mapping[str, str]) -> None:
    """Raise RecipeError, naming the files, where digests by name or path differ from the saved ones."""
    if changed := sorted(name for name in files if saved.get(name) != files[name]):
        raise RecipeError(
            f"{', '.join(changed)} changed since the run in {folder} began: choose a new folder for a new run"
        )


def refuse_other_inputs(path: Path, saved: Mapping[str, str], inputs: Mapping[str, str], tell: Progress) -> None:
    """Raise RecipeError as `refuse_other_files`, for the state at `path`, and tell which inputs are not checked because
    a state of an earlier version has no digest of them. The run's recipe must name all inputs, so that one that `saved`
    lacks cannot be a new one."""
    if unknown := ", ".join(sorted(inputs.keys() - saved.keys())):
        tell(f"{path} is of an earlier version: whether {unknown} changed since the run began is not checked")
    refuse_other_files(path.parent, {**inputs, **saved}, inputs)


def backbone_digest(backbone: str) -> dict[str, str]:
    """Return the digest of a backbone's folder by its name, for a run whose state leaves out frozen weights; nothing
    for a backbone that is no folder."""
    folder = Path(backbone).expanduser()
    return {backbone: folder_digest(folder)} if folder.is_dir() else {}


def start_digest(start: Path | None) -> dict[str, str]:
    """Return the digest, by its path, of the weights of a checkpoint that a run starts from: head, adapter and own
    backbone; nothing without a checkpoint."""
    if start is None or not (start / HEAD_FILE).is_file():
        return {}
    folders = (folder_digest(start / name) for name in (ADAPTER_FOLDER, BACKBONE_FOLDER))
    return {str(start): "+".join((file_digest(start / HEAD_FILE), *folders))}


def input_digests(recipe: Recipe) -> dict[str, str]:
    """Return the digests, by path, of all files of a recipe's data, of the checkpoint that it starts from, and of a
    backbone's folder whose weights stay frozen: a state does not hold these."""
    files = {file for row in recipe.data for file in (row.notes, row.pairs, row.teacher) if file is not None}
    digests = {str(file): file_digest(file) for file in files}
    digests |= start_digest(recipe.start)
    return digests | backbone_digest(recipe.backbone) if recipe.lora_rank else digests


def restore_log(log: Path, step: int, tell: Progress) -> None:
    """Leave in a log, of one JSON object that begins with a `step` in a line, the whole lines of steps up to `step`,
    after which the run goes on; `tell` how many lines are broken, as on a full disk. Raises OSError."""
    lines = log.read_text("utf-8", errors="replace").splitlines(keepends=True) if log.exists() else []
    kept, broken = [], 0
    for line in lines:
        entry = line[max(line.rfind('{"step"'), 0) :]  # earlier code went on behind a line that was cut off
        broken += entry != line
        try:
            if json.loads(entry)["step"] <= step:
                kept.append(entry.rstrip("\n") + "\n")
        except (ValueError, KeyError, TypeError):
            broken += entry == line
    if broken:
        tell(f"{log}: {broken} broken lines are removed")
    if kept != lines:
        with whole_file(log) as file:
            file.write("".join(kept).encode())


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder, as `whole_folder` does, which replaces `folder` once the block ends without an error; until
    then an earlier `folder` is whole.

    For folders of a run alone: one beside `folder` with PREVIOUS at the end of its name is taken for an earlier one.
    """
    restore_replaced(folder)
    previous = folder.with_name(folder.name + PREVIOUS)
    with whole_folder(folder) as unfinished:
        yield unfinished
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
    shutil.rmtree(previous, ignore_errors=True)


def restore_replaced(folder: Path) -> None:
    """Rename the earlier folder back where a kill in `replaced_folder` came between its two renames."""
    previous = folder.with_name(folder.name + PREVIOUS)
    if previous.exists() and not folder.exists():
        previous.rename(folder)


def newest_state(folder: Path) -> Path | None:
    """Return the state.<step>.pt of the highest step, or None."""
    return max(folder.glob("state.*.pt"), default=None)


def lower_rate_in(folder: Path) -> str:
    """Return what to do about a run in `folder` that diverged and may go on with another learning rate."""
    newest = newest_state(folder)
    return "lower learning_rate" + (f": the same command then goes on from {newest.name}" if newest else "")


def read_newest_state(folder: Path, tell: Progress) -> tuple[Path, dict[str, Any]] | None:
    """Read the state of the highest step that is whole; returns its path, too, or None where `folder` has no state.

    Damaged ones of later steps get DAMAGED at the end of their names, and `tell` a message for each. Raises RecipeError
    where all are damaged, and OSError.
    """
    damaged: dict[Path, DamagedStateError] = {}
    for path in sorted(folder.glob("state.*.pt"), reverse=True):
        try:
            state = _read_state(path)
        except DamagedStateError as error:
            damaged[path] = error
            continue
        for other, damage in damaged.items():
            other.rename(other.with_name(other.name + DAMAGED))
            tell(f"{damage} and has {DAMAGED} at the end of its name now: going on from {path.name}")
        return path, state
    if damaged:
        messages = "; ".join(map(str, damaged.values()))
        raise RecipeError(f"{messages}: put back a copy of a file, or begin anew in a new folder")
    return None


def save_state(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write state.<step>.pt and delete all but the latest KEPT_STATES. A file appears when it is complete."""
    _write_state(folder / f"state.{step:08d}.pt", state)
    for earlier in sorted(folder.glob("state.*.pt"))[:-KEPT_STATES]:
        earlier.unlink()


class DamagedStateError(Exception):
    """A state's file cannot be read; the message names it and the reason."""


def _read_state(path: Path) -> dict[str, Any]:
    """Read a state's file. Raises DamagedStateError, and OSError and MemoryError where the file may be whole."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch has no error class for damage: RuntimeError, UnpicklingError, ValueError, ...
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a file that was cut off
            raise OSError(error.errno, error.strerror, str(path)) from error
        reason, *_ = str(error).splitlines() or [repr(error)]
        raise DamagedStateError(f"{path} cannot be read ({reason})") from error
    return state


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state; its file appears when it is complete. Raises OSError."""
    with whole_file(path) as file:  # of a path, torch raises RuntimeError where the disk is full
        torch.save(state, file)


def wait_while_exists(file: Path | None, stopped: Callable[[], bool]) -> bool:
    """Wait until `file` is gone, if there is one; return False where `stopped` becomes true before."""
    while file is not None and file.exists():
        if stopped():
            return False
        time.sleep(PAUSE_CHECK_SECONDS)
    return True


def _fields_as_text(recipe: Recipe) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(recipe).items()}
