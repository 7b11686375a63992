"""Freshness and ItemCache on a real store and index: what may be answered from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import redis

from service.index.live import LiveIndex
from service.read_time import ReadTime
from service.records import LogEnd, StoredNote, Unreadable, Write
from service.search.freshness import Freshness
from service.search.item_cache import Budget, ItemCache, RenderedItem
from service.telemetry import Telemetry
from tests.service.conftest import GatedStore, eventually, stored_note

pytestmark = pytest.mark.anyio


def item(stored: StoredNote) -> RenderedItem:
    return RenderedItem(stored.note.id.encode(), stored.note.title.encode(), stored.note.expires_at)


def a_note(note_id: str, title: str = "soup") -> StoredNote:
    return stored_note(note_id, title)


@pytest.fixture
def cache(embedded_store: GatedStore, live_index: LiveIndex) -> ItemCache:
    made = ItemCache(embedded_store, item, Budget(10_000), Telemetry())
    live_index.on_change(made.forget)
    return made


async def test_index_that_follows_is_fresh_and_has_what_was_written(
    embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    freshness = Freshness(embedded_store, live_index)
    for n in range(20):
        (written,) = await embedded_store.put([Write(a_note(f"n{n}"))])
        assert written
        assert await freshness.wait(ReadTime()) is not None
        assert live_index.position == written.position


async def test_index_that_stays_behind_is_not_fresh(
    embedded_store: GatedStore, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.search.freshness.FOLLOW_SECONDS", 0.01)
    await embedded_store.hold()
    await embedded_store.put([Write(a_note("n"))])
    assert await Freshness(embedded_store, live_index).wait(ReadTime()) is None
    embedded_store.release()


async def test_index_ahead_of_the_log_is_not_fresh(
    embedded_store: GatedStore, live_index: LiveIndex, embedded_admin: redis.Redis
) -> None:
    (written,) = await embedded_store.put([Write(a_note("n"))])
    assert written
    await live_index.wait_for(written.position, 5)
    await embedded_store.hold()  # else the index may have noticed
    embedded_admin.flushall()
    assert await Freshness(embedded_store, live_index).wait(ReadTime()) is None
    embedded_store.release()


async def test_empty_log_is_fresh_for_an_empty_index(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    assert await Freshness(embedded_store, live_index).wait(ReadTime()) is not None


class CountedStore(GatedStore):
    """A store that counts questions for the end of its log, and holds their answers back while `gate` is shut."""

    questions = 0

    async def log_end(self) -> LogEnd:
        self.questions += 1
        end = await super().log_end()
        await self._gate.wait()
        return end


async def test_reads_that_arrive_before_a_question_is_sent_share_it(
    embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    embedded_store.__class__ = CountedStore
    assert isinstance(embedded_store, CountedStore)
    freshness = Freshness(embedded_store, live_index)
    await asyncio.gather(*(freshness.wait(ReadTime()) for _ in range(50)))
    assert embedded_store.questions == 1


async def test_read_that_arrives_behind_a_question_gets_one_of_its_own(
    embedded_store: GatedStore, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded_store.__class__ = CountedStore
    assert isinstance(embedded_store, CountedStore)
    freshness = Freshness(embedded_store, live_index)
    embedded_store.shut()
    first = asyncio.create_task(freshness.wait(ReadTime()))
    await eventually(lambda: embedded_store.questions == 1)
    later = [asyncio.create_task(freshness.wait(ReadTime())) for _ in range(10)]
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
    await embedded_store.delete("n")
    await live_index.wait_for((await embedded_store.log_end()).position, 5)
    assert await cache.get(["n"], ReadTime()) == [None]


async def test_note_that_changes_while_it_is_read_is_not_kept(embedded_store: GatedStore) -> None:
    class Slow(GatedStore):
        async def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[StoredNote | Unreadable | None]:
            notes = await super().get(ids, with_vectors=with_vectors)
            cache.forget(["n"])  # as the log does meanwhile
            return notes

    await embedded_store.put([Write(a_note("n"))])
    embedded_store.__class__ = Slow
    telemetry = Telemetry()
    budget = Budget(10_000)
    cache = ItemCache(embedded_store, item, budget, telemetry)
    assert await cache.get(["n"], ReadTime()) == [RenderedItem(b"n", b"soup", None)]
    assert budget.used == 0


async def test_oldest_items_go_where_the_budget_is_spent(embedded_store: GatedStore) -> None:
    await embedded_store.put([Write(a_note(f"n{n}")) for n in range(10)])
    size = item(a_note("n0")).size
    budget = Budget(3 * size)
    one, other = (ItemCache(embedded_store, item, budget, Telemetry()) for _ in range(2))
    await one.get([f"n{n}" for n in range(10)], ReadTime())
    assert budget.used == 3 * size
    await other.get(["n0"], ReadTime())
    assert budget.used == 3 * size
    one.forget(None)
    assert budget.used == 0
