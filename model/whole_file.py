"""A file that has its name only when it is complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file to write to, which gets the name `path` once the block ends without an error. Until then, and
    where a kill ends the process, an earlier file of that name is whole. One process at a time may write a path. Makes
    the folder. Raises OSError."""
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
