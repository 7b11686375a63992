"""A lock on a run's folder: two processes that train in the same folder would overwrite each other's states."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path

from model.training.recipe import RecipeError
from model.weights import Progress

LOCK = "run.lock"
"""Lock file in a run's folder. The training process locks it; it stays, empty, after the process ends."""


class FolderLock:
    """A lock on a run's folder against other processes, held until `close` is called or the object is collected.

    It creates a missing folder. It is a POSIX lock: it ends with the process, and the same process can lock the folder
    again, but the first of its locks to be closed releases all of them. `tell` gets a message where the file system
    does not support locks. Raises RecipeError where another process holds the lock, and OSError.
    """

    def __init__(self, folder: Path, tell: Progress) -> None:
        folder.mkdir(parents=True, exist_ok=True)
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
