"""A purge of the stream of events beside a service that follows it: no file keeps anything of removed notes and
forgotten readers, and all other relations stay."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
import redis

from service.behaviour.co_occurrence import CoOccurrenceOptions
from service.behaviour.follower import EventFollower
from service.behaviour.live import LiveBehaviour
from service.errors import BehaviourBehind
from service.events import Event, EventBounds, EventEntry
from service.interfaces import Clock
from service.records import Write
from service.store import event_purge
from service.store.connection import Connection
from service.store.embedded_redis import EmbeddedRedis
from service.store.events import RedisEventStore
from service.store.purge import purge_store
from service.store.purge_claim import PurgeClaim
from service.store.redis_store import RedisNoteStore
from service.telemetry import Telemetry
from tests.service.conftest import eventually, stored_note

pytestmark = pytest.mark.anyio
BOUNDS = EventBounds(seconds=86_400.0, bytes=2**24, id_seconds=3600.0, ids=1000)
EVENTS = "{notes}:events"


@contextlib.asynccontextmanager
async def behaving(url: str, clock: Clock) -> AsyncIterator[LiveBehaviour]:
    connection = Connection(url)
    store = RedisEventStore(connection, BOUNDS)
    behaviour = LiveBehaviour(store, CoOccurrenceOptions(), {"click": 1.0}, BOUNDS.seconds, Telemetry(), clock)
    behaviour.start()
    yield behaviour
    await behaviour.stop()
    await connection.close()


def clicks(clock: Clock, notes: Iterable[str], *readers: str) -> list[Event]:
    return [
        Event(f"{note}-{reader}-{clock():f}", "click", note, reader, clock()) for reader in readers for note in notes
    ]


def files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


async def test_purge_leaves_out_an_entry_that_nobody_here_wrote(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock, embedded_admin: redis.Redis
) -> None:
    await embedded_store.put([Write(stored_note("kept"))])
    async with behaving(embedded.url, clock) as behaviour:
        await behaviour.add(clicks(clock, ["kept"], "u1"), clock())
        embedded_admin.xadd(EVENTS, {"colour": "red"})
        await asyncio.to_thread(purge_store, embedded.url)
    assert [fields["note"] for _, fields in embedded_admin.xrange(EVENTS) if fields.get("note")] == ["kept"]
    assert not any("colour" in fields for _, fields in embedded_admin.xrange(EVENTS))


async def test_purge_leaves_nothing_of_removed_notes_and_forgotten_readers(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock, embedded_admin: redis.Redis
) -> None:
    folder = embedded.socket.parent
    notes = ["kept-1", "kept-2", "gone-1", "again-1"]
    await embedded_store.put([Write(stored_note(note)) for note in notes])
    async with behaving(embedded.url, clock) as behaviour:
        await behaviour.add([event for note in notes for event in clicks(clock, [note], "u1", "u2", "u3")], clock())
        await eventually(lambda: behaviour.status().reads == 12)
        forgotten = next(fields["reader"] for _, fields in embedded_admin.xrange(EVENTS) if fields["note"] == "kept-1")
        assert await behaviour.forget("u1") == 4
        await embedded_store.delete("gone-1")
        await embedded_store.delete("again-1")
        await embedded_store.put([Write(stored_note("again-1"))])
        await eventually(lambda: behaviour.status().reads == 4)
        assert forgotten.encode() in files(folder)

        await asyncio.to_thread(purge_store, embedded.url)
        left = files(folder)
        assert b"gone-1" not in left
        assert forgotten.encode() not in left
        assert [(fields["type"], fields["note"]) for _, fields in embedded_admin.xrange(EVENTS)] == [
            *[("click", "kept-1")] * 2,
            *[("click", "kept-2")] * 2,
            ("-purge", ""),
        ]
        await behaviour.add(clicks(clock, ["again-1"], "u2"), clock())
        await eventually(
            lambda: behaviour.status().reads == 5
        )  # in the new state; the one before it takes in nothing more
        assert [one.id for one in await behaviour.candidates(["kept-1"])] == ["kept-2", "again-1"]


async def test_what_is_related_stays_while_the_stream_is_read_again_after_a_purge(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, apply = [], EventFollower._apply

    async def look_then_apply(follower: EventFollower, entry: EventEntry) -> None:
        related = [one.id for one in await behaviour.candidates(["a"])]
        told.append((behaviour.status().ready, related))
        await apply(follower, entry)

    await embedded_store.put([Write(stored_note(note)) for note in "ab"])
    async with behaving(embedded.url, clock) as behaviour:
        await behaviour.add(clicks(clock, "ab", "u1", "u2"), clock())
        await eventually(lambda: behaviour.status().ready and behaviour.status().reads == 4)
        memory = behaviour.status().bytes
        monkeypatch.setattr(EventFollower, "_apply", look_then_apply)
        await asyncio.to_thread(purge_store, embedded.url)
        await eventually(lambda: len(told) == 5)
        assert told == [(True, ["b"])] * 5, "four events and the end of the purge"
        await eventually(lambda: behaviour.status().bytes == memory)


async def test_reads_are_not_exported_while_the_stream_is_read_again_after_a_purge(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, may_go_on, apply = asyncio.Event(), asyncio.Event(), EventFollower._apply

    async def wait_then_apply(follower: EventFollower, entry: EventEntry) -> None:
        reading.set()
        await may_go_on.wait()
        await apply(follower, entry)

    await embedded_store.put([Write(stored_note(note)) for note in "ab"])
    async with behaving(embedded.url, clock) as behaviour:
        await behaviour.add(clicks(clock, "ab", "u1", "u2"), clock())
        await eventually(lambda: behaviour.status().ready and behaviour.status().reads == 4)
        begun, half_done = behaviour.all_reads(), behaviour.all_reads()
        for export in (begun, half_done):
            assert len(next(export)) == 2
        monkeypatch.setattr(EventFollower, "_apply", wait_then_apply)
        await asyncio.to_thread(purge_store, embedded.url)
        await eventually(reading.is_set)
        assert await behaviour.forget("u1") == 2
        assert behaviour.status().ready
        for export in (behaviour.all_reads(), begun):
            with pytest.raises(BehaviourBehind, match="0 reads of notes so far"):
                next(export)
        may_go_on.set()
        await eventually(lambda: behaviour.status().reads == 2)
        with pytest.raises(BehaviourBehind):
            next(half_done)
        assert [[read.note_id for read in reads] for reads in behaviour.all_reads()] == [["a", "b"]]


async def test_what_is_related_stays_where_reading_the_stream_again_after_a_purge_fails(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, apply, failures = [], EventFollower._apply, [RuntimeError("no such entry")]

    async def fail_once(follower: EventFollower, entry: EventEntry) -> None:
        told.append((behaviour.status().ready, [one.id for one in await behaviour.candidates(["a"])]))
        if len(told) == 3 and failures:
            raise failures.pop()
        await apply(follower, entry)

    monkeypatch.setattr("service.behaviour.follower.RETRY_SECONDS", (0.0, 0.0))
    await embedded_store.put([Write(stored_note(note)) for note in "ab"])
    async with behaving(embedded.url, clock) as behaviour:
        await behaviour.add(clicks(clock, "ab", "u1", "u2"), clock())
        await eventually(lambda: behaviour.status().ready and behaviour.status().reads == 4)
        memory = behaviour.status().bytes
        monkeypatch.setattr(EventFollower, "_apply", fail_once)
        await asyncio.to_thread(purge_store, embedded.url)
        await eventually(lambda: len(told) == 8)
        assert told == [(True, ["b"])] * 8, "two entries, the one that failed, and all five again"
        await eventually(lambda: behaviour.status().bytes == memory)


async def test_events_that_come_during_a_purge_are_kept(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock, embedded_admin: redis.Redis
) -> None:
    await embedded_store.put([Write(stored_note("a"))])
    async with behaving(embedded.url, clock) as behaviour:
        purging = asyncio.create_task(asyncio.to_thread(purge_store, embedded.url))
        sent = 0
        while not purging.done():
            assert await behaviour.add([Event(f"e{sent}", "click", "a", f"u{sent}", clock())], clock()) == ["accepted"]
            sent += 1
        await purging
        await eventually(lambda: behaviour.status().reads == sent)
        assert sum(fields["type"] == "click" for _, fields in embedded_admin.xrange(EVENTS)) == sent


async def test_two_purges_at_the_same_time_lose_no_event(
    embedded: EmbeddedRedis,
    embedded_store: RedisNoteStore,
    clock: Clock,
    embedded_admin: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_purge, "PAGE_SIZE", 5)
    copying, other_began, copy = threading.Event(), threading.Event(), event_purge._copy

    def copy_behind_gate(*arguments: Any) -> None:
        copy(*arguments)
        copying.set()
        assert other_began.wait(30)

    monkeypatch.setattr(event_purge, "_copy", copy_behind_gate)
    monkeypatch.setattr(PurgeClaim, "wait", lambda claim, wait=PurgeClaim.wait: (begin(claim), wait(claim)))

    def begin(claim: PurgeClaim) -> None:
        if copying.is_set():
            assert not claim.take(), "the first purge is at it"
            other_began.set()

    await embedded_store.put([Write(stored_note("a"))])
    async with behaving(embedded.url, clock) as behaviour:
        await behaviour.add(clicks(clock, ["a"], *(f"u{n}" for n in range(20))), clock())
        first = asyncio.create_task(asyncio.to_thread(purge_store, embedded.url))
        assert await asyncio.to_thread(copying.wait, 30)
        await asyncio.gather(first, asyncio.to_thread(purge_store, embedded.url))
    assert [fields["type"] for _, fields in embedded_admin.xrange(EVENTS)] == [*["click"] * 20, "-purge"]


async def test_copy_of_the_events_ends_by_itself_where_its_purge_is_killed(
    embedded: EmbeddedRedis,
    embedded_store: RedisNoteStore,
    clock: Clock,
    embedded_admin: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Killed(BaseException):
        pass

    def copy_and_die(*arguments: Any, copy: Any = event_purge._copy) -> None:
        copy(*arguments)
        raise Killed

    await embedded_store.put([Write(stored_note("a"))])
    async with behaving(embedded.url, clock) as behaviour:
        await behaviour.add(clicks(clock, ["a"], "u1", "u2"), clock())
        with monkeypatch.context() as patch:
            patch.setattr(event_purge, "_copy", copy_and_die)
            with pytest.raises(Killed):
                purge_store(embedded.url)
        assert 0 < embedded_admin.ttl(f"{EVENTS}:new") <= event_purge.NEW_STREAM_SECONDS
        await asyncio.to_thread(purge_store, embedded.url)
    assert not embedded_admin.exists(f"{EVENTS}:new")
    assert embedded_admin.ttl(EVENTS) == -1
    assert [fields["type"] for _, fields in embedded_admin.xrange(EVENTS)] == ["click", "click", "-purge"]


@pytest.mark.parametrize("removal", ["note", "reader"])
async def test_what_is_removed_while_events_are_copied_counts_no_more_and_goes_with_the_next_purge(
    embedded: EmbeddedRedis,
    embedded_store: RedisNoteStore,
    clock: Clock,
    embedded_admin: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    removal: str,
) -> None:
    copied, removed, copy = threading.Event(), threading.Event(), event_purge._copy

    def copy_then_wait(*arguments: Any) -> None:
        copy(*arguments)
        copied.set()
        assert removed.wait(30)

    monkeypatch.setattr(event_purge, "_copy", copy_then_wait)
    await embedded_store.put([Write(stored_note(note)) for note in ("a", "b")])
    async with behaving(embedded.url, clock) as behaviour:
        await behaviour.add(clicks(clock, ["a", "b"], "u1", "u2"), clock())
        purging = asyncio.create_task(asyncio.to_thread(purge_store, embedded.url))
        assert await asyncio.to_thread(copied.wait, 30)
        if removal == "note":
            await embedded_store.delete("a")
            await embedded_store.put([Write(stored_note("a"))])
        else:
            await behaviour.forget("u1")
        removed.set()
        await purging
    async with behaving(embedded.url, clock) as restarted:
        await eventually(lambda: restarted.status().ready)
        assert restarted.status().reads == 2
    await asyncio.to_thread(purge_store, embedded.url)
    assert [fields["type"] for _, fields in embedded_admin.xrange(EVENTS)] == ["click", "click", "-purge"]


async def test_reader_who_is_forgotten_before_a_page_is_copied_stays_forgotten(
    embedded: EmbeddedRedis,
    embedded_store: RedisNoteStore,
    clock: Clock,
    embedded_admin: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, forgotten, copy = threading.Event(), threading.Event(), event_purge._copy

    def wait_then_copy(*arguments: Any) -> None:
        read.set()
        assert forgotten.wait(30)
        copy(*arguments)

    monkeypatch.setattr(event_purge, "_copy", wait_then_copy)
    await embedded_store.put([Write(stored_note("a"))])
    async with behaving(embedded.url, clock) as behaviour:
        await behaviour.add(clicks(clock, ["a"], "u1", "u2"), clock())
        purging = asyncio.create_task(asyncio.to_thread(purge_store, embedded.url))
        assert await asyncio.to_thread(read.wait, 30)
        assert await behaviour.forget("u1") == 1
        forgotten.set()
        await purging
        assert [part async for part in behaviour.read_events_of("u1")] == [[]]
        assert [len(part) async for part in behaviour.read_events_of("u2")] == [1]


async def test_follower_sees_a_purge_and_later_events_where_the_clock_was_set_back(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock, embedded_admin: redis.Redis
) -> None:
    removed = {"type": "click", "note": "gone", "reader": "r", "at": int(1000 * clock()), "more": ""}
    await embedded_store.put([Write(stored_note("a"))])
    async with behaving(embedded.url, clock) as behaviour:
        embedded_admin.xadd(EVENTS, removed, "4000000000000-7")
        await eventually(lambda: behaviour.status().position == "4000000000000-7")
        await asyncio.to_thread(purge_store, embedded.url)
        await eventually(lambda: behaviour.status().position == "4000000000000-8")
        assert await behaviour.add(clicks(clock, "a", "u1"), clock()) == ["accepted"]
        await eventually(lambda: [reads[0].note_id for reads in behaviour.all_reads()] == ["a"])
    assert [position for position, _ in embedded_admin.xrange(EVENTS)] == ["4000000000000-8", "4000000000000-9"]


async def test_a_store_that_was_emptied_is_followed_anew(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock, embedded_admin: redis.Redis
) -> None:
    await embedded_store.identity()
    async with behaving(embedded.url, clock) as behaviour:
        await embedded_store.put([Write(stored_note(note)) for note in "ab"])
        await behaviour.add(clicks(clock, "ab", "u1", "u2"), clock())
        await eventually(lambda: behaviour.status().reads == 4)
        embedded_admin.flushall()
        await embedded_store.identity()
        await embedded_store.put([Write(stored_note("a"))])
        await behaviour.add(clicks(clock, "a", "u1"), clock())
        await eventually(lambda: behaviour.status().reads == 1)


async def test_events_that_are_too_old_are_not_read_in(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "service.behaviour.follower.EXPIRE_SECONDS", 1e9
    )  # so that events expire once, before there are any
    await embedded_store.put([Write(stored_note(note)) for note in ("old", "new")])
    async with behaving(embedded.url, clock) as behaviour:
        await eventually(lambda: behaviour.status().ready)
        old = Event("e1", "click", "old", "u1", clock() - BOUNDS.seconds - 1)
        new = Event("e2", "click", "new", "u1", clock())
        shown = Event("e3", "shown", "old", "u1", clock() - BOUNDS.seconds - 1, b'{"recommendation_id": "r"}')
        assert await behaviour.add([old, shown, new], clock()) == ["accepted"] * 3
        await eventually(lambda: behaviour.status().reads > 0)
        assert [[read.note_id for read in reads] for reads in behaviour.all_reads()] == [["new"]]
        assert await behaviour.rates([], 0.0) == ([], 0)
