"""A lock of a run's folder: two processes that train in one folder would overwrite each other's states."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path

from model.training.recipe import RecipeError
from model.weights import Progress

LOCK = "run.lock"
"""File of a run's folder that the process which trains there has locked. It stays, empty, when the process ends."""


class FolderLock:
    """A lock of a run's folder against other processes, held until `close` is called or the object is gone.

    Makes the folder where it is missing. The lock is one of POSIX: it ends with the process, and this process itself
    can lock the folder again, but the first of its locks to be closed ends all of them. `tell` gets a message where the
    file system has no locks. Raises RecipeError where another process holds the lock, and OSError.
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
                held = f"another process trains in {folder}: wait for its end, or choose a new folder"
                raise RecipeError(held) from error
            tell(f"{folder} cannot be locked against a second process that trains in it: {error}")
