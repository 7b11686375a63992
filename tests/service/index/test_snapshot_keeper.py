"""SnapshotKeeper: a start from a snapshot has what the store has, and needs nothing of the store but the log."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from structlog.testing import capture_logs

from model.note import Note
from service.errors import StoreUnavailable
from service.index.backend import Part
from service.index.live import LiveIndex
from service.index.maintenance import Maintainer
from service.index.segmented import MergeJob
from service.index.snapshot_files import MANIFEST, SnapshotFolder, SnapshotOrigin
from service.index.state import IndexedNotes
from service.interfaces import Clock
from service.store.redis_keys import IDENTITY, LOG, NOTE, SNAPSHOTS
from service.store.redis_store import REPLICA_SECONDS
from tests.service.conftest import GatedStore, eventually, following, note_vector, stored_note
from tests.service.damage import changed
from tests.service.index.live_steps import ANY, WAIT, delete, find_ids, ids_of, notes, put

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SnapshotFolder]:
    with closing(SnapshotFolder.claim(tmp_path)) as folder:
        yield folder


def started(
    store: GatedStore, clock: Clock, folder: SnapshotFolder, growing_rows: int = 2, **options: Any
) -> AbstractAsyncContextManager[LiveIndex]:
    return following(store, clock, growing_rows=growing_rows, snapshots=folder, **options)


async def test_start_from_snapshot_has_writes_before_and_after_it(
    embedded_store: GatedStore, clock: Clock, folder: SnapshotFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(embedded_store, clock, folder) as index:
        tagged = stored_note("soup", "lemon soup", hashtags=("cooking", "soup"))
        await index.wait_for(await put(embedded_store, *notes(30), tagged), WAIT)
        await index.wait_for(await delete(embedded_store, "n0"), WAIT)
        await index.save()
        monkeypatch.setattr(index, "save", no_more_saves)
        await index.wait_for(await put(embedded_store, *notes(5, 30), stored_note("n1", author="ann")), WAIT)
        await index.wait_for(await delete(embedded_store, "n2"), WAIT)
    with monkeypatch.context() as patch:
        patch.setattr(embedded_store, "scan", None)
        async with started(embedded_store, clock, folder) as index:
            assert index.status().ready
            assert await find_ids(index) == ids_of(notes(32, 3)) | {"n1", "soup"}
            np.testing.assert_array_equal(index.vector("n7"), stored_note("n7").vector)
            assert "cooking" in index.vocabulary
            query = Note(title="soup with lemon")
            neighbours = index.find_neighbours(query, note_vector(query), 3)
            assert [neighbour.id for neighbour in neighbours.by_words] == ["soup"]
            await index.wait_for(await delete(embedded_store, "soup"), WAIT)
            assert "cooking" not in index.vocabulary


async def test_start_by_newer_version_reads_undecoded_notes(
    embedded_store: GatedStore,
    embedded_admin: redis.Redis,
    clock: Clock,
    folder: SnapshotFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await put(embedded_store, *notes(3))
    for note_id in ("n0", "n1"):
        changed(version=2)(embedded_admin, note_id)
    embedded_store.drop_own_writes()
    async with started(embedded_store, clock, folder) as index:
        assert await find_ids(index) == {"n2"}
    monkeypatch.setattr(embedded_store, "scan", None)
    async with started(embedded_store, clock, folder) as index:
        assert set(embedded_store.unreadable) == {"n0", "n1"}
    monkeypatch.setattr("service.store.document.VERSION", 2)
    async with started(embedded_store, clock, folder) as index:
        assert await find_ids(index) == {"n0", "n1", "n2"}
        assert not embedded_store.unreadable


async def no_more_saves() -> None:
    """Stand in for LiveIndex.save and save nothing, as if the process had been killed."""


async def test_stop_leaves_snapshot_of_everything(
    embedded_store: GatedStore, clock: Clock, folder: SnapshotFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(embedded_store, clock, folder) as index:
        await index.wait_for(await put(embedded_store, *notes(7)), WAIT)
    monkeypatch.setattr(embedded_store, "scan", None)
    embedded_store.shut()  # the log cannot be read either
    async with started(embedded_store, clock, folder) as index:
        assert await find_ids(index) == ids_of(notes(7))


@pytest.mark.parametrize("seed", range(6))
async def test_restarts_after_any_history_match_the_store(
    embedded_store: GatedStore, clock: Clock, folder: SnapshotFolder, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    there: set[str] = set()
    for _ in range(5):
        async with started(embedded_store, clock, folder) as index:
            for _ in range(chance.randint(0, 8)):
                batch = notes(chance.randint(1, 9), chance.randint(0, 30))
                await put(embedded_store, *batch)
                there |= ids_of(batch)
                if there and chance.random() < 0.5:
                    there.remove(gone := chance.choice(sorted(there)))
                    await delete(embedded_store, gone)
                if chance.random() < 0.4:
                    await index.save()
            if chance.random() < 0.5:
                monkeypatch.setattr(index, "save", no_more_saves)
            await index.wait_for((await embedded_store.log_bounds()).last, WAIT)
            assert await find_ids(index) == there


HARMS = {
    "damaged": "is damaged",
    "of another store, whose log reaches back": "with another store",
    "log cut behind it": "the log lacks changes",
    "log lost its end and went on": "the log lacks changes",
}


@pytest.mark.parametrize("harm", HARMS)
async def test_start_snapshot_untrusted_is_refused_and_store_read(
    embedded_store: GatedStore,
    embedded_admin: redis.Redis,
    clock: Clock,
    folder: SnapshotFolder,
    tmp_path: Path,
    harm: str,
) -> None:
    async with started(embedded_store, clock, folder) as index:
        last = await put(embedded_store, *notes(20))
        await index.wait_for(last, WAIT)
    if harm == "damaged":
        path = sorted((tmp_path / "0").glob("*.npz"))[0]
        path.write_bytes(path.read_bytes()[:-1])
    if harm == "of another store, whose log reaches back":
        embedded_admin.delete(IDENTITY)
    if harm == "log cut behind it":
        await put(embedded_store, *notes(20))
        embedded_admin.xtrim(LOG, maxlen=3, approximate=False)
    if harm == "log lost its end and went on":
        embedded_admin.xdel(LOG, last)
        embedded_admin.delete(f"{NOTE}n19")
        await put(embedded_store, stored_note("n18"))
    await delete(embedded_store, "n3")
    with capture_logs() as logged:
        async with started(embedded_store, clock, folder) as index:
            assert index.status().ready
            assert (last in index.status().lost) is ("lost" in harm)
            left = ids_of(notes(20)) - {"n3"} - ({"n19"} if "lost" in harm else set())
            assert await find_ids(index) == left
    (refused,) = [line for line in logged if line["event"] == "snapshot_refused"]
    assert HARMS[harm] in refused["reason"]


async def test_log_while_replica_builds_is_kept_for_it(
    embedded_store: GatedStore, embedded_admin: redis.Redis, clock: Clock, folder: SnapshotFolder
) -> None:
    async with started(embedded_store, clock, folder) as first:
        await put(embedded_store, *notes(10))
        builds = following(embedded_store, clock)  # it keeps no snapshots
        async with builds as second:
            at = second.position
            for n in range(4):
                await first.wait_for(await put(embedded_store, *notes(150, 10 + 150 * n)), WAIT)
                await first.save()
            assert (await embedded_store.log_bounds(at)).reach(at), "what it began with is kept for it"


async def test_merges_without_a_write_are_in_the_next_snapshot(
    embedded_store: GatedStore, clock: Clock, folder: SnapshotFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_job(maintainer: Maintainer, notes: IndexedNotes) -> bool:
        return False

    async def first_segments() -> int:
        async with started(embedded_store, clock, folder) as index:
            return index.status().segments

    monkeypatch.setattr(Maintainer, "run_jobs", no_job)
    async with started(embedded_store, clock, folder) as index:
        await index.wait_for(await put(embedded_store, *notes(40)), WAIT)
    unmerged = await first_segments()
    monkeypatch.undo()
    async with started(embedded_store, clock, folder) as index:
        await index.save_merged(WAIT)
        monkeypatch.setattr(index, "save", no_more_saves)
    monkeypatch.setattr(Maintainer, "run_jobs", no_job)
    assert await first_segments() < unmerged / 4


async def test_wait_for_merges_ends_with_the_index(
    embedded_store: GatedStore, clock: Clock, folder: SnapshotFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant may be removed while its merges are waited for."""
    merging = asyncio.Event()

    async def merge_for_ever(maintainer: Maintainer, parts: IndexedNotes) -> bool:
        merging.set()
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(Maintainer, "run_jobs", merge_for_ever)
    async with started(embedded_store, clock, folder) as index:
        await merging.wait()
        waiting = asyncio.create_task(index.save_merged(3600))
        await asyncio.sleep(0)
        await index.discard()
    await asyncio.wait_for(waiting, WAIT)


