"""A purge beside running indexes: nothing of removed notes is left in any file, and nothing else is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from service.admission import PATIENT
from service.claims import Claims
from service.collection.removal import Remover
from service.erasure.purge import PurgeReport, purge
from service.filters import Filter
from service.index.snapshot_files import MANIFEST, SnapshotFolder
from service.interfaces import Clock
from service.records import Attempt, ChangedNotes, Remembered, StoredNote, Write
from service.store.embedded_redis import EmbeddedRedis
from service.store.purge import purge_store
from service.store.purge_claim import PurgeError
from service.store.redis_keys import LOG, NOTE, RedisKeys
from service.store.redis_store import RedisNoteStore
from service.verify import verify
from tests.service.conftest import (
    DIMENSION,
    SPACE,
    DebianRedis,
    eventually,
    following,
    kill,
    stored_note,
    word_vector,
)
from tests.service.store.backup.test_drill import writing

SECRET = "Under the third stone from the well lies what my grandmother never told anybody about."
GONE = [f"gone-{n:04}" for n in range(40)]
KEPT = [f"kept-{n:04}" for n in range(60)]
REMNANTS = (SECRET, "gone-0001", "by gone-0001")
pytestmark = pytest.mark.anyio


def notes(ids: Sequence[str], content: str) -> list[Write]:
    return [
        Write(stored_note(note_id, f"lemon {note_id}", content=content, author=f"by {note_id}", hashtags=("tart",)))
        for note_id in ids
    ]


async def purged(url: str, folder: Path, ids: Sequence[str] = GONE, wait: float = 20) -> PurgeReport:
    texts = [("secret", SECRET)]
    return await asyncio.to_thread(purge, url, folder, [folder], ids=ids, texts=texts, wait_seconds=wait)


def content(folder: Path) -> bytes:
    """All bytes of all files of a folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def found(report: PurgeReport) -> set[str]:
    return {Path(finding.file).name.split(".")[0] for finding in report.search.findings}


async def test_purge_leaves_no_byte_of_removed_notes(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock
) -> None:
    folder = embedded.socket.parent
    snapshots = SnapshotFolder.claim(folder / "snapshots")
    async with following(embedded_store, clock, growing_rows=16, snapshots=snapshots) as index:
        await embedded_store.put(notes([*GONE, *KEPT], SECRET))
        await index.wait_for((await embedded_store.log_bounds()).last, 10)
        await index.save()
        report = await purged(embedded.url, folder, [])
        assert (found(report), report.done) == ({"appendonly"}, False)  # the notes are still stored
        await embedded_store.put(notes(KEPT, "something else"))
        for note_id in GONE:
            await embedded_store.delete(note_id)
        await index.wait_for((await embedded_store.log_bounds()).last, 10)
        await index.save()
        assert all(remnant.encode() in content(folder) for remnant in REMNANTS)
        told: list[ChangedNotes | None] = []
        index.on_change(told.append)

        report = await purged(embedded.url, folder)
        assert (report.proved, report.search.findings, report.late) == (True, (), ())
        assert not any(remnant.encode() in content(folder) for remnant in REMNANTS)
        assert sorted(await index.ids()) == KEPT
        assert index.status().tombstones == 0
        assert None in told  # None empties the caches of answers
        hits = await index.search(word_vector("lemon", "kept-0007"), 3, Filter(author="by kept-0007"))
        assert [hit.id for hit in hits] == ["kept-0007"]
    snapshots.close()


async def test_index_goes_on_behind_a_purge_without_a_rebuild(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock, embedded_admin: redis.Redis
) -> None:
    async with following(embedded_store, clock) as index:
        await embedded_store.put(notes(KEPT, "text"))
        notes_before = index._state.notes
        (log,) = await asyncio.to_thread(purge_store, embedded.url)
        assert embedded_admin.xlen(LOG) == 1
        (written,) = await embedded_store.put(notes(["new"], "text"))
        assert written is not None
        await index.wait_for(written.position, 10)
        assert len(await index.ids()) == len(KEPT) + 1
        assert index._state.notes is notes_before
        assert (await embedded_store.log_bounds(log.position)).reach(log.position)


