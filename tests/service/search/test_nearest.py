"""NearestNotes on a real store and index: when it has an answer, and when only the whole search has one."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from service.filters import Filter
from service.index.live import LiveIndex
from service.interfaces import Clock
from service.read_time import ReadTime
from service.records import LogTail, StoredNote, Write
from service.search.freshness import Freshness
from service.search.item_cache import ItemCache, RenderedItem
from service.search.nearest import NearestNotes
from service.search.neighbour_cache import NeighbourCache
from service.search.shared_lru import SharedLru
from service.store.embedded_redis import EmbeddedRedis
from service.telemetry import Telemetry
from tests.service.conftest import GatedStore, stored_note

pytestmark = pytest.mark.anyio
NAMES = ("soup", "soup bread", "soup bread tea", "yarn")


def item(stored: StoredNote) -> RenderedItem:
    return RenderedItem(stored.note.id.encode(), b"", stored.note.expires_at)


@pytest.fixture
async def nearest(embedded_store: GatedStore, live_index: LiveIndex, clock: Clock) -> NearestNotes:
    """A NearestNotes on the notes of NAMES, of which "soup bread" expires in a minute."""
    items = ItemCache(embedded_store, item, SharedLru(10_000), Telemetry())
    live_index.on_change(items.apply)
    expiring = stored_note("soup bread", expires_at=time.time() + 60)
    notes = [expiring if name == expiring.note.id else stored_note(name) for name in NAMES]
    written = await embedded_store.put([Write(note) for note in notes])
    assert written[-1]
    await live_index.wait_for(written[-1].position, 5)
    neighbours = NeighbourCache(live_index, SharedLru(100_000), Telemetry())
    return NearestNotes(live_index, Freshness(embedded_store, live_index), neighbours, items, clock)


async def ids(
    nearest: NearestNotes, note_id: str = "soup", k: int = 3, where: Filter | None = None
) -> list[str] | None:
    """Ids of the answer; None for no answer."""
    found = await nearest.find(note_id, k, where or Filter(), None, ReadTime())
    return None if found is None else [one.before.decode() for one, _ in found.hits]


async def test_nearest_notes_come_in_the_order_of_their_cosines(nearest: NearestNotes) -> None:
    for _ in range(2):
        assert await ids(nearest) == ["soup bread tea", "soup bread", "yarn"]
    assert await ids(nearest, k=1) == ["soup bread tea"]
    assert await ids(nearest, where=Filter(exclude=frozenset({"soup bread tea"}))) == ["soup bread", "yarn"]


async def test_unknown_note_gets_no_answer(nearest: NearestNotes) -> None:
    assert await ids(nearest, "nobody") is None


async def test_note_that_expired_by_the_clock_of_the_process_is_in_no_answer(
    nearest: NearestNotes, clock: Clock
) -> None:
    assert await ids(nearest) == ["soup bread tea", "soup bread", "yarn"]
    clock.offset = 61.0
    assert await ids(nearest) is None  # the cached list still has it, so the whole search answers this time
    assert await ids(nearest) == ["soup bread tea", "yarn"]
    assert await ids(nearest, "soup bread") is None


async def test_note_that_expired_by_the_clock_of_the_store_leaves_it_to_the_whole_search(
    nearest: NearestNotes, embedded_store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = embedded_store.log_tail

    async def ahead(after: str, count: int) -> LogTail | None:
        tail = await read(after, count)
        return tail and replace(tail, time=tail.time + 61)

    monkeypatch.setattr(embedded_store, "log_tail", ahead)
    assert await ids(nearest) is None
    assert await ids(nearest, k=1) == ["soup bread tea"]


async def test_change_that_the_index_misses_leaves_answers_with_its_note_to_the_whole_search(
    nearest: NearestNotes, embedded_store: GatedStore
) -> None:
    await embedded_store.hold()
    await embedded_store.delete("soup bread tea")
    assert await ids(nearest) is None
    assert await ids(nearest, "soup bread tea") is None
    assert await ids(nearest, where=Filter(exclude=frozenset({"soup bread tea"}))) == ["soup bread", "yarn"]
    embedded_store.release()


async def test_reader_process_answers_with_every_acknowledged_note_or_not_at_all(
    nearest: NearestNotes, embedded_store: GatedStore, live_index: LiveIndex, embedded: EmbeddedRedis, clock: Clock
) -> None:
    """Another process writes a new note, which no cached list has, while the index cannot read the log."""
    caches = nearest._neighbours, nearest._items
    reader = NearestNotes(live_index, Freshness(embedded_store, live_index), *caches, clock, in_reader_process=True)
    await embedded_store.hold()
    other = GatedStore(embedded.url, clock=clock)
    await other.put([Write(stored_note("soup soup"))])
    assert await ids(reader) is None
    assert await ids(nearest) == ["soup bread tea", "soup bread", "yarn"]
    embedded_store.release()
    await live_index.wait_for((await other.log_bounds()).last, 5)
    assert "soup soup" in (await ids(reader) or ())
    await other.close()


async def test_filtered_answer_is_left_to_the_whole_search_while_changes_are_applied(
    nearest: NearestNotes, live_index: LiveIndex
) -> None:
    """The index may then have a change by which a note passes, and its rendered item not yet."""
    before = Filter(created_before=time.time())
    async with live_index._follower.applying_nothing(5):
        assert await ids(nearest, where=before) is None
        assert await ids(nearest) == ["soup bread tea", "soup bread", "yarn"]
    assert await ids(nearest, where=before) == ["soup bread tea", "soup bread", "yarn"]
