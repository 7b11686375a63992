"""Resuming a run: everything that training changes, saved to one file and restored from it."""

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

from model.config import NoteLLMConfig
from model.notellm import NoteLLM
from model.training.contrastive import ContrastiveObjective
from model.training.distributed import rank_and_size
from model.training.optimizer import Schedule
from model.training.recipe import Recipe, RecipeError
from model.weights import ADAPTER_FOLDER, BACKBONE_FOLDER, HEAD_FILE, Progress, file_digest, folder_digest
from model.whole_file import whole_file, whole_folder

KEPT_STATES = 2
"""Numbered states kept in a folder: the newest, and one more in case its file is damaged."""
DAMAGED = ".damaged"
"""Suffix of the name of a numbered state that cannot be read."""
PREVIOUS = ".previous"
"""Suffix of the name of a folder while a new one replaces it."""
LAST = "last.pt"
"""File in a run's folder with its latest state."""
STATES = "state.*.pt"
"""Pattern of the numbered states in a run's folder."""
PAUSE_CHECK_SECONDS = 1.0
_OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


@dataclass(slots=True)
class RunState:
    """All that changes from step to step.

    `step`: updates done. `best`: highest validation recall so far, -1 before the first evaluation.
    `evaluations_without_gain`: evaluations since `best`. `files`: digests of the run's inputs by path
    (`input_digests`).
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
        """Write `folder`/last.pt through a temporary file, so that the previous one survives a kill.

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
        """Restore a state that `read_run` returned."""
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizer"],
            options=replace(_OPTIONS, strict=False),  # frozen weights are not in the file
        )
        # torch gives a weight without a saved state, such as the projection before the first batch of pairs, the state
        # after one step with a gradient of zeros. The optimizer creates it in the weight's first step.
        saved = state["optimizer"]["state"]
        for name, weight in self.model.named_parameters():
            if name not in saved:
                self.optimizer.state.pop(weight, None)
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.best, self.evaluations_without_gain = state["progress"]
        for objective, memory in zip(self.objectives, state["memory"], strict=True):
            if objective is not None and memory is not None:
                objective.update_memory(objective.notes, memory.to(self.model.tau.device))


def read_run(folder: Path, recipe: Recipe, files: Mapping[str, str], progress: Progress) -> dict[str, Any]:
    """Read the state that `RunState.save` wrote to `folder`; `progress` gets a message where an earlier version stored
    fewer digests. `files`: digests of the run's files by path.

    Raises RecipeError for a run with another recipe or other files, naming the difference, and for a damaged state;
    OSError.
    """
    path = folder / LAST
    try:
        state = _read_state(path)
    except DamagedStateError as error:
        raise RecipeError(f"{error}: restore a copy of the file, or start again in a new folder") from error
    defaults = {column.name: str(column.default) for column in fields(Recipe)}  # older states lack newer fields
    refuse_other_recipe(folder, defaults | state["recipe"], _fields_as_text(recipe))
    refuse_other_inputs(path, state.get("files", {}), files, progress)
    return state


def refuse_other_recipe(
    folder: Path, saved: Mapping[str, Any], fields: Mapping[str, Any], free: Collection[str] = ()
) -> None:
    """Raise RecipeError, naming the fields, where a recipe differs from the saved one in fields outside of `free`."""
    if changed := sorted(name for name in fields if name not in free and fields[name] != saved.get(name)):
        raise RecipeError(
            f"{folder} holds a run with another recipe (different: {', '.join(changed)}): choose a new folder"
        )


def refuse_other_files(folder: Path, saved: Mapping[str, str], files: Mapping[str, str]) -> None:
    """Raise RecipeError, naming the files, where digests by name or path differ from the saved ones."""
    if changed := sorted(name for name in files if saved.get(name) != files[name]):
        raise RecipeError(
            f"{', '.join(changed)} changed since the run in {folder} began: choose a new folder for a new run"
        )


def refuse_other_inputs(path: Path, saved: Mapping[str, str], inputs: Mapping[str, str], tell: Progress) -> None:
    """Raise RecipeError as `refuse_other_files` does, for the state at `path`; `tell` gets the inputs that are not
    checked, because the state is from an earlier version and has no digest of them. The recipe must name all inputs, so
    that an input without a saved digest cannot be a new one."""
    if unknown := ", ".join(sorted(inputs.keys() - saved.keys())):
        tell(f"{path} is from an earlier version: it is not checked whether {unknown} changed since the run began")
    refuse_other_files(path.parent, {**inputs, **saved}, inputs)


def backbone_digest(backbone: str) -> dict[str, str]:
    """Return the digest of a backbone's folder, keyed by its name, for a run whose state leaves out frozen weights;
    empty for a backbone that is not a folder."""
    folder = Path(backbone).expanduser()
    return {backbone: folder_digest(folder)} if folder.is_dir() else {}


def start_digest(start: Path | None) -> dict[str, str]:
    """Return the digest, keyed by its path, of the weights of a checkpoint that a run starts from: head, adapter and
    its own backbone. Empty without a checkpoint."""
    if start is None or not (start / HEAD_FILE).is_file():
        return {}
    folders = (folder_digest(start / name) for name in (ADAPTER_FOLDER, BACKBONE_FOLDER))
    return {str(start): "+".join((file_digest(start / HEAD_FILE), *folders))}


