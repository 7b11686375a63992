"""Snapshots: an index on disk, as parts of named arrays, with the log position that it has reached.

    <folder>/manifest.json    names of the parts, digests of their files, and the manifest's own digest
    <folder>/<part>.npz       arrays of one part; a new file each time, but for immutable parts
    <folder>/lock             held by the one process that uses the folder
    <folder>/replica          name under which the store knows that process

A snapshot is its manifest, which replaces the old one in one step once all files are on disk. A file that a manifest
names is never written to again. However the process ends, there is then the old snapshot or the new one
(docs/decisions/0015-snapshots.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
import orjson
import structlog

from service.errors import SnapshotRefused, StoreUnavailable
from service.index.backend import Arrays, Part, ReadPart, Snapshottable
from service.index.packed_strings import packed, unpacked
from service.index.state import READ_BATCH_SIZE, IndexedNotes, IndexState
from service.index.texts import LiveTexts
from service.index.threads import run_in, run_in_daemon
from service.interfaces import Clock, NoteStore
from service.records import ORIGIN

VERSION = 9
"""Version of the parts' contents: raise it when they change."""
MANIFEST, LOCK, REPLICA = "manifest.json", "lock", "replica"
MAX_PROCESSES = 64
"""Processes that may keep snapshots in one data folder: bounds the search for a free folder."""
MIN_PAUSE_FACTOR = 20
"""Least pause between two snapshots, as a multiple of the time that one took: at most 5% of the time goes into them."""
OTHER_SPACE, UNREADABLE = "other_space", "unreadable"
"""Parts of a snapshot: positions and ids of the notes of another space, and ids of those that the store could not
decode."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SnapshotSource:
    """Source of a snapshot: the identity of the store, the vector space, and the attributes that filters may test.

    A snapshot of another origin is refused.
    """

    store: str
    space: str
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RestoredSnapshot:
    """A snapshot whose notes were loaded: its log position, its store, and where the log ended then."""

    position: str
    store_identity: str
    log_end: str


class SnapshotKeeper:
    """Saves snapshots of `state`, and tells the store from which position on this replica still needs the log.

    `folder` None: no snapshots are made. `writer` is the thread that changes the notes. `seconds` is the least time
    between two snapshots; `space` and `attributes` are those of SnapshotSource.
    """

    def __init__(
        self,
        folder: SnapshotFolder | None,
        store: NoteStore,
        state: IndexState,
        writer: ThreadPoolExecutor,
        clock: Clock,
        *,
        seconds: float,
        space: str,
        attributes: tuple[str, ...],
    ) -> None:
        self.saved_at = 0.0
        """Time of the last snapshot, 0 before the first."""
        self._folder = folder
        self._store = store
        self._state = state
        self._writer = writer
        self._clock = clock
        self._seconds = seconds
        self._make_origin = partial(SnapshotSource, space=space, attributes=attributes)
        self._replica = folder.replica if folder else uuid4().hex
        self._saved = ORIGIN, 0
        """Position and unlogged changes of the last snapshot."""
        self._saving = asyncio.Lock()

    async def run(self) -> None:
        """Save at intervals until cancelled; without a folder, tell the store how far this replica has come."""
        pause = self._seconds
        while True:
            await asyncio.sleep(pause)
            began = time.monotonic()
            if self._folder is None:
                await self.keep_log(self._state.position)
            else:
                await self.save()
            pause = max(self._seconds, MIN_PAUSE_FACTOR * (time.monotonic() - began))

    async def keep_log(self, position: str) -> None:
        """Have the store keep the log from `position` on for this replica."""
        with contextlib.suppress(StoreUnavailable):  # the next call says it again
            await self._store.keep_log(self._replica, position)

    async def save(self) -> None:
        """Make a snapshot if anything changed since the last one, and let the log be cut off before its position. A
        failure is logged: it makes the next start slower, and no request fails because of it."""
        async with self._saving:
            state, notes = self._state, self._state.notes
            position, unlogged = state.position, state.unlogged_changes
            unchanged = (position, unlogged) == self._saved
            if self._folder is None or not state.built or state.rebuilding or state.purging or unchanged:
                return
            origin = self._make_origin(state.store_identity)
            unreadable = list(self._store.unreadable)
            take_parts = partial(snapshot_parts, notes.index, notes.texts, notes.other_space, unreadable)
            try:
                parts = await run_in(self._writer, take_parts)
                await run_in_daemon(partial(self._folder.save, origin, position, parts))
                self._saved, self.saved_at = (position, unlogged), self._clock()
            except Exception as error:
                log.warning("snapshot_failed", detail=repr(error))
            else:
                await self.keep_log(position)

    async def discard(self) -> None:
        """Remove the folder with its snapshot, and make no more of them."""
        async with self._saving:
            folder, self._folder = self._folder, None
            if folder:
                await asyncio.to_thread(folder.remove)

    async def load(self, notes: IndexedNotes) -> RestoredSnapshot | None:
        """Fill empty notes from the snapshot; None where there is none, or it is refused, which is logged. Raises
        StoreUnavailable."""
        if self._folder is None:
            return None
        identity = await self._store.identity()
        try:
            snapshot = await run_in(self._writer, partial(self._folder.load, self._make_origin(identity)))
            if snapshot is None:
                return None
            bounds = await self._store.log_bounds(snapshot.position)
            self._state.check_log_end(snapshot.position, bounds)
            if not bounds.reach(snapshot.position):
                raise SnapshotRefused("the log does not reach back to it")
            notes.other_space, unreadable = await run_in(
                self._writer, partial(restore, snapshot.read, notes.index, notes.texts)
            )
            await self._read_again(unreadable, notes)
        except StoreUnavailable:
            raise
        except Exception as error:  # whatever it is, the store can be read instead
            reason = str(error) if isinstance(error, SnapshotRefused) else f"its parts do not fit together: {error!r}"
            log.warning("snapshot_refused", reason=reason, detail="building from the store")
            return None
        self._saved = snapshot.position, self._state.unlogged_changes
        return RestoredSnapshot(snapshot.position, identity, bounds.last)

    async def _read_again(self, unreadable: Sequence[str], notes: IndexedNotes) -> None:
        """Read the notes that could not be decoded when the snapshot was made: this version may be able to, and no log
        entry says so."""
        for begin in range(0, len(unreadable), READ_BATCH_SIZE):
            batch = unreadable[begin : begin + READ_BATCH_SIZE]
            stored = await self._store.get(batch, with_vectors=True)
            await run_in(self._writer, partial(notes.update, dict(zip(batch, stored, strict=True))))


def snapshot_parts(
    index: Snapshottable, texts: LiveTexts, other_space: Mapping[str, str], unreadable: Iterable[str]
) -> list[Part]:
    """Return all parts of a snapshot. Called by the thread that changes the notes."""
    others = packed(OTHER_SPACE, [f"{position} {note_id}" for note_id, position in other_space.items()])
    undecoded = packed(UNREADABLE, unreadable)
    lists = [Part(OTHER_SPACE, lambda: others), Part(UNREADABLE, lambda: undecoded)]
    return [*index.snapshot_parts(), *texts.snapshot_parts(), *lists]


def restore(read: ReadPart, index: Snapshottable, texts: LiveTexts) -> tuple[dict[str, str], list[str]]:
    """Fill an empty index and empty texts from a snapshot; return the notes of another space as IndexedNotes has
    them, and the ids of those that could not be decoded.

    The garbage collector rests meanwhile: it would look through a million new objects, none of which is garbage.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        index.restore(read)
        texts.restore(read)
    finally:
        if collecting:
            gc.enable()
    others = (entry.split(" ", 1) for entry in unpacked(OTHER_SPACE, read(OTHER_SPACE)))
    return {note_id: position for position, note_id in others}, unpacked(UNREADABLE, read(UNREADABLE))


