"""A temporary server that loads the data set of a backup, to inspect it."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from redis.exceptions import ConnectionError, RedisError, TimeoutError

from service.store.backup.manifest import DATABASES, BackupError
from service.store.embedded_redis import EmbeddedRedisError, launch_command, socket_path

STOP_SECONDS = 20.0
"""Time that the server has to end by itself before it is killed."""


@contextlib.contextmanager
def loaded(data_set: Path, database: int, databases: int = DATABASES) -> Iterator[redis.Redis]:
    """Load an RDB file, and yield a client of one of its databases. `databases`: how many the file may have. Raises
    BackupError where the file cannot be loaded: such a backup is useless.

    The server takes as much memory as the data. Its socket and log are in the folder of `data_set`; it writes no data.
    """
    folder = data_set.parent
    socket, log = socket_path(folder), folder / "scratch.log"
    try:
        command = [
            *launch_command(socket, folder, log),
            *("--databases", str(max(databases, database + 1))),
            *("--dbfilename", data_set.name, "--save", "", "--appendonly", "no"),
            *("--rdb-version-check", "relaxed"),  # Redis 7.4 and later number their formats for themselves
        ]
    except EmbeddedRedisError as error:
        raise BackupError(str(error)) from error
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        with redis.Redis(unix_socket_path=str(socket), db=database) as client:
            try:
                _wait_until_loaded(client, process, log)
            except RedisError as error:
                raise BackupError(f"the data set cannot be read: {error}") from error
            yield client
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_loaded(client: redis.Redis, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the server has read the file, however long that takes. Raises BackupError where it ends instead."""
    while True:
        with contextlib.suppress(ConnectionError, TimeoutError):  # it is loading, too
            if client.ping():
                return
        if process.poll() is not None:
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            raise BackupError(f"the data set cannot be loaded: {' / '.join(lines[-3:])}")
        time.sleep(0.02)
