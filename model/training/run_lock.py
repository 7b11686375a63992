"""A lock on a run's folder, whose file names the kind of run: no other process and no other command writes there."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from model.training.recipe import RecipeError
from model.training.resume import LAST, STATES
from model.weights import Progress

LOCK = "run.lock"
"""Lock file in a run's folder, with its RunKind. The training process locks it; it stays after the process ends."""
RunKind = Literal["notellm train", "notellm train-encoder", "model.training.distil", "model.training.writing"]
"""The command of a run: the kinds of runs have files of the same names in their folders."""
RESUMED_FROM: Mapping[RunKind, str] = {
    "notellm train": LAST,
    "model.training.distil": STATES,
    "model.training.writing": STATES,
}
"""Pattern of the states of a run by its kind. A run of an earlier version, whose lock file is empty, is known by it."""


class FolderLock:
    """A lock on a run's folder against other processes, held until `close` is called or the object is collected.

    It creates a missing folder. It is a POSIX lock: it ends with the process, and the same process can lock the folder
    again, but the first of its locks to be closed releases all of them. `tell` gets a message where the file system
    does not support locks. Raises RecipeError where another process holds the lock, or the folder has other files than
    those of a run of `kind`, and OSError.
    """

    def __init__(self, folder: Path, kind: RunKind, tell: Progress) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        new = _is_new(folder, kind)
        descriptor = os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT, 0o644)
        self.close = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                self.close()
                held = f"another process trains in {folder}: wait until it has ended, or choose a new folder"
                raise RecipeError(held) from error
            tell(f"{folder} cannot be locked, so do not start a second process that trains in it: {error}")
        if new:
            os.truncate(descriptor, 0)
            os.write(descriptor, kind.encode())


def _is_new(folder: Path, kind: RunKind) -> bool:
    """Return whether a folder has no file of a run yet, as after a run that ended before its first step. Raises
    RecipeError where it has files, but not those of a run of `kind`; a run writes over files of the same name."""
    lock = folder / LOCK
    marked = lock.read_text("utf-8", errors="replace") if lock.exists() else ""
    if all(path == lock for path in folder.iterdir()):
        return True
    if marked == kind or (not marked and kind in RESUMED_FROM and any(folder.glob(RESUMED_FROM[kind]))):
        return False
    content = f"a run of {marked}" if marked else f"files that are not of a run of {kind}"
    raise RecipeError(f"{folder} holds {content}: choose a new folder or an empty one")
