"""Restoring a backup into the store of a Redis, in one step for the services that use it.

The data are copied into an unused database of the server, which is exchanged with the store's at the end (SWAPDB).
Until then services see the store as it was. What an interrupted restore leaves is marked, and removed by the next one.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis.exceptions import RedisError, ResponseError

from service.store.backup.backup import DATA_SET, Progress, counting, database_count
from service.store.backup.contents import BOOKKEEPING, PREFIX, notes_of, pages
from service.store.backup.copying import begin_of_log, copy_all
from service.store.backup.folder import BackupFolder
from service.store.backup.manifest import BackupError, Manifest
from service.store.backup.scratch import loaded
from service.store.clients import client_of, database_of

MARK, ALIVE = "notellm:restore", "notellm:restore:runs"
"""Keys in the database that a restore writes to: one that marks its data as disposable, and one that holds the token of
the restore that is running there. The second expires unless it is renewed."""
ALIVE_SECONDS = 60
DISK_MILLISECONDS = 60_000
"""Bound on the wait for the server's disk at the end."""
EMPTY_STORE_KEY = re.compile(
    PREFIX + b"(identity|samples|events:salt|tenants|removed:[^:]+|audit|" + BOOKKEEPING + b")"
)
"""Keys that a service or a purge makes in an empty store. A note may have any of these words at the end of its id."""
# KEYS mark, alive; ARGV token, seconds. Takes a database that is empty or left by an interrupted restore, empties it,
# and answers whether it did.
TAKE = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if redis.call('EXISTS', KEYS[1]) == 0 and redis.call('DBSIZE') > 0 then return 0 end
redis.call('FLUSHDB', 'ASYNC')
redis.call('SET', KEYS[1], '1')
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
return 1
"""
# KEYS alive; ARGV token, seconds. Keeps a database that was taken.
RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('EXPIRE', KEYS[1], ARGV[2]) end"
# KEYS alive; ARGV token. Empties a database that was taken.
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('FLUSHDB', 'ASYNC') end"
# KEYS mark, alive; ARGV token, seconds, number of the staging database, number of the store's, whether the store is
# replaced, then the keys that it may hold where it is not. Exchanges the two databases; the restore then holds the one
# with the old data. Answers "" if it did, and otherwise the reason: "lost" if another restore has taken the staging
# database, "written" if the store was written to.
EXCHANGE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'lost' end
redis.call('SELECT', ARGV[4])
if ARGV[5] == '0' then
  local known = 0
  for i = 6, #ARGV do known = known + redis.call('EXISTS', ARGV[i]) end
  if redis.call('DBSIZE') > known then return 'written' end
end
redis.call('SET', KEYS[1], '1')
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
redis.call('SELECT', ARGV[3])
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('SWAPDB', ARGV[3], ARGV[4])
return ''
"""
NOT_CHANGED = "the store was not changed"
NOT_EXCHANGED = {
    "lost": f"this restore was interrupted for so long that another one took its database; {NOT_CHANGED}. "
    "Repeat it once the other one has ended",
    "written": "the store was empty but was written to during the restore, so it was not changed. Stop clients from "
    "writing, or delete its contents with --replace",
}


def restore_backup(address: str, url: str, progress: Progress, *, replace: bool = False) -> Manifest:
    """Restore the backup in `address` into the store of the Redis at `url`. `replace`: also where the store is not
    empty; what it holds is removed. Raises BackupError, also where the server's maxmemory is too low for both; then the
    store is as it was, unless the error says otherwise."""
    folder = BackupFolder(address)
    manifest, exchanged = folder.manifest(), False
    try:
        with tempfile.TemporaryDirectory(prefix="notellm-restore-") as temporary, client_of(url) as store:
            if not replace and _keys_if_empty(store) is None:
                raise BackupError("the store is not empty; --replace deletes its contents")
            data_set = _fetch(folder, manifest, Path(temporary), progress)
            token = uuid4().hex
            with loaded(data_set, manifest.database, manifest.databases) as source, _staging(url, token) as staging:
                _check_memory(source, store)
                _copy(manifest, source, staging, progress)
                _exchange(staging, token, database_of(url), store, replace=replace)
                exchanged = True
    except (RedisError, OSError) as error:
        outcome = "the backup was restored, but not all temporary data were removed" if exchanged else NOT_CHANGED
        raise BackupError(f"{outcome}: {error}") from error
    return manifest


def _keys_if_empty(store: Any) -> list[bytes] | None:
    """Return the keys of a store that holds nothing but bookkeeping; None for one that holds more."""
    bookkeeping: list[bytes] = []
    for keys in pages(store):
        if not all(map(EMPTY_STORE_KEY.fullmatch, keys)):
            return None
        bookkeeping += keys
    return bookkeeping


def _fetch(folder: BackupFolder, manifest: Manifest, target: Path, progress: Progress) -> Path:
    """Copy the backup's file here, and check its digest."""
    if [file.name for file in manifest.files] != [DATA_SET]:
        raise BackupError(f"the manifest of the backup lists other files than {DATA_SET}: it was changed")
    (entry,) = manifest.files
    folder.read_file(entry, target / DATA_SET, counting(progress, "Reading and checking the backup", entry.size))
    return target / DATA_SET


