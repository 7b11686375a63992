"""LogOrderReader: what it reads if the store changes between the answer of the index and that of the store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
import redis

from service.admission import PATIENT
from service.claims import Claims
from service.collection.listing import list_notes
from service.collection.log_order import LogOrderReader
from service.collection.removal import Remover
from service.errors import IndexBehind, StoreReplaced
from service.filters import Filter
from service.index.live import LiveIndex
from service.index.state import IndexedNotes
from service.index.threads import run_in
from service.interfaces import Clock
from service.records import ORIGIN, StoredNote, Unreadable, Write, WrittenRows
from service.store.backup.backup import make_backup
from service.store.backup.restore import restore_backup
from service.store.embedded_redis import EmbeddedRedis
from service.store.redis_keys import LOG, NOTE
from tests.service.conftest import GatedStore, eventually, stored_note

pytestmark = pytest.mark.anyio
ANY = Filter()


class BusyStore(GatedStore):
    """A store in which a note is rewritten, or removed, between the look-up in the index and the read of the notes."""

    rewritten = ""
    removed = ""

    async def get(
        self, ids: Sequence[str], *, with_vectors: bool = False, max_bytes: int | None = None
    ) -> list[StoredNote | Unreadable | None]:
        if self.rewritten in ids:
            note_id, self.rewritten = self.rewritten, ""
            await self.put([Write(stored_note(note_id, author="ann"))])
        if self.removed in ids:
            note_id, self.removed = self.removed, ""
            await self.delete(note_id)
        return await super().get(ids, with_vectors=with_vectors, max_bytes=max_bytes)


@pytest.fixture
async def embedded_store(embedded: EmbeddedRedis, clock: Clock) -> AsyncIterator[BusyStore]:
    store = BusyStore(embedded.url, clock=clock)
    yield store
    await store.close()


async def read_all(reader: LogOrderReader, count: int = 2) -> list[str]:
    ids: list[str] = []
    while not reader.ended:
        ids += [stored.note.id for stored in await reader.read(count)]
    return ids


async def add(store: GatedStore, *ids: str, **fields: str) -> None:
    for note_id in ids:
        await store.put([Write(stored_note(note_id, **fields))])


async def test_note_that_is_rewritten_in_between_is_read_at_its_new_position(
    embedded_store: BusyStore, live_index: LiveIndex
) -> None:
    await add(embedded_store, "a", "b", "c", "d")
    embedded_store.rewritten = "b"
    assert await read_all(LogOrderReader(embedded_store, live_index, ANY)) == ["a", "c", "d", "b"]


@pytest.mark.timeout(20)
async def test_note_with_a_position_that_the_log_never_reaches_does_not_make_the_reading_endless(
    embedded_store: BusyStore, live_index: LiveIndex, embedded_admin: redis.Redis
) -> None:
    await add(embedded_store, "a", "b")
    embedded_admin.hset(NOTE + "a", "position", "99999999999999-0")
    await add(embedded_store, "c")
    await live_index.resync(["a"])
    assert await read_all(LogOrderReader(embedded_store, live_index, ANY), 10) == ["b", "c"]


async def test_reading_after_a_position_that_is_yet_to_come_stays_there(
    embedded_store: BusyStore, live_index: LiveIndex
) -> None:
    await add(embedded_store, "a", "b")
    reader = LogOrderReader(embedded_store, live_index, ANY, after="99999999999999-0")
    assert await read_all(reader) == []
    assert reader.cursor == "99999999999999-0"


async def test_note_that_is_rewritten_after_it_was_read_counts_once_in_a_dry_run(
    embedded_store: BusyStore, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, rewritten = embedded_store.get, ["a"]

    async def get_then_rewrite(ids: Sequence[str], **options: Any) -> list[StoredNote | Unreadable | None]:
        notes = await get(ids, **options)
        if rewritten and ids == ["b"]:
            await add(embedded_store, rewritten.pop())
        return notes

    await add(embedded_store, "a", "b", "c")
    await live_index.wait_for((await embedded_store.log_bounds()).last, 5)
    monkeypatch.setattr("service.collection.removal.BATCH_SIZE", 1)
    monkeypatch.setattr(embedded_store, "get", get_then_rewrite)
    receipt = await Remover(embedded_store, live_index, Claims(embedded_store, 3600)).dry_run(ANY)
    assert not rewritten
    assert (receipt.count, receipt.ids) == (3, ["a", "b", "c"])


async def test_note_that_is_rewritten_while_the_index_is_scanned_is_read(
    embedded_store: BusyStore, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(embedded_store, "a", "b", author="tom")
    rewritten = ["b"]

    async def scan_after_a_rewrite(threads: ThreadPoolExecutor, call: Callable[[], object]) -> object:
        if rewritten:
            await add(embedded_store, rewritten.pop(), author="tom")
            await live_index.wait_for((await embedded_store.log_bounds()).last, 5)
        return await run_in(threads, call)

    await live_index.wait_for((await embedded_store.log_bounds()).last, 5)
    monkeypatch.setattr("service.index.live.run_in", scan_after_a_rewrite)
    reader = LogOrderReader(embedded_store, live_index, Filter(author="tom"))
    assert sorted(set(await read_all(reader, count=10))) == ["a", "b"]
    assert reader.cursor == (await embedded_store.log_bounds()).last


async def test_note_that_is_resynced_while_the_index_is_scanned_is_read(
    embedded_store: BusyStore, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(embedded_store, "a", "b", "c", "d")
    await live_index.wait_for((await embedded_store.log_bounds()).last, 5)
    update, scan = IndexedNotes.update, live_index._scan_written
    removed, scanned = threading.Event(), threading.Event()

    def update_after_a_scan(notes: IndexedNotes, changed: Mapping[str, Any]) -> None:
        removed.set()
        assert scanned.wait(5)
        update(notes, changed)

    async def scan_and_tell(*args: Any) -> WrittenRows:
        written = await scan(*args)
        scanned.set()
        return written

    monkeypatch.setattr(IndexedNotes, "update", update_after_a_scan)
    monkeypatch.setattr(live_index, "_scan_written", scan_and_tell)
    resyncing = asyncio.create_task(live_index.resync(["b"]))
    assert await asyncio.to_thread(removed.wait, 5)
    assert await read_all(LogOrderReader(embedded_store, live_index, ANY)) == ["a", "b", "c", "d"]
    await resyncing


async def test_index_tells_that_it_has_a_note_newer_than_its_position(
    embedded_store: BusyStore,
    live_index: LiveIndex,
    embedded: EmbeddedRedis,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another replica rewrites a note before the index applies the first write, for which it then reads the second."""
    monkeypatch.setattr("service.index.log_follower.READ_BATCH_SIZE", 1)
    await embedded_store.hold()
    other = BusyStore(embedded.url, clock=clock)
    positions = []
    for _ in range(2):
        await add(other, "b")
        positions.append((await other.log_bounds()).last)
    embedded_store.release()
    await embedded_store.hold()
    await live_index.wait_for(positions[0], 5)
    written = await live_index.written(ORIGIN, 10, ANY)
    assert (written.rows, written.until, written.newest) == ([], *positions)
    embedded_store.release()
    assert await read_all(LogOrderReader(embedded_store, live_index, ANY)) == ["b"]
    await other.close()


