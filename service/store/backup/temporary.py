"""Files that a backup or a restore writes to the temporary folder of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from service.store.backup.manifest import BackupError


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Open a new file, and yield a function that appends bytes to it. The function and the opening raise BackupError
    where the disk does not take the file."""
    with _local_errors(path):
        file = path.open("wb", buffering=0)  # buffered data would fail only at the end, among other errors

    def append(data: bytes) -> None:
        left = memoryview(data)
        with _local_errors(path):
            while left:
                left = left[file.write(left) :]

    with file:
        yield append


@contextlib.contextmanager
def _local_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackupError(
            f"cannot write to the temporary folder {path.parent}: {error.strerror}; set TMPDIR to another folder"
        ) from error