def input_digests(recipe: Recipe) -> dict[str, str]:
    """Return the digests, by path, of all files of a recipe's data, of the checkpoint that it starts from, and of a
    backbone's folder whose weights, or token embeddings alone, stay frozen: a state does not contain these. Raises
    CheckpointError where the checkpoint cannot be read."""
    files = {file for row in recipe.data for file in (row.notes, row.pairs, row.teacher) if file is not None}
    digests = {str(file): file_digest(file) for file in files}
    digests |= start_digest(recipe.start)
    if recipe.lora_rank:
        digests |= backbone_digest(recipe.backbone)
    elif recipe.frozen_embeddings:
        backbone = NoteLLMConfig.load(recipe.start).backbone if recipe.start else recipe.backbone
        if backbone != BACKBONE_FOLDER:  # that of the starting checkpoint itself, which `start_digest` covers
            digests |= backbone_digest(backbone)
    return digests


def restore_log(log: Path, step: int, tell: Progress) -> None:
    """Cut a log of JSON lines, which begin with a `step`, back to the whole lines up to `step`, where the run resumes.
    `tell` gets the number of broken lines, such as a full disk leaves. Raises OSError."""
    lines = log.read_text("utf-8", errors="replace").splitlines(keepends=True) if log.exists() else []
    kept, broken = [], 0
    for line in lines:
        entry = line[max(line.rfind('{"step"'), 0) :]  # earlier versions appended to a truncated line
        broken += entry != line
        try:
            if json.loads(entry)["step"] <= step:
                kept.append(entry.rstrip("\n") + "\n")
        except (ValueError, KeyError, TypeError):
            broken += entry == line
    if broken:
        tell(f"{log}: removed {broken} damaged lines")
    if kept != lines:
        with whole_file(log) as file:
            file.write("".join(kept).encode())


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder, as `whole_folder` does, that replaces `folder` once the block ends without an error; until
    then an earlier `folder` stays intact.

    Only for folders of a run: a folder beside `folder` whose name ends with PREVIOUS is taken for its earlier version.
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
    """Rename the earlier folder back, where a kill in `replaced_folder` came between its two renames."""
    previous = folder.with_name(folder.name + PREVIOUS)
    if previous.exists() and not folder.exists():
        previous.rename(folder)


def newest_state(folder: Path) -> Path | None:
    """Return the state.<step>.pt with the highest step, or None."""
    return max(folder.glob(STATES), default=None)


def lower_rate_in(folder: Path) -> str:
    """Return advice for a diverged run in `folder` that may resume with another learning rate."""
    newest = newest_state(folder)
    return "lower learning_rate" + (f": the same command then resumes from {newest.name}" if newest else "")


def read_newest_state(folder: Path, tell: Progress) -> tuple[Path, dict[str, Any]] | None:
    """Return path and content of the latest readable state, or None where `folder` has no state.

    Later states that are damaged get DAMAGED at the end of their names, and `tell` a message for each. Raises
    RecipeError where all are damaged, and OSError.
    """
    damaged: dict[Path, DamagedStateError] = {}
    for path in sorted(folder.glob(STATES), reverse=True):
        try:
            state = _read_state(path)
        except DamagedStateError as error:
            damaged[path] = error
            continue
        for other, damage in damaged.items():
            other.rename(other.with_name(other.name + DAMAGED))
            tell(f"{damage} and was renamed with {DAMAGED} at the end: resuming from {path.name}")
        return path, state
    if damaged:
        messages = "; ".join(map(str, damaged.values()))
        raise RecipeError(f"{messages}: restore a copy of a file, or start again in a new folder")
    return None


def save_state(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write state.<step>.pt atomically and delete all but the latest KEPT_STATES."""
    _write_state(folder / f"state.{step:08d}.pt", state)
    for earlier in sorted(folder.glob(STATES))[:-KEPT_STATES]:
        earlier.unlink()


class DamagedStateError(Exception):
    """A state's file cannot be read; the message names the file and the reason."""


def _read_state(path: Path) -> dict[str, Any]:
    """Read a state's file. Raises DamagedStateError; OSError and MemoryError where the file may be intact."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch has no error class for damage: RuntimeError, UnpicklingError, ValueError, ...
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a truncated file
            raise OSError(error.errno, error.strerror, str(path)) from error
        reason, *_ = str(error).splitlines() or [repr(error)]
        raise DamagedStateError(f"{path} cannot be read ({reason})") from error
    return state


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state atomically. Raises OSError."""
    try:
        with whole_file(path) as file:  # given a path, torch raises RuntimeError on a full disk
            torch.save(state, file)
    except RuntimeError as error:  # torch fails to end its archive after the file's own error
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def wait_while_exists(file: Path | None, stopped: Callable[[], bool]) -> bool:
    """Wait while `file` exists, if one is given; return False if `stopped` becomes true first."""
    while file is not None and file.exists():
        if stopped():
            return False
        time.sleep(PAUSE_CHECK_SECONDS)
    return True


def _fields_as_text(recipe: Recipe) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(recipe).items()}