async def test_replica_that_missed_the_purge_reads_the_store(
    embedded: EmbeddedRedis, embedded_store: Any, clock: Clock
) -> None:
    async with following(embedded_store, clock) as index:
        await embedded_store.put(notes([*KEPT, "gone"], "text"))
        await index.wait_for((await embedded_store.log_bounds()).last, 10)
        await embedded_store.hold()
        await embedded_store.delete("gone")
        await asyncio.to_thread(purge_store, embedded.url)
        embedded_store.release()

        async def caught_up() -> bool:
            return sorted(await index.ids()) == KEPT and index.status().ready

        await eventually(caught_up)


async def test_snapshots_of_processes_that_ended_are_removed(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock
) -> None:
    folder = embedded.socket.parent
    parent = folder / "tenants" / "acme-1"
    snapshots = SnapshotFolder.claim(parent)
    await embedded_store.put(notes(GONE, SECRET))
    async with following(embedded_store, clock, snapshots=snapshots):
        pass
    for note_id in GONE:
        await embedded_store.delete(note_id)
    assert list(parent.glob("0/*.npz"))
    report = await purged(embedded.url, folder, wait=0)
    assert [Path(path).name for path in report.late] == [
        "0"
    ]  # its process still has the folder, but saves no more snapshots
    assert not report.proved
    snapshots.close()
    assert (await purged(embedded.url, folder, wait=0)).proved
    assert not parent.exists()


async def test_process_that_may_be_at_its_first_snapshot_is_waited_for(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock
) -> None:
    folder = embedded.socket.parent
    snapshots = SnapshotFolder.claim(folder / "snapshots")
    try:
        await embedded_store.put(notes(GONE, SECRET))
        for note_id in GONE:
            await embedded_store.delete(note_id)
        report = await purged(embedded.url, folder, wait=0)
        assert report.late == (str(folder / "snapshots" / "0"),)
        assert not report.proved
        async with following(embedded_store, clock, snapshots=snapshots):
            assert (await purged(embedded.url, folder)).proved
            assert (folder / "snapshots" / "0" / MANIFEST).exists()
    finally:
        snapshots.close()


async def test_tenant_without_a_log_is_not_waited_for(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock
) -> None:
    folder = embedded.socket.parent
    await embedded_store.put(notes(GONE, SECRET))
    for note_id in GONE:
        await embedded_store.delete(note_id)
    snapshots = SnapshotFolder.claim(folder / "tenants" / "acme-1")
    try:
        assert (await purged(embedded.url, folder, wait=0)).proved
    finally:
        snapshots.close()


async def test_remembered_answers_about_purged_notes_are_forgotten(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, embedded_admin: redis.Redis
) -> None:
    for note_id in ("gone-0001", "kept-0001"):
        (claim,) = await embedded_store.claim([Attempt(f"key of {note_id[:4]}", "f")], note_id, 10, 3600)
        remembered = Remembered(claim, b'{"id": "%s"}' % note_id.encode())
        await embedded_store.put([Write(stored_note(note_id), remembered=remembered)])
    await embedded_store.delete("gone-0001")
    report = await purged(embedded.url, embedded.socket.parent, ["gone-0001"])
    assert report.proved
    assert embedded_admin.keys("{notes}:once:*") == ["{notes}:once:key of kept"]


async def test_remembered_receipts_that_name_purged_notes_are_forgotten(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, embedded_admin: redis.Redis, clock: Clock
) -> None:
    async with following(embedded_store, clock) as index:
        remover = Remover(embedded_store, index, Claims(embedded_store, 3600))
        for name in ("gone", "kept"):
            await embedded_store.put([Write(stored_note(f"{name}-{n:04}")) for n in (1, 2)])
            await remover.remove([f"{name}-0001", f"{name}-0002"], PATIENT, [Attempt(f"key of {name}", "f")])
        await remover.remove(["gone-0001", "kept-0003"], PATIENT, [Attempt("key of a repeated removal", "f")])
    report = await purged(embedded.url, embedded.socket.parent, ["gone-0001"])
    assert report.proved
    assert embedded_admin.keys("{notes}:once:*") == ["{notes}:once:key of kept"]


