"""RedisEventStore on each Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
import redis

from service.errors import StoreUnavailable, TenantRemoved
from service.events import Event, EventBounds
from service.records import ORIGIN, Write
from service.store.connection import Connection
from service.store.events import ADD, ADD_BATCH_SIZE, MAX_ADDS, RedisEventStore
from service.store.purge_claim import PurgeClaim
from service.store.redis_keys import RedisKeys
from service.store.redis_store import RedisNoteStore
from tests.service.conftest import stored_note

pytestmark = pytest.mark.anyio
BOUNDS = EventBounds(seconds=86_400.0, bytes=2**24, id_seconds=3600.0, ids=1000)
EVENTS = "{notes}:events"


@pytest.fixture
async def events(store: RedisNoteStore) -> RedisEventStore:
    """The events of a store with the notes a and b."""
    await store.put([Write(stored_note(name)) for name in "ab"])
    return RedisEventStore(store.connection, BOUNDS)


def click(number: int, note_id: str = "a", reader: str = "u1") -> Event:
    return Event(f"e{number}", "click", note_id, reader, 1_700_000_000.5, b'{"position":1}')


async def test_events_are_read_as_they_were_added(events: RedisEventStore) -> None:
    assert await events.add([click(1), click(2, "b", "u2"), click(3, "a", "u2")]) == ["accepted"] * 3
    first, second, third = (await events.read(ORIGIN, 10, 0.01))[0]
    assert (first.kind, first.type, first.note_id, first.at, first.details) == (
        *("event", "click", "a", 1_700_000_000.5),
        b'{"position":1}',
    )
    assert first.reader != second.reader == third.reader
    assert (await events.read(second.position, 10, 0.01))[0] == [third]
    assert await events.last() == third.position


async def test_an_id_is_taken_once_and_a_note_must_be_there(events: RedisEventStore, store: RedisNoteStore) -> None:
    assert await events.add([click(1), click(1), click(2, "nobody")]) == ["accepted", "duplicate", "unknown_note"]
    await store.delete("a")
    assert await events.add([click(1), click(2, "b"), click(3)]) == ["duplicate", "accepted", "unknown_note"]


async def test_lists_of_a_tenant_go_to_the_server_in_short_scripts_and_a_few_at_a_time(
    events: RedisEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, peak, sizes, send = 0, 0, list[int](), Connection.send

    async def observed(connection: Connection, *commands: Sequence[Any]) -> list[Any]:
        nonlocal running, peak
        if commands[0][1] != ADD:
            return await send(connection, *commands)
        running, peak = running + 1, max(peak, running + 1)
        sizes.append(len(orjson.loads(commands[0][-1])))
        answers = await send(connection, *commands)
        running -= 1
        return answers

    monkeypatch.setattr(Connection, "send", observed)
    lists = [[click(first + number) for number in range(ADD_BATCH_SIZE + 2)] for first in range(1000, 6000, 1000)]
    assert await asyncio.gather(*map(events.add, lists)) == [["accepted"] * (ADD_BATCH_SIZE + 2)] * 5
    assert (peak, sorted(sizes)) == (MAX_ADDS, [2] * 5 + [ADD_BATCH_SIZE] * 5)


async def test_one_event_does_not_wait_for_lists_and_no_list_waits_for_ever(
    redis_url: str, events: RedisEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, call = Connection(redis_url), Connection.call
    arrived, release = asyncio.Semaphore(0), asyncio.Event()
    impatient = RedisEventStore(connection, BOUNDS)
    await impatient.add([click(0)])  # reads the salt once

    @contextlib.asynccontextmanager
    async def held(connection: Connection, operation: str) -> AsyncIterator[None]:
        arrived.release()
        await release.wait()
        async with call(connection, operation):
            yield

    monkeypatch.setattr(Connection, "call", held)
    lists = [asyncio.create_task(impatient.add([click(n), click(n + 10)])) for n in range(1, MAX_ADDS + 1)]
    for _ in lists:
        await arrived.acquire()
    monkeypatch.undo()
    assert await impatient.add([click(50)]) == ["accepted"]
    patience, connection.timeout_seconds = connection.timeout_seconds, 0.05
    with pytest.raises(StoreUnavailable, match="still storing earlier events"):
        await impatient.add([click(60), click(61)])
    connection.timeout_seconds = patience
    release.set()
    assert await asyncio.gather(*lists) == [["accepted"] * 2] * MAX_ADDS
    await connection.close()


async def test_a_removed_note_is_told_in_the_stream(events: RedisEventStore, store: RedisNoteStore) -> None:
    await store.delete("b")
    assert await events.last() == ORIGIN  # a store without events has no stream
    await events.add([click(1)])
    await store.delete("a")
    entries, _ = await events.read(ORIGIN, 10, 0.01)
    assert [(entry.kind, entry.note_id) for entry in entries] == [("event", "a"), ("note", "a")]


async def test_all_events_of_a_reader_are_forgotten_and_no_others(
    events: RedisEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.events.BATCH_SIZE", 3)
    await events.add([click(number, reader=f"u{number % 3}") for number in range(20)])
    assert await events.forget("u1") == 7
    assert await events.forget("u1") == 0
    assert await events.forget("nobody") == 0
    entries, _ = await events.read(ORIGIN, 100, 0.01)
    assert len({entry.reader for entry in entries if entry.kind == "event"}) == 2
    assert sum(entry.kind == "event" for entry in entries) == 13


async def test_forgetting_writes_nothing_where_there_was_never_an_event(
    events: RedisEventStore, admin: redis.Redis
) -> None:
    before = set(admin.keys())
    admin.config_set("maxmemory", 1)
    try:
        assert await events.forget("u1") == 0
        assert [entries async for entries in events.read_events_of("u1")] == []
    finally:
        admin.config_set("maxmemory", 0)
    assert set(admin.keys()) == before


async def test_old_events_leave_the_stream(events: RedisEventStore, admin: redis.Redis) -> None:
    for number in range(250):
        admin.xadd(EVENTS, {"type": "click", "note": "a", "reader": "r", "at": 0, "more": ""}, id=f"{number + 1}-0")
    await events.add([click(1)])
    assert 1 < admin.xlen(EVENTS) < 150  # a write cuts whole blocks only
    used, first = await events.trim()
    assert admin.xlen(EVENTS) == 1
    assert used > 0
    assert first == admin.xrange(EVENTS, count=1)[0][0]
    admin.delete(EVENTS)
    assert await events.trim() == (0, ORIGIN)


async def test_copy_of_the_events_that_an_earlier_version_left_is_removed_where_no_purge_is_at_it(
    events: RedisEventStore, admin: redis.Redis
) -> None:
    left = f"{EVENTS}:new"
    admin.xadd(left, {"type": "click", "note": "a", "reader": "r", "at": 0, "more": ""})
    claim = PurgeClaim(admin)
    assert claim.take()
    await events.trim()
    assert admin.exists(left)
    claim.release()
    await events.trim()
    assert not admin.exists(left)


async def test_events_after_a_store_was_emptied_have_another_salt(
    events: RedisEventStore, store: RedisNoteStore, admin: redis.Redis
) -> None:
    await events.add([click(1)])
    ((before, *_), _) = await events.read(ORIGIN, 1, 0.01)
    admin.flushall()
    await store.put([Write(stored_note("a"))])
    assert await events.add([click(1)]) == ["accepted"]
    ((after, *_), _) = await events.read(ORIGIN, 1, 0.01)
    assert before.reader != after.reader


async def test_nothing_is_written_to_a_removed_tenant(redis_url: str, admin: redis.Redis) -> None:
    connection = Connection(redis_url)
    gone = RedisEventStore(connection, BOUNDS, RedisKeys("acme"), identity="that-was")
    for call in (gone.add([click(1)]), gone.forget("u1"), gone.read(ORIGIN, 1, 0.01)):
        with pytest.raises(TenantRemoved):
            await call
    assert [key for key in admin.scan_iter() if "acme" in key] == []
    await connection.close()


@pytest.mark.parametrize(
    "change",
    [
        {"more": "{"},
        {"more": "[]"},
        {"more": "null"},
        {"more": '{"recommendation_id": []}'},
        {"at": "9" * 400},
        {"at": "9" * 300},
        {"at": "soon"},
    ],
    ids=str,
)
async def test_an_event_in_a_form_that_nobody_here_writes_is_left_out(
    events: RedisEventStore, admin: redis.Redis, change: dict[str, str]
) -> None:
    admin.xadd(EVENTS, {"type": "click", "note": "a", "reader": "r", "at": "1000", "more": ""} | change)
    entries, _ = await events.read(ORIGIN, 10, 0.01)
    assert [entry.kind for entry in entries] == ["unreadable"]


async def test_full_server_refuses_an_event_also_where_the_ids_of_a_generation_are_full(
    store: RedisNoteStore, admin: redis.Redis
) -> None:
    await store.put([Write(stored_note("a"))])
    events = RedisEventStore(store.connection, replace(BOUNDS, ids=2))
    assert await events.add([click(1)]) == ["accepted"]
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailable):
        await events.add([click(2)])
    admin.config_set("maxmemory", 0)
    assert await events.add([click(1), click(2), click(2)]) == ["duplicate", "accepted", "duplicate"]
    assert len((await events.read(ORIGIN, 10, 0.01))[0]) == 2


async def test_an_entry_that_nobody_here_wrote_is_left_out(events: RedisEventStore, admin: redis.Redis) -> None:
    admin.xadd(EVENTS, {"colour": "red"})
    await events.add([click(1)])
    entries, _ = await events.read(ORIGIN, 10, 0.01)
    assert [entry.kind for entry in entries] == ["unreadable", "event"]


async def test_ids_are_bounded_by_their_number(store: RedisNoteStore, admin: redis.Redis) -> None:
    await store.put([Write(stored_note("a"))])
    few = RedisEventStore(store.connection, replace(BOUNDS, ids=10))
    for number in range(30):
        await few.add([click(number)])
    assert admin.scard(f"{EVENTS}:ids") + admin.scard(f"{EVENTS}:ids:old") <= 10
    assert await few.add([click(number) for number in range(25, 30)]) == ["duplicate"] * 5
