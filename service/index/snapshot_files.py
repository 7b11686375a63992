"""Snapshots: an index on disk, as parts of named arrays, with the log position that it has reached.

    <folder>/manifest.json    names of the parts, digests of their files, and the manifest's own digest
    <folder>/<part>.npz       arrays of one part; a new file each time, but for immutable parts
    <folder>/lock             held by the one process that uses the folder
    <folder>/replica          name under which the store knows that process

A snapshot is its manifest, which replaces the old one in one step once all files are on disk. A file that a manifest
names is never written to again. However the process ends, either the old snapshot or the new one is there, complete
(docs/decisions/0015-snapshots.md).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import orjson

from service.disk import sync_file, sync_folder
from service.errors import SnapshotRefused
from service.index.array_files import load_arrays, map_arrays, save_arrays
from service.index.backend import Arrays, Part
from service.records import position_key

VERSION = 14
"""Version of the parts' contents: raise it when they change."""
MANIFEST, LOCK, REPLICA = "manifest.json", "lock", "replica"
DEFAULT_PARENT, TENANTS = "snapshots", "tenants"
"""Two folders of a data folder. The first has the snapshot folders of the default tenant, one for each process. The
second has a folder of this kind for each other tenant, whose name ends in "-" and the identity of the tenant's
store."""
OPEN_FILES = Path("/proc/self/fd")
"""Folder in which a process (on Linux) finds the files that it has open, also those that were removed since."""
MAX_ATTEMPTS = 5
"""Attempts to open the snapshot of another process, which may replace it meanwhile."""
MAX_SNAPSHOT_FOLDERS = 64
"""Processes that may keep snapshots in one data folder: bounds the search for a free folder."""


@dataclass(frozen=True, slots=True)
class SnapshotOrigin:
    """Origin of a snapshot: the identity of the store, the vector space, and the attributes that filters may test.

    A snapshot of another origin is refused.
    """

    store: str
    space: str
    attributes: tuple[str, ...] = ()


