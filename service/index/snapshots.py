"""Snapshots: an index on disk, as parts of named arrays, with the log position that it holds.

    <folder>/manifest.json    what the parts are, their files' digests, and the manifest's own
    <folder>/<part>.npz       the arrays of one part; a new file each time, but for parts that never change
    <folder>/lock, replica    whose folder it is: one process at a time has it

A snapshot is the manifest, which is exchanged in one step once all its files are on disk. Nothing that a manifest names
is ever written to again. So after any end of the process there is the old snapshot or the new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
import orjson

from service.errors import SnapshotRefused
from service.interfaces import Arrays, Part

VERSION = 4
"""Of the parts' contents: raise it when they change."""
MANIFEST, LOCK, REPLICA = "manifest.json", "lock", "replica"
MAX_PROCESSES = 64
"""That may keep snapshots in one data folder."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a snapshot is of; of another one it is foreign. `store`: see NoteStore.identity; `attributes`: see
    SegmentedIndex."""

    store: str
    space: str
    attributes: tuple[str, ...] = ()


class SnapshotFolder:
    """One process's own."""

    def __init__(self, folder: Path) -> None:
        """Raises BlockingIOError when another process has it, OSError when it cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = (folder / LOCK).open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.replica = self._name_replica()
        except BaseException:
            self._lock.close()
            raise
        self._saving = threading.Lock()
        self._entries: Mapping[str, dict[str, Any]] = {}
        """Of the snapshot that is there, by part."""

    @classmethod
    def claim(cls, parent: Path) -> SnapshotFolder:
        """The first in `parent` that no other process has. Raises OSError."""
        for number in range(MAX_PROCESSES):
            with suppress(BlockingIOError):
                return cls(parent / str(number))
        raise OSError(f"{MAX_PROCESSES} processes keep their snapshots in {parent} already")

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()

    def save(self, origin: Origin, position: str, parts: Sequence[Part]) -> None:
        """On disk on return, whole; OSError when it is not, and then the one before is still there."""
        with self._saving:
            try:
                entries = {part.name: self._write(part) for part in parts}
                body = {"version": VERSION, "position": position, "parts": entries}
                body |= {"origin": asdict(origin)}
                self._exchange(MANIFEST, orjson.dumps({"body": body, "sha256": _digest_of(body)}))
                self._entries = entries  # also where the folder cannot be synced: it names these now
                self._sync_folder()
            finally:
                self._tidy()

    def load(self, origin: Origin) -> Snapshot | None:
        """The one that is there, None where there is none. Raises SnapshotRefused when it is damaged or foreign."""
        try:
            written = orjson.loads((self._folder / MANIFEST).read_bytes())
            body, digest = written["body"], written["sha256"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SnapshotRefused(f"its manifest cannot be read: {error}") from error
        if digest != _digest_of(body):
            raise SnapshotRefused("its manifest is damaged")
        if body["version"] != VERSION:
            raise SnapshotRefused(f"it is of version {body['version']}, and this service has {VERSION}")
        if differing := [name for name, value in asdict(origin).items() if _as_read(value) != body["origin"][name]]:
            raise SnapshotRefused(f"it is of another {', '.join(differing)}")
        self._entries = body["parts"]
        for entry in self._entries.values():
            _read_ahead(self._folder / entry["file"])
        return Snapshot(body["position"], self._folder, self._entries)

    def _write(self, part: Part) -> dict[str, Any]:
        """The part's entry in the manifest. What lasts is written once."""
        kept = self._entries.get(part.name)
        if part.lasting and kept and (self._folder / kept["file"]).exists():
            return kept
        path = self._folder / f"{part.name}.{uuid4().hex}.npz"
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **part.make())
            _sync(file)
        return {"file": path.name, "sha256": _digest(path)}

    def _exchange(self, name: str, content: bytes) -> None:
        """A small file, in one step."""
        unfinished = self._folder / f"{name}.new"
        with unfinished.open("wb") as file:
            file.write(content)
            _sync(file)
        os.rename(unfinished, self._folder / name)

    def _sync_folder(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _tidy(self) -> None:
        """Remove the files of older snapshots, and of such as were never finished."""
        kept = {entry["file"] for entry in self._entries.values()}
        for path in self._folder.glob("*.npz"):
            if path.name not in kept:
                with suppress(OSError):
                    path.unlink()

    def _name_replica(self) -> str:
        path = self._folder / REPLICA
        if not path.exists():
            self._exchange(REPLICA, uuid4().hex.encode())
            self._sync_folder()
        return path.read_text()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`position`: all up to it is in it, and maybe more."""

    position: str
    _folder: Path
    _entries: Mapping[str, dict[str, Any]]

    def read(self, part: str) -> Arrays:
        """The arrays of a part. Raises SnapshotRefused when they are not what was written."""
        try:
            entry = self._entries[part]
            path = self._folder / entry["file"]
            if _digest(path) != entry["sha256"]:
                raise SnapshotRefused(f"{path.name} is damaged")
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, KeyError) as error:
            raise SnapshotRefused(f"its part {part} cannot be read: {error}") from error


def _as_read(value: object) -> object:
    """As JSON gives it back."""
    return orjson.loads(orjson.dumps(value))


def _read_ahead(path: Path) -> None:
    """Have the system fetch it, while others are being read."""
    with suppress(OSError), path.open("rb") as file:  # what cannot be read is found out later
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
