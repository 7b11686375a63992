"""KnownPosition: the newest log position of a tenant that any process using a data folder has received from the store.

All processes that use an embedded server are on its machine, and share the position in memory. It is not in a file of
the data folder: writing to a mapped file there waits while the file system commits, as it does at each fsync of the
store. Each process raises the position to the one in an answer of the store before a caller gets that answer, so no
caller can know of a later change. A reader whose index has reached the position need not ask the store for changes
(docs/decisions/0031-reads.md).

Each process writes a number of its own, and the position is the largest of all. So no lock is needed, which a process
that is stopped while holding it would keep from all others.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

from service.records import position_key
from service.store.embedded_redis import EmbeddedRedisError

FOLDER_POINTER = "positions"
"""File of the data folder that names the folder in memory. Each process that uses the folder holds a shared lock on the
file."""
MAX_PATH = 4096
"""Maximum number of bytes that are read from FOLDER_POINTER."""
MEMORY = Path("/dev/shm")
"""Folder in which Linux keeps files in memory; other systems use the data folder."""
MAX_POSITION_WRITERS = 32
"""Maximum number of processes that use a data folder at a time: a read looks at the numbers of all."""
NUMBER_BYTES = 8
SIZE = MAX_POSITION_WRITERS * NUMBER_BYTES + 1
"""Bytes of the file of a position. The last one belongs to no number: writing it allocates the file and changes no
number."""
PROCESSES = "processes"
"""Folder with a file for each number; the process that writes the number holds a lock on it."""
SEQUENCE_BITS = 22
"""Bits of a position's sequence number; the other 42 bits hold its milliseconds, until the year 2109."""
SEQUENCE_MASK = (1 << SEQUENCE_BITS) - 1
"""The largest sequence number. It also stands for all larger ones, so a position that has it counts as not known."""
UNKNOWN = (1 << 64) - 1
"""Number of a position that is not known; greater than that of every position."""
RETRY_SECONDS = 0.01
"""Pause of a process that finds another process removing the folder."""