class SnapshotFolder:
    """The folder of one process's snapshots. `replica` is the name under which the store knows the process."""

    def __init__(self, folder: Path) -> None:
        """Raises BlockingIOError when another process has the folder or has just removed it, OSError when it cannot be
        written."""
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # the folder's owner is another user, who shares it with a group
            folder.chmod(0o700)  # the files have ids, hashtags and vectors of all notes
        self._folder = folder
        self._lock = (folder / LOCK).open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(self._lock, folder / LOCK):
                raise BlockingIOError(f"{folder} was removed before it was locked")
            self.replica = self._name_replica()
        except BaseException:
            self._lock.close()
            raise
        self._saving = threading.Lock()
        self._entries: Mapping[str, dict[str, Any]] = {}
        """Entries of the current manifest, by part."""

    @classmethod
    def claim(cls, parent: Path) -> SnapshotFolder:
        """Return the first folder in `parent` that no other process has. Raises OSError."""
        for number in range(MAX_SNAPSHOT_FOLDERS):
            with suppress(BlockingIOError, FileNotFoundError):  # in use, or removed as it was made
                return cls(parent / str(number))
        raise OSError(f"{MAX_SNAPSHOT_FOLDERS} processes, the maximum, already keep snapshots in {parent}")

    def close(self) -> None:
        """Unlock the folder, so that another process may use it."""
        self._lock.close()

    def remove(self) -> None:
        """Remove the folder. No method may be called afterwards."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()
        with suppress(OSError):  # another process has a folder there
            self._folder.parent.rmdir()

    def save(self, origin: SnapshotOrigin, position: str, parts: Sequence[Part]) -> None:
        """Write a snapshot durably. Raises OSError; then the previous snapshot is still there."""
        with self._saving:
            try:
                entries = {part.name: self._write(part) for part in parts}
                body = {"version": VERSION, "position": position, "parts": entries}
                body |= {"origin": asdict(origin)}
                self._replace_file(MANIFEST, orjson.dumps({"body": body, "sha256": _digest_of(body)}))
                self._entries = entries  # before the folder is synced: if that fails, the manifest is in place anyway
                sync_folder(self._folder)
            finally:
                self._remove_unnamed_files()

    def load(self, origin: SnapshotOrigin) -> Snapshot | None:
        """Return the snapshot, None where there is none. Raises SnapshotRefused when it is damaged or of another origin
        or version."""
        body = _read_manifest(self._folder, origin)
        if body is None:
            return None
        self._entries = body["parts"]
        return Snapshot(body["position"], self._folder, self._entries, _digests(self._folder, self._entries))

    def _write(self, part: Part) -> dict[str, Any]:
        """Write a part and return its entry for the manifest; an immutable part that is there is not written again."""
        entry = self._entries.get(part.name)
        if part.immutable and entry and (self._folder / entry["file"]).exists():
            return entry
        path = self._folder / f"{part.name}.{uuid4().hex}.npz"
        with path.open("wb") as file:
            save_arrays(file, part.make())
            sync_file(file)
        return {"file": path.name, "sha256": _digest(path)}

    def _replace_file(self, name: str, content: bytes) -> None:
        """Write a small file in one atomic step."""
        unfinished = self._folder / f"{name}.new"
        with unfinished.open("wb") as file:
            file.write(content)
            sync_file(file)
        os.rename(unfinished, self._folder / name)

    def _remove_unnamed_files(self) -> None:
        """Remove the files of older snapshots and of unfinished ones: what the manifest does not name."""
        named = {entry["file"] for entry in self._entries.values()}
        for path in self._folder.glob("*.npz"):
            if path.name not in named:
                with suppress(OSError):
                    path.unlink()

    def _name_replica(self) -> str:
        path = self._folder / REPLICA
        if not path.exists():
            self._replace_file(REPLICA, uuid4().hex.encode())
            sync_folder(self._folder)
        return path.read_text()


def remove_unused_snapshots(parent: Path, keep: Callable[[Path], bool] = lambda folder: False) -> None:
    """Remove the folders in `parent` that no process uses and for which `keep` is false, and `parent` once it is empty.
    A folder to keep is not even locked for a moment: its process may be about to claim it."""
    for folder in parent.glob("*"):
        if not keep(folder):
            with suppress(OSError):
                SnapshotFolder(folder).remove()


class SharedSnapshots:
    """The snapshots that other processes keep in the folders of `parent`. They are mapped into memory, so that all
    processes that map the same files share their pages. Nothing is written."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent

    def load(self, origin: SnapshotOrigin) -> Snapshot | None:
        """Return the newest snapshot of this origin, None where there is none. It stays as it is when its process
        replaces it: its files are open until the last reference to it is gone."""
        for _ in range(MAX_ATTEMPTS):
            with suppress(FileNotFoundError):  # it was replaced between the manifest and its files
                return self._open(origin)
        return None

    def _open(self, origin: SnapshotOrigin) -> Snapshot | None:
        bodies: list[tuple[Path, dict[str, Any]]] = []
        for folder in self._parent.glob("*"):
            with suppress(SnapshotRefused):
                if body := _read_manifest(folder, origin):
                    bodies.append((folder, body))
        if not bodies:
            return None
        folder, body = max(bodies, key=lambda one: position_key(one[1]["position"]))
        opened: list[int] = []
        try:
            entries: dict[str, dict[str, Any]] = {}
            for part, entry in body["parts"].items():
                opened.append(os.open(folder / entry["file"], os.O_RDONLY | os.O_CLOEXEC))
                entries[part] = {**entry, "file": str(opened[-1])}
        except OSError:
            _close_all(opened)
            raise
        snapshot = Snapshot(body["position"], OPEN_FILES, entries, _digests(OPEN_FILES, entries), map_arrays)
        weakref.finalize(snapshot, _close_all, opened)
        return snapshot


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Snapshot:
    """A snapshot on disk. It has every write up to `position`, and may have later ones. `_digests`: SHA-256 of
    each part's file as it is read now, by the part's name."""

    position: str
    _folder: Path
    _entries: Mapping[str, dict[str, Any]]
    _digests: Mapping[str, Future[str]]
    _load: Callable[[Path], Arrays] = load_arrays

    def read(self, part: str) -> Arrays:
        """Return the arrays of a part. Raises SnapshotRefused when they are not what was written."""
        try:
            entry = self._entries[part]
            path = self._folder / entry["file"]
            if self._digests[part].result() != entry["sha256"]:
                raise SnapshotRefused(f"its file {path.name} is damaged: the digest differs")
            return self._load(path)
        except (OSError, KeyError) as error:
            raise SnapshotRefused(f"its part {part} cannot be read: {error}") from error


def _read_manifest(folder: Path, origin: SnapshotOrigin) -> dict[str, Any] | None:
    """Return what the manifest of a folder says, None where there is none. Raises SnapshotRefused when it is damaged or
    of another origin or version."""
    try:
        manifest = orjson.loads((folder / MANIFEST).read_bytes())
        body, digest = manifest["body"], manifest["sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotRefused(f"its manifest cannot be read: {error}") from error
    if digest != _digest_of(body):
        raise SnapshotRefused("its manifest is damaged: the digest differs")
    if body["version"] != VERSION:
        raise SnapshotRefused(f"it has version {body['version']}, but this service reads version {VERSION}")
    expected = orjson.loads(orjson.dumps(asdict(origin)))  # tuples become lists, as in the manifest
    if differing := [name for name, value in expected.items() if value != body["origin"][name]]:
        raise SnapshotRefused(f"it was made with another {', '.join(differing)}")
    return dict(body)


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Return whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _close_all(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


def _digests(folder: Path, entries: Mapping[str, dict[str, Any]]) -> dict[str, Future[str]]:
    """Compute the digests of all parts' files in a thread, one after the other, while earlier parts are loaded."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot-digests")
    digests = {part: thread.submit(_digest, folder / entry["file"]) for part, entry in entries.items()}
    thread.shutdown(wait=False)  # it ends with the last digest
    return digests


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
