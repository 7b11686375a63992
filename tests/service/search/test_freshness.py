"""Freshness and ItemCache on a real store and index: what may be answered from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Set
from contextlib import closing
from pathlib import Path

import pytest
import redis

from service.index.live import LiveIndex
from service.index.log_follower import LogFollower
from service.interfaces import Clock
from service.read_time import ReadTime
from service.records import LogTail, StoredNote, Unreadable, Write
from service.search.freshness import Freshness
from service.search.item_cache import ItemCache, RenderedItem
from service.search.shared_lru import SharedLru
from service.store.embedded_redis import EmbeddedRedis
from service.store.known_position import KnownPosition
from service.store.redis_keys import LOG
from service.telemetry import Telemetry
from tests.service.conftest import GatedStore, eventually, following, stored_note

pytestmark = pytest.mark.anyio


def item(stored: StoredNote) -> RenderedItem:
    return RenderedItem(stored.note.id.encode(), stored.note.title.encode(), stored.note.expires_at)


def a_note(note_id: str, title: str = "soup") -> StoredNote:
    return stored_note(note_id, title)


async def changed(freshness: Freshness) -> Set[str] | None:
    """Return the ids of the notes whose changes the index lacks; None if the log cannot tell."""
    tail = await freshness.changes(ReadTime())
    return tail and tail.ids


@pytest.fixture
def cache(embedded_store: GatedStore, live_index: LiveIndex) -> ItemCache:
    made = ItemCache(embedded_store, item, SharedLru(10_000), Telemetry())
    live_index.on_change(made.apply)
    return made


async def test_index_at_the_end_of_the_log_misses_no_change(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    freshness = Freshness(embedded_store, live_index)
    assert await changed(freshness) == set()  # the log is empty
    (written,) = await embedded_store.put([Write(a_note("n"))])
    assert written
    await live_index.wait_for(written.position, 5)
    assert await changed(freshness) == set()


async def test_changes_that_the_index_misses_are_named(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    (written,) = await embedded_store.put([Write(a_note("old"))])
    assert written
    await live_index.wait_for(written.position, 5)
    await embedded_store.hold()
    await embedded_store.put([Write(a_note("new"))])
    await embedded_store.delete("old")
    assert await changed(Freshness(embedded_store, live_index)) == {"old", "new"}
    embedded_store.release()


@pytest.mark.parametrize("behind", [0, 1, 2, 3])
async def test_log_does_not_tell_of_more_changes_than_the_bound(
    embedded_store: GatedStore, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    monkeypatch.setattr("service.search.freshness.MAX_BEHIND", 2)
    (written,) = await embedded_store.put([Write(a_note("old"))])
    assert written
    await live_index.wait_for(written.position, 5)
    await embedded_store.hold()
    for n in range(behind):
        await embedded_store.put([Write(a_note(f"n{n}"))])
    told = {f"n{n}" for n in range(behind)} if behind <= 2 else None
    assert await changed(Freshness(embedded_store, live_index)) == told
    embedded_store.release()


async def test_store_is_asked_only_where_the_index_does_not_come_to_the_known_position(
    embedded: EmbeddedRedis, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.search.freshness.CATCH_UP_SECONDS", 30.0)
    asked: list[str] = []

    class AskedStore(GatedStore):
        async def log_tail(self, after: str, count: int) -> LogTail | None:
            asked.append(after)
            return await super().log_tail(after, count)

    with closing(KnownPosition(tmp_path / "known")) as known:
        store = AskedStore(embedded.url, clock=clock, known=known)
        async with following(store, clock) as index:
            freshness = Freshness(store, index)
            for n in range(20):  # the index has mostly not applied a write when it returns
                await store.put([Write(a_note(f"n{n}"))])
                assert await changed(freshness) == set()
                assert index.vector(f"n{n}") is not None
            assert not asked
            monkeypatch.setattr("service.search.freshness.CATCH_UP_SECONDS", 0.01)
            await store.hold()
            await store.put([Write(a_note("late"))])
            assert await changed(freshness) == {"late"}
            assert len(asked) == 1
            store.release()
        await store.close()


async def test_known_position_is_doubted_while_an_index_is_rebuilt_after_the_log_lost_its_end(
    embedded: EmbeddedRedis, embedded_admin: redis.Redis, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def held(follower: LogFollower) -> None:
        await asyncio.Event().wait()

    with closing(KnownPosition(tmp_path / "known")) as known:
        store = GatedStore(embedded.url, clock=clock, known=known)
        async with following(store, clock) as index:
            (written,) = await store.put([Write(a_note("lost"))])
            assert written
            await index.wait_for(written.position, 5)
            assert Freshness(store, index).is_current()
            monkeypatch.setattr(LogFollower, "_rebuild", held)
            embedded_admin.flushall()
            await eventually(lambda: not index.status().ready)
            assert store.known_position is None
            assert not Freshness(store, index).is_current()
        await store.close()


@pytest.mark.parametrize("damage", ["emptied", "trimmed", "malformed"])
async def test_log_that_may_lack_changes_does_not_tell(
    embedded_store: GatedStore, live_index: LiveIndex, embedded_admin: redis.Redis, damage: str
) -> None:
    (written,) = await embedded_store.put([Write(a_note("old"))])
    assert written
    await live_index.wait_for(written.position, 5)
    await embedded_store.hold()  # otherwise the index might notice the damage
    await embedded_store.put([Write(a_note("new"))])
    if damage == "emptied":
        embedded_admin.flushall()
    elif damage == "trimmed":
        embedded_admin.xtrim(LOG, maxlen=1, approximate=False)
    else:
        embedded_admin.xadd(LOG, {"op": "put"})
    assert await changed(Freshness(embedded_store, live_index)) is None
    embedded_store.release()


class CountedStore(GatedStore):
    """A store that counts queries for the end of its log, and holds their answers back while the gate is shut."""

    questions = 0

    async def log_tail(self, after: str, count: int) -> LogTail | None:
        self.questions += 1
        tail = await super().log_tail(after, count)
        await self._gate.wait()
        return tail


async def test_reads_that_arrive_before_a_question_is_sent_share_it(
    embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    embedded_store.__class__ = CountedStore
    assert isinstance(embedded_store, CountedStore)
    freshness = Freshness(embedded_store, live_index)
    await asyncio.gather(*(freshness.changes(ReadTime()) for _ in range(50)))
    assert embedded_store.questions == 1


async def test_read_that_arrives_behind_a_question_gets_one_of_its_own(
    embedded_store: GatedStore, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded_store.__class__ = CountedStore
    assert isinstance(embedded_store, CountedStore)
    freshness = Freshness(embedded_store, live_index)
    embedded_store.shut()
    first = asyncio.create_task(freshness.changes(ReadTime()))
    await eventually(lambda: embedded_store.questions == 1)
    later = [asyncio.create_task(freshness.changes(ReadTime())) for _ in range(10)]
    await asyncio.sleep(0)
    assert embedded_store.questions == 1
    embedded_store.release()
    await asyncio.gather(first, *later)
    assert embedded_store.questions == 2


async def test_note_is_read_once_until_it_changes(
    cache: ItemCache, embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    for title in ("soup", "bread"):
        (written,) = await embedded_store.put([Write(a_note("n", title))])
        assert written
        await live_index.wait_for(written.position, 5)
        for _ in range(2):
            assert await cache.get(["n", "nobody"], ReadTime()) == [RenderedItem(b"n", title.encode(), None), None]
    removed = await embedded_store.delete("n")
    assert removed
    await live_index.wait_for(removed, 5)
    assert await cache.get(["n"], ReadTime()) == [None]


async def test_note_that_changes_while_it_is_read_is_not_kept(embedded_store: GatedStore) -> None:
    class Slow(GatedStore):
        async def get(
            self, ids: Sequence[str], *, with_vectors: bool = False, max_bytes: int | None = None
        ) -> list[StoredNote | Unreadable | None]:
            notes = await super().get(ids, with_vectors=with_vectors, max_bytes=max_bytes)
            cache.apply({"n": None})  # as a log entry does that arrives during the read
            return notes

    await embedded_store.put([Write(a_note("n"))])
    embedded_store.__class__ = Slow
    telemetry = Telemetry()
    items = SharedLru[RenderedItem](10_000)
    cache = ItemCache(embedded_store, item, items, telemetry)
    assert await cache.get(["n"], ReadTime()) == [RenderedItem(b"n", b"soup", None)]
    assert items.used == 0


async def test_note_that_changed_is_in_memory_at_once_but_for_a_bulk_load(
    cache: ItemCache, embedded_store: GatedStore, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def put(*notes: StoredNote) -> None:
        await embedded_store.hold()  # so that the index hears of all of them at the same time
        written = await embedded_store.put([Write(note) for note in notes])
        embedded_store.release()
        assert written[-1]
        await live_index.wait_for(written[-1].position, 5)

    monkeypatch.setattr("service.search.item_cache.MAX_RENDERED", 2)
    await put(a_note("n", "soup"))
    await put(a_note("n", "tea"))
    await put(*(a_note(f"bulk{i}") for i in range(3)))
    read: list[str] = []

    async def get(ids: Sequence[str]) -> list[StoredNote | None]:
        read.extend(ids)
        return [None for _ in ids]

    monkeypatch.setattr(embedded_store, "get", get)
    assert await cache.get(["n", "bulk0"], ReadTime()) == [RenderedItem(b"n", b"tea", None), None]
    assert read == ["bulk0"]


async def test_items_of_all_tenants_share_their_memory(embedded_store: GatedStore) -> None:
    await embedded_store.put([Write(a_note(f"n{n}")) for n in range(10)])
    size = item(a_note("n0")).size
    items = SharedLru[RenderedItem](3 * size)
    one, other = (ItemCache(embedded_store, item, items, Telemetry()) for _ in range(2))
    await one.get([f"n{n}" for n in range(10)], ReadTime())
    assert items.used == 3 * size
    await other.get(["n0"], ReadTime())
    assert items.used == 3 * size
    one.apply(None)
    assert items.used == size