async def test_list_ends_with_every_note_beside_changes_all_the_time(
    embedded_store: BusyStore, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note is rewritten during each scan that lets changes pass; the last scan makes them wait."""
    await add(embedded_store, "a", "b", author="tom")
    await live_index.wait_for((await embedded_store.log_bounds()).last, 5)

    async def scan_after_a_rewrite(threads: ThreadPoolExecutor, call: Callable[[], object]) -> object:
        if live_index._follower.begun_batches is not None:
            await add(embedded_store, "b", author="tom")
            await live_index.wait_for((await embedded_store.log_bounds()).last, 5)
        return await run_in(threads, call)

    monkeypatch.setattr("service.index.live.run_in", scan_after_a_rewrite)
    reader = LogOrderReader(embedded_store, live_index, Filter(author="tom"))
    assert set(await read_all(reader, count=10)) == {"a", "b"}


async def test_note_that_is_rewritten_so_that_it_does_not_pass_is_left_out(
    embedded_store: BusyStore, live_index: LiveIndex
) -> None:
    await add(embedded_store, "a", "b", "c", author="tom")
    embedded_store.rewritten = "b"
    assert await read_all(LogOrderReader(embedded_store, live_index, Filter(author="tom"))) == ["a", "c"]


async def test_end_lies_behind_a_removal_that_was_met(embedded_store: BusyStore, live_index: LiveIndex) -> None:
    await add(embedded_store, "a", "b")
    embedded_store.removed = "b"
    reader = LogOrderReader(embedded_store, live_index, ANY)
    assert await read_all(reader, count=10) == ["a"]
    assert reader.cursor == (await embedded_store.log_bounds()).last


async def test_notes_of_another_space_are_read_in_their_order_and_tested_by_the_filter(
    embedded_store: BusyStore, live_index: LiveIndex
) -> None:
    await add(embedded_store, "a", author="tom")
    await add(embedded_store, "b", "c", author="tom", space="another")
    await add(embedded_store, "d", author="ann", space="another")
    await add(embedded_store, "e", author="tom")
    reader = LogOrderReader(embedded_store, live_index, Filter(author="tom"))
    assert await read_all(reader) == ["a", "b", "c", "e"]
    await add(embedded_store, "b", author="tom")
    assert await read_all(LogOrderReader(embedded_store, live_index, Filter(author="tom"))) == ["a", "c", "e", "b"]


async def test_excluded_and_unreadable_notes_are_left_out(
    embedded_store: BusyStore, live_index: LiveIndex, embedded_admin: redis.Redis
) -> None:
    await add(embedded_store, "a", "b", "c")
    await live_index.wait_for((await embedded_store.log_bounds()).last, 5)
    embedded_admin.hset("{notes}:note:b", "document", "not JSON")
    reader = LogOrderReader(embedded_store, live_index, Filter(exclude=frozenset({"a"})))
    assert await read_all(reader) == ["c"]


async def test_reader_goes_on_with_what_was_written_since_its_end(
    embedded_store: BusyStore, live_index: LiveIndex
) -> None:
    await add(embedded_store, "a", "b")
    reader = LogOrderReader(embedded_store, live_index, ANY)
    assert await read_all(reader) == ["a", "b"]
    await add(embedded_store, "a")
    assert [stored.note.id for stored in await reader.read(5)] == ["a"]


Restore = Callable[[], Awaitable[None]]


@pytest.fixture
async def restore(embedded_store: BusyStore, live_index: LiveIndex, embedded: EmbeddedRedis, tmp_path: Path) -> Restore:
    """Function that restores a backup of tom's notes a, b, c and d, after which a was rewritten: a is before the others
    again."""
    folder = str(tmp_path / "backup")
    await add(embedded_store, "a", "b", "c", "d", author="tom")
    await embedded_store.identity()
    await asyncio.to_thread(make_backup, embedded.url, folder, lambda *step: None)
    await add(embedded_store, "a", author="tom")

    written = live_index.written

    async def is_rebuilt() -> bool:
        return (await written(ORIGIN, 1, ANY)).rows[0].id == "a"

    async def restore() -> None:
        await asyncio.to_thread(restore_backup, folder, embedded.url, lambda *step: None, replace=True)
        await eventually(is_rebuilt)

    return restore


@pytest.mark.timeout(20)
async def test_list_whose_store_was_restored_between_its_pages_is_refused(
    embedded_store: BusyStore, live_index: LiveIndex, restore: Restore
) -> None:
    page = await list_notes(embedded_store, live_index, ANY, ORIGIN, 2)
    assert [stored.note.id for stored in page.notes] == ["b", "c"]
    await restore()
    with pytest.raises(StoreReplaced):
        await list_notes(embedded_store, live_index, ANY, ORIGIN, 2, page.cursor)
    page = await list_notes(embedded_store, live_index, ANY, ORIGIN, 10)
    assert [stored.note.id for stored in page.notes] == ["a", "b", "c", "d"]


async def test_list_is_refused_until_the_index_has_noticed_a_restore(
    embedded_store: BusyStore, live_index: LiveIndex, restore: Restore, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = await live_index.written(ORIGIN, 10, ANY)
    await restore()
    with monkeypatch.context() as patch:
        patch.setattr(live_index, "written", AsyncMock(return_value=earlier))
        with pytest.raises(IndexBehind):
            await list_notes(embedded_store, live_index, ANY, ORIGIN, 2)
    page = await list_notes(embedded_store, live_index, ANY, ORIGIN, 2)
    assert [stored.note.id for stored in page.notes] == ["a", "b"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("restored_first", [True, False])
async def test_last_page_whose_store_is_restored_around_the_look_up_in_the_index_is_refused(
    embedded_store: BusyStore,
    live_index: LiveIndex,
    restore: Restore,
    monkeypatch: pytest.MonkeyPatch,
    restored_first: bool,
) -> None:
    reader = LogOrderReader(embedded_store, live_index, ANY)
    assert [stored.note.id for stored in await reader.read(2)] == ["b", "c"]
    written = live_index.written

    async def written_around_a_restore(*args: Any) -> WrittenRows:
        before = await written(*args)
        await restore()
        return await written(*args) if restored_first else before

    monkeypatch.setattr(live_index, "written", written_around_a_restore)
    with pytest.raises(StoreReplaced):
        await reader.read(10)


@pytest.mark.timeout(20)
async def test_removal_by_filter_whose_store_is_restored_is_refused_and_can_be_repeated(
    embedded_store: BusyStore, live_index: LiveIndex, restore: Restore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.collection.removal.BATCH_SIZE", 2)
    delete_all, restores = embedded_store.delete_all, [restore]

    async def remove_then_restore(*args: Any) -> list[str | None]:
        positions = await delete_all(*args)
        if restores:
            await restores.pop()()
        return positions

    monkeypatch.setattr(embedded_store, "delete_all", remove_then_restore)
    remover = Remover(embedded_store, live_index, Claims(embedded_store, 3600))
    with pytest.raises(StoreReplaced):
        await remover.remove(Filter(author="tom"), PATIENT)
    receipt, _ = await remover.remove(Filter(author="tom"), PATIENT)
    assert (receipt.count, receipt.ids) == (4, ["a", "b", "c", "d"])


@pytest.mark.timeout(20)
async def test_list_whose_store_has_lost_writes_between_its_pages_is_refused(
    embedded_store: BusyStore, live_index: LiveIndex, embedded_admin: redis.Redis
) -> None:
    await add(embedded_store, "a", "b", "c", "d")
    await add(embedded_store, "a")
    page = await list_notes(embedded_store, live_index, ANY, ORIGIN, 2)
    entries = embedded_admin.xrange(LOG)
    with embedded_admin.pipeline(transaction=True) as pipeline:
        pipeline.delete(LOG)
        for position, fields in entries[:-1]:
            pipeline.xadd(LOG, fields, id=position)
        pipeline.execute()
    with pytest.raises(StoreReplaced):
        await list_notes(embedded_store, live_index, ANY, ORIGIN, 2, page.cursor)
