"""BackupFolder: the folder of one backup, on this machine or wherever fsspec reaches (s3://, memory:// and others)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import UnsupportedOperation
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from service.disk import sync_file, sync_folder
from service.store.backup.manifest import MANIFEST, BackupError, FileEntry, Manifest
from service.store.backup.temporary import temporary_file

CHUNK_BYTES = 2**20
"""Bytes that are copied at a time."""
OnBytes = Callable[[int], object]
"""Function called with the number of bytes of each chunk that was copied."""


class BackupFolder:
    """The folder of one backup. Errors of the storage are raised as BackupError.

    `address`: a path, or a URL that fsspec knows. Credentials and endpoints are those of the environment, as the
    storage's own tools take them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on).
    """

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            self._storage, self._path = url_to_fs(address)
        except ImportError as error:
            raise BackupError(f"{address}: {error}; for s3://, run pip install 'notellm[backup]'") from error
        except ValueError as error:
            raise BackupError(f"{address}: {error}") from error

    def manifest(self) -> Manifest:
        """Return the manifest. Raises BackupError where there is none, or a damaged one."""
        with self._errors():
            if not self._storage.exists(self._at(MANIFEST)):
                raise BackupError(f"there is no backup in {self.address}: {MANIFEST} is missing")
            content: bytes = self._storage.cat_file(self._at(MANIFEST))
        return Manifest.decode(content)

    def prepare(self) -> None:
        """Refuse a folder that is not empty; on a disk, create it, and try whether it can be written. Raises
        BackupError."""
        self.refuse_unless_empty()
        if isinstance(self._storage, LocalFileSystem):
            with self._errors():
                self._storage.makedirs(self._path, exist_ok=True)
                TemporaryFile(dir=self._path).close()

    def refuse_unless_empty(self) -> None:
        """Raise BackupError where the folder is not empty: a backup is never written over another one."""
        with self._errors():
            if self._storage.exists(self._path) and self._storage.ls(self._path, detail=False):
                raise BackupError(f"{self.address} is not empty; use a new folder for each backup")

    def write_file(self, source: Path, name: str, on_bytes: OnBytes) -> FileEntry:
        """Copy a file into the folder, and return its entry for the manifest. If that fails, nothing is left of it."""
        digest, size = hashlib.sha256(), 0
        with self._errors():
            writer = self._create(name)
        with self.removed_on_failure(name), self._errors(), source.open("rb") as reader, writer:
            for chunk in _chunks(reader):
                digest.update(chunk)
                size += len(chunk)
                writer.write(chunk)
                on_bytes(len(chunk))
            _sync(writer)
        return FileEntry(name=name, size=size, sha256=digest.hexdigest())

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest, which makes the backup valid. If it does not reach the disk, it is removed."""
        with self._errors():
            writer = self._create(MANIFEST)
        with self.removed_on_failure(MANIFEST), self._errors(), writer:
            writer.write(manifest.encode())
            _sync(writer)
            if isinstance(self._storage, LocalFileSystem):
                sync_folder(Path(self._path))
                sync_folder(Path(self._path).parent)

    def read_file(self, entry: FileEntry, target: Path, on_bytes: OnBytes) -> None:
        """Copy a file of the folder to the temporary file `target`. Raises BackupError where its size or digest is not
        that of `entry`."""
        digest, size = hashlib.sha256(), 0
        with self._errors(), self._storage.open(self._at(entry.name), "rb") as reader, temporary_file(target) as append:
            for chunk in _chunks(reader):
                digest.update(chunk)
                size += len(chunk)
                append(chunk)
                on_bytes(len(chunk))
        if (size, digest.hexdigest()) != (entry.size, entry.sha256):
            raise BackupError(f"{entry.name} of the backup is damaged: its size or digest differs from the manifest")

    @contextmanager
    def removed_on_failure(self, name: str) -> Iterator[None]:
        """Remove the new file `name` if the block raises, also if a signal ends the command: it has texts of notes, and
        a repeat of the backup would refuse the folder."""
        try:
            yield
        except BaseException:
            with suppress(Exception):  # each storage has errors of its own
                self._storage.rm_file(self._at(name))
            raise

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    def _create(self, name: str) -> Any:
        """Open a new file of the folder for writing. Raises BackupError where a disk already has it; other storages may
        not be able to tell."""
        self._storage.makedirs(self._path, exist_ok=True)
        try:
            return self._storage.open(self._at(name), "xb" if isinstance(self._storage, LocalFileSystem) else "wb")
        except FileExistsError as error:
            raise BackupError(f"{self.address} is not empty; use a new folder for each backup") from error

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except BackupError:
            raise
        except Exception as error:  # each storage has errors of its own
            raise BackupError(f"{self.address}: {str(error) or type(error).__name__}") from error


def _sync(file: Any) -> None:
    """Wait until what was written is on the disk, where the storage is a disk."""
    with suppress(AttributeError, UnsupportedOperation):  # a storage without files
        sync_file(file)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
