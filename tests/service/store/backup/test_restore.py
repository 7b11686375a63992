"""Tests of restoring a backup into a store, and of what a restore refuses."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pytest

from service.erasure.purge import purge
from service.events import Event, EventBounds
from service.filters import Filter
from service.index.snapshot_files import MANIFEST as SNAPSHOT_MANIFEST
from service.index.snapshot_files import SnapshotFolder
from service.interfaces import Clock
from service.records import Write
from service.store.backup.backup import DATA_SET
from service.store.backup.manifest import FORMAT, MANIFEST, BackupError, Manifest
from service.store.backup.restore import ALIVE, ALIVE_SECONDS, EXCHANGE, MARK, restore_backup
from service.store.backup.scratch import loaded
from service.store.clients import client_of
from service.store.connection import Connection
from service.store.embedded_redis import EmbeddedRedis
from service.store.events import RedisEventStore
from service.store.purge import COMPRESSION
from service.store.purge_claim import PurgeClaim
from service.store.redis_store import RedisNoteStore
from service.store.tenants import RedisTenants
from tests.service.conftest import (
    DIMENSION,
    SPACE,
    Server,
    eventually,
    following,
    stored_note,
    word_vector,
)
from tests.service.store.backup.conftest import (
    IDENTITY,
    LOG,
    Interrupted,
    back_up,
    contents,
    fill,
    identity,
    interrupt,
    restore,
)

PURGES = ("{notes}:purged", "{notes}:purging", "{notes}:purge:cut", "{notes}:purge:failing")
"""Keys that purges keep in a store."""


def test_all_tenants_and_types_of_keys_come_back(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path
) -> None:
    fill(source)
    fill(source, 5, "{notes}:tenant:acme:")
    others = {"list": b"rpush l a b c", "set": b"sadd s a b", "sorted": b"zadd z 1.5 a", "text": b"set t \xff ex 900"}
    for command in others.values():
        source.execute_command(*command.split())
    source.xadd("{notes}:events", {"note": "n1", "by": "x"}, id="5-1")
    manifest = back_up(embedded.url, tmp_path / "b")
    assert [(entry.prefix, entry.notes) for entry in manifest.notes] == [("{notes}:", 3), ("{notes}:tenant:acme:", 5)]
    restore(tmp_path / "b", other.url)
    assert contents(target) == contents(source)
    assert target.xrange("{notes}:events") == source.xrange("{notes}:events")
    for read in ("lrange l 0 -1", "smembers s", "zrange z 0 -1 withscores", "get t", "pexpiretime t"):
        assert target.execute_command(*read.split()) == source.execute_command(*read.split())


def test_restored_store_has_another_identity_and_goes_on_behind_its_log(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path
) -> None:
    fill(source)
    fill(source, 1, "{notes}:tenant:acme:")
    source.hset(
        "{notes}:tenants", mapping={"acme": identity("{notes}:tenant:acme:"), "old": "!" + identity("{notes}:")}
    )
    source.hset("{notes}:snapshots", "replica", "1-1 1.0")
    source.mset(dict.fromkeys(PURGES, "1000"))
    (last, _), *_ = source.xrevrange(LOG, count=1)
    back_up(embedded.url, tmp_path / "b")
    restore(tmp_path / "b", other.url)
    assert target.get(IDENTITY) not in (None, source.get(IDENTITY))
    acme = target.get("{notes}:tenant:acme:identity")
    assert target.hgetall("{notes}:tenants") == {b"acme": acme, b"old": b"!" + target.get(IDENTITY)}
    assert not target.exists("{notes}:snapshots", *PURGES)
    assert [position for position, _ in target.xrange(LOG)] == [last]
    assert target.xadd(LOG, {"id": "n9", "op": "put"}) > last


def test_store_with_notes_is_replaced_only_when_told(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path
) -> None:
    fill(source)
    back_up(embedded.url, tmp_path / "b")
    target.mset({IDENTITY: "of an empty store", COMPRESSION: "yes"})
    restore(tmp_path / "b", other.url)
    target.delete("{notes}:note:n1")
    before = contents(target)
    with pytest.raises(BackupError, match="not empty; --replace"):
        restore(tmp_path / "b", other.url)
    assert contents(target) == before
    restore(tmp_path / "b", other.url, replace=True)
    assert contents(target) == contents(source)
    assert target.info("keyspace").keys() == {"db0"}


def test_restore_that_the_memory_of_the_server_does_not_allow_is_refused_at_once(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path
) -> None:
    fill(source)
    source.set("{notes}:large", "x" * 3_000_000)
    back_up(embedded.url, tmp_path / "b")
    fill(target, 1)
    before = contents(target)
    used = target.info("memory")["used_memory"]
    target.config_set("maxmemory", used + 2_000_000)
    steps: list[str] = []
    with pytest.raises(
        BackupError, match=r"may use .* and needs about .*: raise maxmemory .* the store was not changed"
    ):
        restore_backup(str(tmp_path / "b"), other.url, lambda step, *_: steps.append(step), replace=True)
    assert "Restoring" not in steps
    assert contents(target) == before
    target.config_set("maxmemory", used + 8_000_000)
    restore(tmp_path / "b", other.url, replace=True)
    assert contents(target) == contents(source)


def test_note_that_is_written_during_a_restore_is_kept(server: Server, other: EmbeddedRedis, tmp_path: Path) -> None:
    with client_of(other.url) as source, client_of(server.url) as target:
        fill(source)
        back_up(other.url, tmp_path / "b")
        target.set(IDENTITY, "of an empty store")

        def write(step: str, done: int, total: int) -> None:
            if step == "Restoring":
                fill(target, 1)

        with pytest.raises(BackupError, match="written to during the restore"):
            restore_backup(str(tmp_path / "b"), server.url, write)
        assert len(contents(target)) == 1
        assert target.info("keyspace").keys() == {"db0"}
        restore(tmp_path / "b", server.url, replace=True)
        assert contents(target) == contents(source)


def test_key_that_is_written_behind_the_last_look_keeps_the_store(server: Server) -> None:
    with client_of(server.url) as target, client_of(server.url, 15) as staging:
        staging.mset({MARK: "1", ALIVE: "a", "restored": "1"})
        target.mset({IDENTITY: "of an empty store", "written": "1"})
        options = ("a", ALIVE_SECONDS, 15, 0, 0, IDENTITY)
        assert staging.eval(EXCHANGE, 2, MARK, ALIVE, *options) == b"written"
        assert (target.dbsize(), staging.dbsize()) == (2, 3)
        assert staging.eval(EXCHANGE, 2, MARK, ALIVE, *options, "written") == b""
        assert (target.keys(), staging.exists(MARK, "written")) == ([b"restored"], 2)
        assert (staging.get(ALIVE), staging.ttl(ALIVE)) == (b"a", ALIVE_SECONDS)


def test_restore_that_lost_its_database_to_another_one_changes_nothing(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path
) -> None:
    fill(source)
    fill(target, 1)
    before = contents(target)
    back_up(embedded.url, tmp_path / "b")
    with client_of(other.url, 15) as staging:

        def take(step: str, done: int, total: int) -> None:
            if step == "Restoring" and done == total:
                staging.flushdb()
                staging.mset({MARK: "1", ALIVE: "of another restore"})
                fill(staging, 9)

        with pytest.raises(BackupError, match="the store was not changed"):
            restore_backup(str(tmp_path / "b"), other.url, take, replace=True)
        assert staging.get(ALIVE) == b"of another restore"
        assert staging.dbsize() > 2, "what the other one has copied is kept"
    assert contents(target) == before


def test_long_restore_keeps_its_database(
    source: Any,
    target: Any,
    embedded: EmbeddedRedis,
    other: EmbeddedRedis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(source)
    back_up(embedded.url, tmp_path / "b")
    monkeypatch.setattr("service.store.backup.restore.ALIVE_SECONDS", 1)
    renewed: list[int] = []
    with client_of(other.url, 15) as staging:

        def wait(step: str, done: int, total: int) -> None:
            if step == "Restoring" and not renewed:
                staging.expire(ALIVE, 100)
                asyncio.run(eventually(lambda: staging.ttl(ALIVE) <= 1))
                renewed.append(done)

        restore_backup(str(tmp_path / "b"), other.url, wait)
    assert renewed
    assert contents(target) == contents(source)


def test_service_that_starts_during_a_restore_does_not_hinder_it(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path
) -> None:
    fill(source)
    back_up(embedded.url, tmp_path / "b")

    def start(step: str, done: int, total: int) -> None:
        target.set(IDENTITY, "of an empty store")

    restore_backup(str(tmp_path / "b"), other.url, start)
    assert contents(target) == contents(source)


@pytest.mark.anyio
async def test_store_that_a_service_has_used_and_left_without_notes_is_empty(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path
) -> None:
    fill(source)
    source.set("{notes}:events:salt", "salt of the backup")
    back_up(embedded.url, tmp_path / "b")
    connection = Connection(other.url)
    tenants = RedisTenants(connection, max_tenants=2)
    await tenants.open("acme")
    await tenants.remove("acme")
    events = RedisEventStore(connection, EventBounds(seconds=60.0, bytes=2**20, id_seconds=60.0, ids=10))
    assert await events.add([Event("e1", "click", "nobody", "u1", 1.0)]) == ["unknown_note"]
    await connection.close()
    claim = PurgeClaim(target)
    assert claim.take()
    assert set(target.keys()) == {b"{notes}:removed:acme", b"{notes}:events:salt", b"{notes}:purging"}
    restore(tmp_path / "b", other.url)
    assert contents(target) == contents(source)
    assert target.get("{notes}:events:salt") == b"salt of the backup"


def test_restored_store_that_is_not_on_disk_in_time_is_an_error(
    source: Any,
    target: Any,
    embedded: EmbeddedRedis,
    other: EmbeddedRedis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(source)
    back_up(embedded.url, tmp_path / "b")
    monkeypatch.setattr("service.store.backup.restore.DISK_MILLISECONDS", 10)
    target.config_set("appendfsync", "no")
    with pytest.raises(BackupError, match="was replaced, but was not on disk"):
        restore(tmp_path / "b", other.url)
    assert contents(target) == contents(source)


@pytest.mark.parametrize("note_id", ["identity", "a:snapshots", "tenants", "purging", "events:salt", "removed:a"])
def test_store_whose_notes_are_named_as_bookkeeping_is_not_empty(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path, note_id: str
) -> None:
    back_up(embedded.url, tmp_path / "b")
    target.hset(f"{{notes}}:note:{note_id}", "document", "{}")
    with pytest.raises(BackupError, match="not empty; --replace"):
        restore(tmp_path / "b", other.url)


@pytest.mark.parametrize("names", [[], [DATA_SET, DATA_SET], ["../../secret"]])
def test_forged_manifest_reaches_no_other_file(
    source: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path, names: list[str]
) -> None:
    manifest = back_up(embedded.url, tmp_path / "b")
    files = tuple(manifest.files[0].model_copy(update={"name": name}) for name in names)
    (tmp_path / "b" / MANIFEST).write_bytes(manifest.model_copy(update={"files": files}).encode())
    with pytest.raises(BackupError, match="lists other files"):
        restore(tmp_path / "b", other.url)


@pytest.mark.parametrize("database", [-1, 40])
def test_forged_number_of_the_database_is_an_error(
    source: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path, database: int
) -> None:
    fill(source)
    manifest = back_up(embedded.url, tmp_path / "b")
    (tmp_path / "b" / MANIFEST).write_bytes(manifest.model_copy(update={"database": database}).encode())
    with pytest.raises(BackupError):
        restore(tmp_path / "b", other.url)


def test_data_of_a_server_with_many_databases_are_loaded(source: Any, embedded: EmbeddedRedis, tmp_path: Path) -> None:
    back_up(embedded.url, tmp_path / "b")
    with loaded(tmp_path / "b" / DATA_SET, 40) as client:
        assert client.dbsize() == 0


@pytest.mark.parametrize("offset", [0, 100, -1])
def test_damaged_file_is_refused_before_anything_is_touched(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path, offset: int
) -> None:
    fill(source)
    fill(target, 1)
    back_up(embedded.url, tmp_path / "b")
    content = bytearray((tmp_path / "b" / DATA_SET).read_bytes())
    content[offset] ^= 1
    (tmp_path / "b" / DATA_SET).write_bytes(content)
    before = contents(target)
    with pytest.raises(BackupError, match=r"data.rdb of the backup is damaged"):
        restore(tmp_path / "b", other.url, replace=True)
    assert contents(target) == before


def test_manifest_that_was_cut_or_changed_is_none(source: Any, embedded: EmbeddedRedis, tmp_path: Path) -> None:
    fill(source)
    back_up(embedded.url, tmp_path / "b")
    content = (tmp_path / "b" / MANIFEST).read_bytes()
    for length in range(0, len(content), 7):
        with pytest.raises(BackupError):
            Manifest.decode(content[:length])
    with pytest.raises(BackupError, match="its digest differs"):
        Manifest.decode(content.replace(b'"notes": 3', b'"notes": 4'))
    assert Manifest.decode(content).notes[0].notes == 3


def test_backup_of_a_newer_format_names_the_way_out(source: Any, embedded: EmbeddedRedis, tmp_path: Path) -> None:
    fill(source)
    manifest = back_up(embedded.url, tmp_path / "b").model_copy(update={"format": FORMAT + 1})
    with pytest.raises(BackupError, match="upgrade first"):
        Manifest.decode(manifest.encode())


@pytest.mark.parametrize("step", ["Reading and checking the backup", "Restoring"])
def test_interrupted_restore_leaves_the_store_as_it_was(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path, step: str
) -> None:
    fill(source)
    fill(target, 1)
    before = contents(target)
    back_up(embedded.url, tmp_path / "b")
    with pytest.raises(Interrupted):
        restore_backup(str(tmp_path / "b"), other.url, interrupt(step), replace=True)
    assert contents(target) == before
    restore(tmp_path / "b", other.url, replace=True)
    assert contents(target) == contents(source)


def test_remains_of_a_killed_restore_are_thrown_away(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path
) -> None:
    fill(source)
    back_up(embedded.url, tmp_path / "b")
    with client_of(other.url, 15) as staging:
        fill(staging, 9)
        staging.mset({MARK: "1", ALIVE: "1"})
        with pytest.raises(BackupError, match="another restore runs"):
            restore(tmp_path / "b", other.url)
        staging.delete(ALIVE)
        restore(tmp_path / "b", other.url)
        assert staging.dbsize() == 0
    assert contents(target) == contents(source)


def test_database_of_somebody_else_is_not_used(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path
) -> None:
    fill(source)
    back_up(embedded.url, tmp_path / "b")
    with client_of(other.url, 15) as theirs:
        theirs.set("theirs", "1")
        restore(tmp_path / "b", other.url)
        assert theirs.get("theirs") == b"1"
    assert contents(target) == contents(source)


def test_error_behind_the_exchange_does_not_say_that_nothing_was_changed(
    source: Any,
    target: Any,
    embedded: EmbeddedRedis,
    other: EmbeddedRedis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cleanup = tempfile.TemporaryDirectory.cleanup

    def broken(folder: tempfile.TemporaryDirectory[str]) -> None:
        cleanup(folder)
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), folder.name)

    fill(source)
    back_up(embedded.url, tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile.TemporaryDirectory, "cleanup", broken)
        with pytest.raises(BackupError, match="the backup was restored, but not all temporary data"):
            restore(tmp_path / "b", other.url)
    assert contents(target) == contents(source)


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_full_temporary_folder_is_named(
    source: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path, command: str
) -> None:
    fill(source, 2000)
    back_up(embedded.url, tmp_path / "b")
    steps = {
        "backup": lambda: back_up(embedded.url, tmp_path / "another"),
        "restore": lambda: restore(tmp_path / "b", other.url),
    }
    step = steps[command]
    bounds = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, bounds[1]))  # writing beyond it is an error, as on a full disk
    try:
        with pytest.raises(BackupError, match=r"cannot write to the temporary folder .*: .*TMPDIR"):
            step()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)


@pytest.mark.anyio
async def test_running_index_at_the_position_of_a_backup_takes_the_identity_of_the_restored_store(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, tmp_path: Path, clock: Clock
) -> None:
    snapshots = SnapshotFolder.claim(tmp_path / "snapshots")
    manifest = tmp_path / "snapshots" / "0" / SNAPSHOT_MANIFEST

    def origin() -> str:
        return str(orjson.loads(manifest.read_bytes())["body"]["origin"]["store"])

    async with following(embedded_store, clock, snapshots=snapshots) as index:
        (written,) = await embedded_store.put([Write(stored_note("kept", "lemon tart"))])
        assert written is not None
        await index.wait_for(written.position, 10)
        await index.save()
        before = await embedded_store.identity()
        assert origin() == before
        back_up(embedded.url, tmp_path / "b")
        restore(tmp_path / "b", embedded.url, replace=True)
        restored = await embedded_store.identity()
        assert restored != before

        async def is_saved_anew() -> bool:
            await index.save()
            return origin() == restored

        await eventually(is_saved_anew)
        assert await index.ids() == ["kept"]
        report = await asyncio.to_thread(
            purge, embedded.url, tmp_path, [embedded.socket.parent], ids=["gone-0001"], texts=[], wait_seconds=20
        )
        assert (report.late, report.proved, index.status().lost) == ((), True, "")
    snapshots.close()


@pytest.mark.anyio
async def test_running_index_is_built_anew_after_a_restore(
    source: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path, clock: Clock
) -> None:
    stores = [RedisNoteStore(server.url, clock=clock, dimensions={SPACE: DIMENSION}) for server in (embedded, other)]
    await stores[0].put([Write(stored_note("kept", "lemon tart"))])
    back_up(embedded.url, tmp_path / "b")
    await stores[1].put([Write(stored_note("lost", "lemon tart"))])
    async with following(stores[1], clock) as index:
        assert await index.ids() == ["lost"]
        restore(tmp_path / "b", other.url, replace=True)

        async def follows() -> bool:
            return await index.ids() == ["kept"] and index.status().ready

        await eventually(follows)
        await stores[1].put([Write(stored_note("new", "lemon tart"))])
        await eventually(lambda: len(index.status().detail) and index.status().vectors == 2)
        hits = await index.search(word_vector("lemon", "tart"), 5, Filter())
        assert {hit.id for hit in hits} == {"kept", "new"}
    for store in stores:
        await store.close()
