"""Making a backup: the server's own copy of its data, which is loaded once as a check, and a manifest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from redis.exceptions import RedisError, ResponseError

from service.store.backup.contents import notes_of
from service.store.backup.data_set import receive_data_set
from service.store.backup.folder import BackupFolder
from service.store.backup.manifest import DATABASES, FORMAT, BackupError, Manifest, NotesEntry
from service.store.backup.scratch import loaded
from service.store.clients import client_of, database_of

DATA_SET = "data.rdb"
"""Name of the file with the data set."""
Progress = Callable[[str, int, int], object]
"""Function called with the name of a step, how much of it is done, and how much there is to do (0: not known)."""


def make_backup(url: str, address: str, progress: Progress) -> Manifest:
    """Back up the store of the Redis at `url` into the empty folder `address`, while services use it. Raises
    BackupError; then the folder is empty again."""
    folder = BackupFolder(address)
    folder.prepare()  # before the data are received and loaded, which takes long
    server, databases, expected = _describe(url)
    with tempfile.TemporaryDirectory(prefix="notellm-backup-") as temporary:
        data_set = Path(temporary) / DATA_SET
        created_at = datetime.now(UTC)
        receive_data_set(url, data_set, counting(progress, "Receiving the data", expected))
        progress("Checking that the data can be loaded", 0, 0)
        notes = _count_notes(data_set, database_of(url), databases)
        size = data_set.stat().st_size
        folder.refuse_unless_empty()  # another backup may have been written into it meanwhile
        entry = folder.write_file(data_set, DATA_SET, counting(progress, "Writing the backup", size))
        manifest = Manifest(
            format=FORMAT,
            version=version("notellm"),
            server=server,
            created_at=created_at,
            database=database_of(url),
            databases=databases,
            notes=notes,
            files=(entry,),
        )
        with folder.removed_on_failure(DATA_SET):
            folder.write_manifest(manifest)
    return manifest


def database_count(client: Any) -> int:
    """Return how many databases a server has; for a server that forbids CONFIG, a lower bound. Raises RedisError."""
    try:
        return int(client.config_get("databases")["databases"])
    except (ResponseError, KeyError):
        with_keys = (int(name.removeprefix("db")) + 1 for name in client.info("keyspace"))
        return max([DATABASES, *with_keys])


def _describe(url: str) -> tuple[str, int, int]:
    """Return name and version of the server, how many databases it has, and about how many bytes its data take. Raises
    BackupError where it cannot be backed up."""
    try:
        with client_of(url) as client:
            info, databases = client.info(), database_count(client)
    except (RedisError, OSError) as error:
        raise BackupError(f"the store at {urlsplit(url).hostname or 'its socket'} does not answer: {error}") from error
    if info.get("cluster_enabled"):
        raise BackupError("a node of a Redis Cluster sends only its own keys: back it up with the tools of the cluster")
    name = "valkey" if "valkey_version" in info else "redis"
    return f"{name} {info[f'{name}_version']}", databases, int(info["used_memory_dataset"])


def _count_notes(data_set: Path, database: int, databases: int) -> tuple[NotesEntry, ...]:
    """Load a data set, and count its notes. Raises BackupError."""
    with loaded(data_set, database, databases) as client:
        try:
            return notes_of(client)
        except RedisError as error:
            raise BackupError(f"the notes of the data set cannot be counted: {error}") from error


def counting(progress: Progress, step: str, total: int) -> Callable[[int], None]:
    """Return a function that reports further bytes of a step to `progress`."""
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress(step, done, max(total, done))

    return count