def _check_memory(source: Any, store: Any) -> None:
    """Raise BackupError where the store's server has no memory for what `source` holds beside its own data: the copy
    would fail after minutes. A backup with data of other databases, which are not copied, is not checked."""
    loaded_data, server = source.info("memory"), store.info("memory")
    bound, used = server.get("maxmemory", 0), server["used_memory"]
    needed = used + loaded_data["used_memory"] - loaded_data["used_memory_startup"]
    if bound and needed > bound and len(source.info("keyspace")) == 1:
        raise BackupError(
            f"the server may use {bound:,} bytes and needs about {needed:,} during the restore, when it holds both the "
            "old data and the backup: raise maxmemory of your own Redis, or NOTELLM_STORE_MEMORY_BYTES of the process "
            f"that runs the embedded server, until the restore has ended; {NOT_CHANGED}"
        )


def _copy(manifest: Manifest, source: Any, staging: Any, progress: Progress) -> None:
    """Copy all keys, and check that there are as many notes as the manifest says."""
    total, done = int(source.dbsize()), 0

    def count(keys: int) -> None:
        nonlocal done
        done += keys
        progress("Restoring", done, total)

    copy_all(source, staging, count)
    restored = {entry.prefix: entry for entry in notes_of(staging)}
    for entry in manifest.notes:
        copy = restored.get(entry.prefix)
        lasting = 0 if copy is None else copy.notes - copy.expiring
        expected = entry.notes - entry.expiring, begin_of_log(entry.position)
        # A prefix without an identity has no log: a tenant's that was being removed, or another application's.
        if copy is None or (lasting, begin_of_log(copy.position)) != expected:
            raise BackupError(
                f"not all notes with the key prefix {entry.prefix} could be restored; the store was not changed"
            )


@contextlib.contextmanager
def _staging(url: str, token: str) -> Iterator[Any]:
    """Yield a client of an empty database of the server, which no other restore takes meanwhile. The database is
    emptied again at the end. Raises BackupError."""
    number = _take_database(url, token)
    with client_of(url, number) as staging, _renewed(url, number, token):
        try:
            yield staging
        finally:
            with contextlib.suppress(RedisError):
                staging.eval(RELEASE, 1, ALIVE, token)


def _take_database(url: str, token: str) -> int:
    """Take a database that is empty, or that an interrupted restore has left, and return its number. Raises
    BackupError where there is none, and where another restore runs."""
    with client_of(url) as client:
        count = database_count(client)
    numbers = [number for number in reversed(range(count)) if number != database_of(url)]
    for number in numbers:
        with client_of(url, number) as client:
            if client.exists(ALIVE):
                raise BackupError(f"another restore runs or ended within the last {ALIVE_SECONDS} seconds; wait for it")
    for number in numbers:
        with client_of(url, number) as client:
            if client.eval(TAKE, 2, MARK, ALIVE, token, ALIVE_SECONDS):
                return number
    raise BackupError("the server has no other empty database, which a restore needs besides that of the store")


@contextlib.contextmanager
def _renewed(url: str, number: int, token: str) -> Iterator[None]:
    """Keep the staging database from expiring, in a thread: copying a stream or counting notes may take minutes."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(ALIVE_SECONDS / 4):
            # The next round may succeed; if none does, the exchange is refused.
            with contextlib.suppress(RedisError), client_of(url, number) as client:
                client.eval(RENEW, 1, ALIVE, token, ALIVE_SECONDS)

    thread = threading.Thread(target=renew, name="renew-restore", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _exchange(staging: Any, token: str, database: int, store: Any, *, replace: bool) -> None:
    """Exchange the staging database with the store's, in one step, and mark the old store's data as disposable. Return
    once that is on disk. Raises BackupError where it was not exchanged (NOT_EXCHANGED), and where it was and the disk
    took longer than DISK_MILLISECONDS."""
    number = staging.connection_pool.connection_kwargs["db"]
    keys = [] if replace else _keys_if_empty(store)
    options = (token, ALIVE_SECONDS, number, database, int(replace))
    try:
        reason = "written" if keys is None else staging.eval(EXCHANGE, 2, MARK, ALIVE, *options, *keys).decode()
    except ResponseError:
        raise
    except (RedisError, OSError) as error:
        raise BackupError(f"it is unknown whether the store was replaced; check its notes: {error}") from error
    if reason:
        raise BackupError(NOT_EXCHANGED[reason])
    try:
        on_disk, _ = staging.execute_command("WAITAOF", 1, 0, DISK_MILLISECONDS)
    except ResponseError:  # a server without it, or without an append-only file
        return
    except (RedisError, OSError) as error:
        raise BackupError(f"the store was replaced, but it is unknown whether it is on disk: {error}") from error
    if not on_disk:
        raise BackupError(
            f"the store was replaced, but was not on disk within {DISK_MILLISECONDS // 1000} seconds: check the "
            "server's disk and its appendfsync. Repeat the restore only if the server dies before the data are on disk"
        )
