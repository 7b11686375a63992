"""ChangeFeed: requests that wait are bounded, and end with the process."""

from __future__ import annotations

import asyncio

import pytest
import redis

from service.collection.change_feed import ChangeFeed
from service.concurrency import ConcurrencyLimit
from service.errors import TooManyWaiting
from service.index.live import LiveIndex
from service.records import Write
from tests.service.conftest import GatedStore, eventually, stored_note

pytestmark = pytest.mark.anyio


def feed_of(store: GatedStore, index: LiveIndex, limit: int) -> ChangeFeed:
    return ChangeFeed(store, index, ConcurrencyLimit("max_change_waiters", limit))


async def test_request_beyond_the_bound_is_refused_and_its_slot_is_free_again(
    embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    waiters = ConcurrencyLimit("max_change_waiters", 1)
    feed = ChangeFeed(embedded_store, live_index, waiters)
    with waiters.slot(), pytest.raises(TooManyWaiting, match="max_change_waiters = 1"):
        await feed.read(None, 10, 0.001)
    assert (await feed.read(None, 10, 0.001)).entries == []
    after = (await embedded_store.log_bounds()).last
    waiting = asyncio.create_task(feed.read(after, 10, 20.0))

    def is_taken() -> bool:
        try:
            with waiters.slot():
                return False
        except TooManyWaiting:
            return True

    await eventually(is_taken)
    await embedded_store.put([Write(stored_note("a"))])
    assert [entry.id for entry in (await waiting).entries] == ["a"]


async def test_request_that_waits_is_answered_when_the_process_ends(
    embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    feed = feed_of(embedded_store, live_index, limit=1)
    async with asyncio.timeout(10):
        assert (await feed.read(None, 10, 30.0, is_ending=lambda: True)).entries == []


async def test_changes_are_read_in_parts_and_a_purge_is_none_of_them(
    embedded_store: GatedStore, live_index: LiveIndex, embedded_admin: redis.Redis
) -> None:
    feed = feed_of(embedded_store, live_index, limit=1)
    for note_id in "abc":
        await embedded_store.put([Write(stored_note(note_id))])
    embedded_admin.xadd("{notes}:log", {"id": "", "op": "purge"})
    first = await feed.read("0-0", 2)
    assert ([entry.id for entry in first.entries], first.more) == (["a", "b"], True)
    rest = await feed.read(first.position, 10)
    assert ([entry.id for entry in rest.entries], rest.more) == (["c"], False)
    assert rest.position == (await embedded_store.log_bounds()).last