async def test_position_of_a_snapshot_is_told_once_the_store_is_back(
    embedded_store: GatedStore, clock: Clock, folder: SnapshotFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    async def fail_twice(replica: str, position: str) -> None:
        told.append(position)
        if len(told) < 3:
            raise StoreUnavailable("it is unavailable")

    async with started(embedded_store, clock, folder) as index:
        position = await put(embedded_store, *notes(5))
        await index.wait_for(position, WAIT)
        monkeypatch.setattr(embedded_store, "keep_log", fail_twice)
        for calls in (1, 2, 3, 3):
            await index.save()
            assert told == [position] * calls


async def test_repair_is_in_the_next_snapshot(embedded_store: GatedStore, clock: Clock, folder: SnapshotFolder) -> None:
    async with started(embedded_store, clock, folder) as index:
        await index.wait_for(await put(embedded_store, *notes(5)), WAIT)
        index._index.remove(["n2"])
        await index.save()
        await index.resync(["n2"])
    async with started(embedded_store, clock, folder) as index:
        assert await find_ids(index) == ids_of(notes(5))


async def test_repair_beside_a_snapshot_is_in_the_one_after(
    embedded_store: GatedStore, clock: Clock, folder: SnapshotFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, go_on, whole = threading.Event(), threading.Event(), folder.save

    def save(origin: SnapshotOrigin, position: str, parts: Sequence[Part]) -> None:
        frozen.set()
        assert go_on.wait(WAIT)
        whole(origin, position, parts)

    async with started(embedded_store, clock, folder) as index:
        await index.wait_for(await put(embedded_store, *notes(5)), WAIT)
        index._index.remove(["n2"])
        monkeypatch.setattr(folder, "save", save)
        saving = asyncio.create_task(index.save())
        await asyncio.to_thread(frozen.wait, WAIT)
        await index.resync(["n2"])
        go_on.set()
        await saving
    async with started(embedded_store, clock, folder) as index:
        assert await find_ids(index) == ids_of(notes(5))


async def test_start_from_snapshot_not_ready_before_log_end(
    embedded_store: GatedStore, clock: Clock, folder: SnapshotFolder
) -> None:
    async with started(embedded_store, clock, folder) as index:
        await index.wait_for(await put(embedded_store, *notes(3)), WAIT)
    await put(embedded_store, *notes(3, 3))
    embedded_store.shut()
    starting = asyncio.create_task(enter(context := started(embedded_store, clock, folder)))
    await embedded_store.hold()
    assert not starting.done()
    embedded_store.release()
    index = await starting
    assert await find_ids(index) == ids_of(notes(6))
    await context.__aexit__(None, None, None)


async def enter(context: AbstractAsyncContextManager[LiveIndex]) -> LiveIndex:
    return await context.__aenter__()


async def test_log_is_cut_behind_snapshots_of_all_replicas(
    embedded_store: GatedStore, embedded_admin: redis.Redis, clock: Clock, tmp_path: Path
) -> None:
    with closing(SnapshotFolder.claim(tmp_path)) as one, closing(SnapshotFolder.claim(tmp_path)) as other:
        start = partial(started, embedded_store, clock, growing_rows=256)
        async with start(one) as first, start(other) as second:
            positions = []
            for n in range(4):
                positions.append(await put(embedded_store, *notes(300, 300 * n)))
                await asyncio.gather(*(index.wait_for(positions[-1], WAIT) for index in (first, second)))
            assert embedded_admin.xlen(LOG) == 1200
            await first.save()
            assert embedded_admin.xlen(LOG) == 1200, "the other one has no snapshot yet"
            await second.save()
            assert embedded_admin.xlen(LOG) < 300
            await put(embedded_store, *notes(300))
            await first.wait_for(await put(embedded_store, *notes(300)), WAIT)
            await first.save()
            await second.wait_for(first.position, WAIT)
            await second.save()
            assert embedded_admin.xlen(LOG) < 300
            await put(embedded_store, *notes(300))
            await first.wait_for(await put(embedded_store, *notes(300)), WAIT)
            await first.save()
            assert embedded_admin.xlen(LOG) > 600, "what the other one's snapshot does not have is kept"
            position, made_at = embedded_admin.hget(SNAPSHOTS, other.replica).split()
            old = f"{position} {float(made_at) - REPLICA_SECONDS - 1}"
            embedded_admin.hset(SNAPSHOTS, other.replica, old)
            await first.wait_for(await put(embedded_store, *notes(1)), WAIT)
            await first.save()
            assert embedded_admin.xlen(LOG) < 300, "but not for ever"
            assert embedded_admin.hkeys(SNAPSHOTS) == [one.replica]


async def test_keeper_saves_at_intervals(
    embedded_store: GatedStore, clock: Clock, folder: SnapshotFolder, tmp_path: Path
) -> None:
    async with started(embedded_store, clock, folder, snapshot_seconds=0.01) as index:
        assert index.status().saved_at == 0.0
        await index.wait_for(await put(embedded_store, *notes(5)), WAIT)
        await eventually(lambda: index.status().saved_at > 0 and (tmp_path / "0" / MANIFEST).exists())


async def test_keeper_and_purger_go_on_after_a_failure(
    embedded_store: GatedStore,
    embedded_admin: redis.Redis,
    clock: Clock,
    folder: SnapshotFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = []

    async def fail(*arguments: object) -> None:
        failures.append(arguments)
        raise ValueError("a mistake of ours")

    monkeypatch.setattr("service.index.purging.RETRY_SECONDS", 0.01)
    async with started(embedded_store, clock, folder, snapshot_seconds=0.01) as index:
        monkeypatch.setattr(embedded_store, "keep_log", fail)
        await index.wait_for(await put(embedded_store, *notes(5)), WAIT)
        await eventually(lambda: failures)
        monkeypatch.setattr("service.index.snapshot_keeper.SnapshotKeeper.save", fail)
        await delete(embedded_store, "n0")
        embedded_admin.xadd(LOG, {"id": "", "op": "purge"})
        await eventually(lambda: len(failures) > 3)
        monkeypatch.undo()
        with capture_logs() as logged:
            await index.wait_for(await put(embedded_store, *notes(5)), WAIT)
            await eventually(lambda: any(line["event"] == "index_purged" for line in logged))
            await eventually(lambda: index.status().unsaved_since == 0.0)


async def test_purge_whose_merges_fail_is_tried_again_after_growing_pauses(
    embedded_store: GatedStore,
    embedded_admin: redis.Redis,
    clock: Clock,
    folder: SnapshotFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(job: MergeJob) -> None:
        raise MemoryError

    monkeypatch.setattr("service.index.purging.RETRY_SECONDS", 0.01)
    async with started(embedded_store, clock, folder, growing_rows=8, snapshot_seconds=0.01) as index:
        await index.wait_for(await put(embedded_store, *notes(20)), WAIT)
        await index.wait_for(await delete(embedded_store, "n0"), WAIT)
        with monkeypatch.context() as patch, capture_logs() as logged:
            patch.setattr(MergeJob, "run", fail)
            embedded_admin.xadd(LOG, {"id": "", "op": "purge"})

            def count(event: str) -> int:
                return sum(line["event"] == event for line in logged)

            await eventually(lambda: count("index_purge_failed") >= 5)
            assert count("index_job_failed") <= count("index_purge_failed") + 1, "each pause has one attempt"
            pauses = [line["detail"] for line in logged if line["event"] == "index_purge_failed"]
            assert [pause.split()[-2] for pause in pauses[:4]] == ["0.01", "0.02", "0.04", "0.08"]
        with capture_logs() as logged:
            await eventually(lambda: any(line["event"] == "index_purged" for line in logged))
        assert index.status().unsaved_since == 0.0


async def test_save_on_full_disk_costs_no_answer(
    embedded_store: GatedStore, clock: Clock, folder: SnapshotFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    async with started(embedded_store, clock, folder) as index:
        await index.wait_for(await put(embedded_store, *notes(5)), WAIT)
        monkeypatch.setattr("os.fsync", full)
        await index.save()
        assert index.status().saved_at == 0.0
        since = index.status().unsaved_since
        assert since > 0
        assert await find_ids(index, ANY) == ids_of(notes(5))
        clock.offset += 100
        await index.save()
        assert index.status().unsaved_since == since
        monkeypatch.undo()
        await index.save()
        assert index.status().saved_at > 0
        assert index.status().unsaved_since == 0.0


async def test_changes_without_a_folder_for_snapshots_are_unsaved(embedded_store: GatedStore, clock: Clock) -> None:
    async with following(embedded_store, clock, snapshot_seconds=0.01) as index:
        await index.wait_for(await put(embedded_store, *notes(5)), WAIT)
        await eventually(lambda: index.status().unsaved_since > 0)


async def test_start_with_store_out_of_memory_builds_index(
    embedded_store: GatedStore, embedded_admin: redis.Redis, clock: Clock, folder: SnapshotFolder, tmp_path: Path
) -> None:
    async with started(embedded_store, clock, folder) as index:
        await index.wait_for(await put(embedded_store, *notes(5)), WAIT)
    (tmp_path / "0" / MANIFEST).unlink()
    embedded_admin.config_set("maxmemory", 1)
    async with started(embedded_store, clock, folder) as index:
        assert index.status().ready
        assert await find_ids(index) == ids_of(notes(5))
    assert (tmp_path / "0" / MANIFEST).exists()