async def test_note_that_is_stored_is_not_purged(embedded: EmbeddedRedis, embedded_store: RedisNoteStore) -> None:
    await embedded_store.put(notes(["kept-0001"], SECRET))
    with pytest.raises(PurgeError, match=r"'kept-0001' .* is still stored; delete it first"):
        purge_store(embedded.url, ["kept-0001"])


async def test_id_is_purged_while_another_tenant_has_a_note_of_that_id(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, embedded_admin: redis.Redis, clock: Clock
) -> None:
    acme = RedisNoteStore(embedded.url, clock=clock, keys=RedisKeys("acme"))
    try:
        for store in (embedded_store, acme):
            (claim,) = await store.claim([Attempt("key", "f")], "token", 10, 3600)
            await store.put([Write(stored_note("42"), remembered=Remembered(claim, b'{"id": "42"}'))])
    finally:
        await acme.close()
    await embedded_store.delete("42")
    with pytest.raises(PurgeError, match="note '42' of tenant 'acme' is still stored; delete it first"):
        purge_store(embedded.url, ["42"], "acme")
    await asyncio.to_thread(purge_store, embedded.url, ["42"])
    assert embedded_admin.keys("{notes}:*once:*") == ["{notes}:tenant:acme:once:key"]


async def test_tenant_that_is_removed_while_replicas_are_waited_for_keeps_no_other_from_being_purged(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, embedded_admin: redis.Redis
) -> None:
    log = RedisKeys("acme").log
    await embedded_store.put(notes(KEPT, "text"))
    embedded_admin.xadd(log, {"id": "a", "op": "delete"})
    purging = asyncio.create_task(asyncio.to_thread(purge_store, embedded.url))
    await eventually(lambda: embedded_admin.xrevrange(log, count=1)[0][1]["op"] == "purge")
    embedded_admin.delete(log)
    assert [purged_log.prefix for purged_log in await purging] == ["{notes}:"]
    assert embedded_admin.xlen(LOG) == 1
    assert not embedded_admin.exists(log)


async def test_compressed_file_of_another_redis_is_written_plain(
    debian_redis: DebianRedis, clock: Clock, short_folder: Path
) -> None:
    store = RedisNoteStore(debian_redis.url, clock=clock, dimensions={SPACE: DIMENSION})
    repeated = "the same words again and again, " * 20
    await store.put([Write(stored_note("kept", content=repeated)), Write(stored_note("gone-0001", content=SECRET))])
    await store.delete("gone-0001")
    with redis.Redis.from_url(debian_redis.url, decode_responses=True) as client:
        assert client.config_get("rdbcompression") == {"rdbcompression": "yes"}
        assert (await purged(debian_redis.url, short_folder)).proved
        assert client.config_get("rdbcompression") == {"rdbcompression": "yes"}
    assert repeated.encode() in content(short_folder)  # otherwise the search could miss texts in the file
    await store.close()


async def test_notes_and_positions_are_as_before_a_purge(
    store: RedisNoteStore, redis_url: str, admin: redis.Redis
) -> None:
    await store.put(notes([*GONE, *KEPT], "text"))
    for note_id in GONE:
        await store.delete(note_id)
    before = {note.note.id: note for page in [await store.get(KEPT)] for note in page if isinstance(note, StoredNote)}
    bounds = await store.log_bounds()
    (log,) = await asyncio.to_thread(purge_store, redis_url)
    assert {note.note.id: note for note in await store.get(KEPT) if isinstance(note, StoredNote)} == before
    after = await store.log_bounds(bounds.last)
    assert not after.reach(bounds.last)
    assert (after.first, after.last) == (log.position, log.position)
    assert admin.exists(NOTE + "kept-0001")