class KnownPosition:
    """The newest known log position of one tenant, in a file of SIZE bytes, which is made where it is missing.

    `process`: the number that this process writes, below MAX_POSITION_WRITERS, and no other process does. The file may
    name a position of a log that was replaced; then the store is asked, as without the file. Raises OSError.
    """

    def __init__(self, path: Path, process: int = 0) -> None:
        self._process = process
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(self._file, bytes(1), SIZE - 1)  # on a full disk an error here, not a signal at a later write
            self._map = mmap.mmap(self._file, SIZE)
        except BaseException:
            os.close(self._file)
            raise
        self._bytes = memoryview(self._map)
        # Aligned numbers of eight bytes, which processors read and write as a whole.
        self._numbers = self._bytes[: SIZE - 1].cast("Q")
        self._closed = False

    def close(self) -> None:
        """Close the file. Requests of a tenant that is being removed may still be running: for them the position is not
        known."""
        self._closed = True
        self._numbers.release()
        self._bytes.release()
        self._map.close()
        os.close(self._file)

    def advance_to(self, position: str) -> None:
        """Advance the position to one that the store returned, if that is later."""
        self._advance(_encode(position))

    def invalidate(self, now: float) -> None:
        """Make the position unknown until there is a change later than both `now`, in seconds since the epoch, and the
        position: the log may be ahead of the clock."""
        milliseconds = max(int(1000 * now), max(self._numbers) // (SEQUENCE_MASK + 1))
        self.advance_to(f"{milliseconds}-{SEQUENCE_MASK}")

    def invalidate_for_good(self) -> None:
        """Make the position unknown from now on."""
        self._advance(UNKNOWN)

    def read(self) -> str | None:
        """Return the position; None where it is not known."""
        if self._closed:
            return None
        milliseconds, sequence = divmod(max(self._numbers), SEQUENCE_MASK + 1)
        return None if sequence == SEQUENCE_MASK else f"{milliseconds}-{sequence}"

    def _advance(self, value: int) -> None:
        if not self._closed and value > self._numbers[self._process]:
            self._numbers[self._process] = value


class KnownPositions:
    """The known positions of all tenants of a data folder. A tenant's `identity` is "" for the default one.

    Raises EmbeddedRedisError where another process uses the data folder and shares no memory with this one, and where
    MAX_POSITION_WRITERS do.
    """

    def __init__(self, data_folder: Path) -> None:
        data_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._pointer = os.open(data_folder / FOLDER_POINTER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        pointer = os.fstat(self._pointer)
        # A copy of the data folder has a folder in memory of its own.
        self._prefix = f"notellm-{pointer.st_dev}-{pointer.st_ino}-"
        try:
            while (folder := self._find_folder(data_folder)) is None:
                time.sleep(RETRY_SECONDS)
            self._folder = folder
            self._process, self._process_file = self._claim_number()
        except BaseException:
            os.close(self._pointer)
            raise

    def close(self) -> None:
        """Stop using the folder, and remove it where no other process uses it."""
        if self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            os.ftruncate(self._pointer, 0)
            shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._process_file)
        os.close(self._pointer)

    def open(self, tenant: str, identity: str) -> AbstractContextManager[KnownPosition]:
        """Open the known position of a tenant. Raises OSError."""
        return contextlib.closing(KnownPosition(self._path(tenant, identity), self._process))

    def invalidate_for_good(self, tenant: str, identity: str) -> None:
        """Make all processes ask the store about a tenant that is being removed."""
        path = self._path(tenant, identity)
        if path.exists():
            with self.open(tenant, identity) as known:
                known.invalidate_for_good()
            path.unlink(missing_ok=True)

    def invalidate_all(self, now: float) -> None:
        """Make all positions unknown until there is a change later than `now`, in seconds since the epoch: the logs
        were exchanged."""
        for path in self._folder.glob("*"):
            if path.is_file():
                with contextlib.closing(KnownPosition(path, self._process)) as known:
                    known.invalidate(now)

    def _find_folder(self, data_folder: Path) -> Path | None:
        """Return the folder that the other processes use, or a new one where there are none, with the shared lock held.
        None where another process has just removed it."""
        if self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            self._make_folder(data_folder)
        self._lock(fcntl.LOCK_SH)  # not in one step: another process may have come in between
        folder = self._folder_in_pointer()
        if not folder.name:
            self._lock(fcntl.LOCK_UN)
            return None
        if not folder.is_dir():
            raise EmbeddedRedisError(
                f"another process, perhaps in another container, uses {data_folder} but shares no memory with this "
                "one; give each its own NOTELLM_DATA_DIR, and set NOTELLM_REDIS_URL to share a Redis"
            )
        return folder

    def _make_folder(self, data_folder: Path) -> None:
        """Make a new folder in place of the one that the last process left, if it could not remove it."""
        if (left := self._folder_in_pointer()).name.startswith(self._prefix):
            shutil.rmtree(left, ignore_errors=True)
        memory = MEMORY if os.access(MEMORY, os.W_OK) else data_folder
        made = tempfile.mkdtemp(prefix=self._prefix, dir=memory)
        os.ftruncate(self._pointer, 0)
        os.pwrite(self._pointer, made.encode(), 0)

    def _claim_number(self) -> tuple[int, int]:
        """Return a number that no living process writes, and the file whose lock reserves the number until the file is
        closed."""
        (self._folder / PROCESSES).mkdir(exist_ok=True)
        for number in range(MAX_POSITION_WRITERS):
            file = os.open(self._folder / PROCESSES / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                continue
            return number, file
        raise EmbeddedRedisError(
            f"{MAX_POSITION_WRITERS} processes, the maximum, use the embedded server; set NOTELLM_REDIS_URL to share a "
            "Redis"
        )

    def _folder_in_pointer(self) -> Path:
        """Return the folder that FOLDER_POINTER names; a path without a name where it names none."""
        return Path(os.pread(self._pointer, MAX_PATH, 0).decode())

    def _lock(self, how: int) -> bool:
        """Lock FOLDER_POINTER; return False where another process holds a conflicting lock and `how` says not to wait
        for it."""
        try:
            fcntl.flock(self._pointer, how)
        except BlockingIOError:
            return False
        return True

    def _path(self, tenant: str, identity: str) -> Path:
        return self._folder / (f"{tenant}-{identity}" if identity else tenant)


def is_in_use(data_folder: Path) -> bool:
    """Return whether any process has the known positions of a data folder open. Raises OSError."""
    try:
        pointer = os.open(data_folder / FOLDER_POINTER, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(pointer, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(pointer)
    return False


def _encode(position: str) -> int:
    """Encode a position as a number; later positions have larger numbers."""
    milliseconds, sequence = position_key(position)
    return min(milliseconds << SEQUENCE_BITS | min(sequence, SEQUENCE_MASK), UNKNOWN)
