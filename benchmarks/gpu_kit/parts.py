"""Archives in parts that can be copied one by one: `cat part-* | tar xz` unpacks them."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PART_MIB = 60
"""Largest size of a part."""


class Parts(io.RawIOBase):
    """A writable file that is stored as several files of at most `size` bytes each: part-00, part-01 and so on in a
    folder. `digests`: the SHA-256 of each part by its name."""

    def __init__(self, folder: Path, size: int) -> None:
        self.digests: dict[str, str] = {}
        self._folder = folder
        self._size = size
        self._part = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._part += data
        while len(self._part) >= self._size:
            self._store()
        return memoryview(data).nbytes

    def close(self) -> None:
        if self._part:
            self._store()
        super().close()

    def _store(self) -> None:
        """Write the first `size` bytes of the buffer to the next part."""
        content, name = bytes(self._part[: self._size]), f"part-{len(self.digests):02}"
        (self._folder / name).write_bytes(content)
        self.digests[name] = hashlib.sha256(content).hexdigest()
        del self._part[: self._size]


@contextmanager
def archive_in_parts(folder: Path, size: int) -> Iterator[tuple[tarfile.TarFile, Parts]]:
    """Open an archive that is stored as parts of at most `size` bytes. Their digests are complete once the block has
    ended."""
    with (
        Parts(folder, size) as parts,
        gzip.GzipFile(fileobj=parts, mode="wb", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        yield archive, parts