async def test_purges_under_load_lose_nothing(embedded: EmbeddedRedis, embedded_store: Any, clock: Clock) -> None:
    async with following(embedded_store, clock, growing_rows=16) as index:
        async with writing(embedded_store, 3) as writers:
            for _ in range(3):
                before = len(writers.changes)
                (log,) = await asyncio.to_thread(purge_store, embedded.url)
                await eventually(lambda before=before: len(writers.changes) > before + 50)
        bounds = await embedded_store.log_bounds(log.position)
        assert bounds.reach(log.position)
        expected = writers.state_at(bounds.last)
        stored = [note async for page in embedded_store.scan() for note in page]
        assert {NOTE + note.note.id for note in stored} == {key.decode() for key in expected}
        assert (await verify(embedded_store, index, SPACE, clock, repair=False)).well


async def test_purge_that_looked_for_nothing_or_not_everywhere_proves_nothing(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, tmp_path: Path
) -> None:
    await embedded_store.put(notes(KEPT, "text"))
    nothing = purge(embedded.url, tmp_path, [tmp_path], ids=[], texts=[], wait_seconds=0)
    assert (nothing.done, nothing.proved) == (True, False)
    elsewhere = purge(embedded.url, tmp_path, [], ids=["gone-0001"], texts=[], wait_seconds=0)
    assert (elsewhere.done, elsewhere.proved) == (False, False)


@pytest.mark.parametrize("named", [["other"], ["data", "other"]])
async def test_folder_without_the_files_of_the_store_proves_nothing(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, embedded_admin: redis.Redis, tmp_path: Path,
    named: list[str],
) -> None:  # fmt: skip
    await embedded_store.put(notes(KEPT, "text"))
    folders = {"data": embedded.socket.parent, "other": tmp_path}
    (tmp_path / "appendonly.aof").write_bytes(b"the file of another Redis")
    wrong = purge(
        embedded.url, tmp_path, [folders[name] for name in named], ids=["gone-0001"], texts=[], wait_seconds=0
    )
    assert (wrong.store_searched, wrong.done, wrong.proved) == (False, False, False)
    right = purge(embedded.url, tmp_path, [folders["data"]], ids=["gone-0001"], texts=[], wait_seconds=0)
    assert right.proved
    assert not embedded_admin.keys("{notes}:purge:*")


@pytest.mark.parametrize("ahead", [0, 3600], ids=["clock", "clock ahead"])
async def test_dump_that_the_server_no_longer_writes_proves_nothing(
    debian_redis: DebianRedis, clock: Clock, short_folder: Path, ahead: float
) -> None:
    store = RedisNoteStore(debian_redis.url, clock=clock)
    await store.put([Write(stored_note("kept")), Write(stored_note("gone-0001", content="again and again, " * 50))])
    with redis.Redis.from_url(debian_redis.url) as client:
        client.save()
    await store.delete("gone-0001")
    await store.close()
    dump = short_folder / "dump.rdb"
    os.utime(dump, (time.time() + ahead,) * 2)
    report = await purged(debian_redis.url, short_folder, [])
    assert (report.search.findings, report.store_searched, report.proved) == ((), True, False)
    assert report.old_or_compressed == (str(dump),)
    dump.unlink()
    assert (await purged(debian_redis.url, short_folder, [])).proved


async def test_dump_that_runs_as_a_purge_begins_is_followed_by_another(
    debian_redis: DebianRedis, clock: Clock, short_folder: Path
) -> None:
    debian_redis.stop()
    shutil.rmtree(short_folder / "appendonlydir")
    debian_redis.start("--appendonly", "no", "--save", "3600 1000000")  # a rewrite would wait for the dump anyway
    store = RedisNoteStore(debian_redis.url, clock=clock)
    await store.put([Write(stored_note(f"kept{n}")) for n in range(50)])
    await store.put([Write(stored_note("gone-0001", content=SECRET))])
    with redis.Redis.from_url(debian_redis.url) as client:
        client.config_set("rdb-key-save-delay", 40_000)  # microseconds for each key
        client.bgsave()
        await store.delete("gone-0001")
        client.config_set("rdb-key-save-delay", 0)
        assert client.info("persistence")["rdb_bgsave_in_progress"]
    await store.close()
    report = await purged(debian_redis.url, short_folder)
    assert (report.old_or_compressed, report.proved) == ((), True)
    assert SECRET.encode() not in content(short_folder)


