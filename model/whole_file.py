"""Atomic writes: a file or a folder gets its name only once it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that is renamed to `path` when the block ends without an error. If the block raises or the
    process is killed, an earlier file of that name stays intact. A device or pipe, such as /dev/stdout, is written in
    place instead, and a symbolic link stays one. Only one process at a time may write a path. Creates the folder.
    Raises OSError."""
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    opened = unfinished.open("wb")
    try:
        with opened as file:
            yield file
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield the path of a new folder, for the caller to create and fill. It is renamed to `path` when the block ends,
    with files that whoever may read the folder may read, and removed if the block raises. `path` must not exist by
    then. Only one process at a time may write a path. Creates the parent folder. Raises OSError, also where safetensors
    cannot write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
    try:
        yield unfinished
        share_files(unfinished)
        unfinished.rename(path)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, SafetensorError):
            raise OSError(f"{unfinished} cannot be written: {error}") from error
        raise


def share_files(folder: Path) -> None:
    """Let whoever may read a folder read its files, too: safetensors writes each for its owner alone, whatever the
    umask, so that a container with another user could not load a checkpoint. Raises OSError."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