class SnapshotFolder:
    """The folder of one process's snapshots. `replica` is the name under which the store knows the process."""

    def __init__(self, folder: Path) -> None:
        """Raises BlockingIOError when another process has the folder, OSError when it cannot be written."""
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
        """Entries of the current manifest, by part."""

    @classmethod
    def claim(cls, parent: Path) -> SnapshotFolder:
        """Return the first folder in `parent` that no other process has. Raises OSError."""
        for number in range(MAX_PROCESSES):
            with suppress(BlockingIOError):
                return cls(parent / str(number))
        raise OSError(f"{MAX_PROCESSES} processes keep their snapshots in {parent} already")

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    def remove(self) -> None:
        """Remove the folder. No method may be called after it."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()
        with suppress(OSError):  # another process has a folder there
            self._folder.parent.rmdir()

    def save(self, origin: SnapshotSource, position: str, parts: Sequence[Part]) -> None:
        """Write a snapshot durably. Raises OSError; then the previous snapshot is still there."""
        with self._saving:
            try:
                entries = {part.name: self._write(part) for part in parts}
                body = {"version": VERSION, "position": position, "parts": entries}
                body |= {"origin": asdict(origin)}
                self._replace_file(MANIFEST, orjson.dumps({"body": body, "sha256": _digest_of(body)}))
                self._entries = entries  # before the folder is synced: if that fails, the manifest is in place anyway
                self._sync_folder()
            finally:
                self._remove_unnamed_files()

    def load(self, origin: SnapshotSource) -> Snapshot | None:
        """Return the snapshot, None where there is none. Raises SnapshotRefused when it is damaged or of another origin
        or version."""
        try:
            manifest = orjson.loads((self._folder / MANIFEST).read_bytes())
            body, digest = manifest["body"], manifest["sha256"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SnapshotRefused(f"its manifest cannot be read: {error}") from error
        if digest != _digest_of(body):
            raise SnapshotRefused("its manifest is damaged")
        if body["version"] != VERSION:
            raise SnapshotRefused(f"it is of version {body['version']}, and this service has {VERSION}")
        expected = orjson.loads(orjson.dumps(asdict(origin)))  # tuples become lists, as in the manifest
        if differing := [name for name, value in expected.items() if value != body["origin"][name]]:
            raise SnapshotRefused(f"it is of another {', '.join(differing)}")
        self._entries = body["parts"]
        for entry in self._entries.values():
            _read_ahead(self._folder / entry["file"])
        return Snapshot(body["position"], self._folder, self._entries)

    def _write(self, part: Part) -> dict[str, Any]:
        """Write a part and return its entry for the manifest; an immutable part that is there is not written again."""
        entry = self._entries.get(part.name)
        if part.immutable and entry and (self._folder / entry["file"]).exists():
            return entry
        path = self._folder / f"{part.name}.{uuid4().hex}.npz"
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **part.make())
            _sync(file)
        return {"file": path.name, "sha256": _digest(path)}

    def _replace_file(self, name: str, content: bytes) -> None:
        """Write a small file in one atomic step."""
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
            self._sync_folder()
        return path.read_text()


def remove_unused_snapshots(parent: Path) -> None:
    """Remove the folders in `parent` that no process has, and `parent` once it is empty."""
    for folder in parent.glob("*"):
        with suppress(OSError):
            SnapshotFolder(folder).remove()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot on disk. It has every write up to `position`, and may have later ones."""

    position: str
    _folder: Path
    _entries: Mapping[str, dict[str, Any]]

    def read(self, part: str) -> Arrays:
        """Return the arrays of a part. Raises SnapshotRefused when they are not what was written."""
        try:
            entry = self._entries[part]
            path = self._folder / entry["file"]
            if _digest(path) != entry["sha256"]:
                raise SnapshotRefused(f"{path.name} is damaged")
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, KeyError) as error:
            raise SnapshotRefused(f"its part {part} cannot be read: {error}") from error


def _read_ahead(path: Path) -> None:
    """Have the system read a file from disk, while others are being loaded."""
    with suppress(OSError), path.open("rb") as file:  # a file that is missing is noticed when it is loaded
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