async def test_rewrite_that_the_server_begins_just_before_a_purge_does_is_followed_by_another(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await embedded_store.put([Write(stored_note(f"kept{n}")) for n in range(50)])
    await embedded_store.put([Write(stored_note("gone-0001", content=SECRET))])
    await embedded_store.delete("gone-0001")
    rewrite, refusals = redis.Redis.bgrewriteaof, list[str]()

    def begun_by_the_server(client: redis.Redis) -> object:
        if not refusals:
            client.config_set("rdb-key-save-delay", 20_000)  # microseconds for each key
            rewrite(client)
            client.config_set("rdb-key-save-delay", 0)
        try:
            return rewrite(client)
        except redis.ResponseError as error:
            refusals.append(str(error))
            raise

    monkeypatch.setattr(redis.Redis, "bgrewriteaof", begun_by_the_server)
    folder = embedded.socket.parent
    report = await purged(embedded.url, folder)
    assert len(refusals) == 1
    assert report.proved
    assert SECRET.encode() not in content(folder)


async def test_dump_that_the_server_writes_behind_the_purge_is_none_of_before(
    debian_redis: DebianRedis, clock: Clock, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisNoteStore(debian_redis.url, clock=clock)
    await store.put([Write(stored_note("kept"))])
    await store.close()

    def dump_again(*_: object) -> list[Path]:
        with redis.Redis.from_url(debian_redis.url) as client:
            client.config_set("rdbcompression", "yes")
            client.save()
        return []

    monkeypatch.setattr("service.erasure.purge.wait_for_snapshots", dump_again)
    report = await purged(debian_redis.url, short_folder, [])
    assert (short_folder / "dump.rdb").exists()
    assert (report.old_or_compressed, report.proved) == ((), True)


async def test_files_of_a_replica_of_the_server_prove_nothing(
    debian_redis: DebianRedis, clock: Clock, short_folder: Path
) -> None:
    store = RedisNoteStore(debian_redis.url, clock=clock)
    await store.put([Write(stored_note("kept")), Write(stored_note("gone-0001", content="again and again, " * 50))])
    folder = short_folder / "replica"
    folder.mkdir()
    replica, master = DebianRedis(folder), debian_redis.url.rpartition(":")
    try:
        replica.start("--replicaof", "127.0.0.1", master[2])
        with redis.Redis.from_url(replica.url) as client:
            await eventually(
                lambda: (
                    client.info("replication")["master_link_status"] == "up"
                    and not client.info("persistence")["aof_rewrite_in_progress"]
                    and client.exists(NOTE + "gone-0001")
                )
            )
            await store.delete("gone-0001")
            await eventually(lambda: not client.exists(NOTE + "gone-0001"))
        report = await asyncio.to_thread(
            purge, debian_redis.url, folder, [folder], ids=[], texts=[("secret", SECRET)], wait_seconds=0
        )
        assert (report.search.findings, report.proved) == ((), False)
        assert [Path(path).name.split(".")[-2:] for path in report.old_or_compressed if "base" in path] == [
            ["base", "rdb"]
        ]
    finally:
        kill(replica)
        await store.close()


@pytest.mark.parametrize("forbidden", ["-config", "-config|set"])
async def test_files_that_may_be_compressed_prove_nothing(
    debian_redis: DebianRedis, clock: Clock, short_folder: Path, forbidden: str
) -> None:
    store = RedisNoteStore(debian_redis.url, clock=clock)
    await store.put([Write(stored_note("kept")), Write(stored_note("gone-0001", content="again and again, " * 50))])
    await store.delete("gone-0001")
    await store.close()
    with redis.Redis.from_url(debian_redis.url) as client:
        client.execute_command("ACL", "SETUSER", "limited", "on", "nopass", "~*", "&*", "+@all", forbidden)
    limited = debian_redis.url.replace("//", "//limited:x@")
    report = await purged(limited, short_folder, ["gone-0001"])
    assert (report.search.findings, report.store_searched, report.done) == ((), False, False)
    assert (await purged(debian_redis.url, short_folder, ["gone-0001"])).proved
