"""The store's contract, on the embedded server and on the distribution's Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial

import numpy as np
import pytest
import redis
import structlog

from model.generation import CategoryProbability, Hashtag
from service.errors import PreconditionFailed, StoreUnavailable
from service.interfaces import Clock
from service.records import (
    ORIGIN,
    Condition,
    Generated,
    LogBounds,
    LogEntry,
    StoredNote,
    Unreadable,
    Write,
    Written,
    position_key,
)
from service.store.embedded_redis import EmbeddedRedis
from service.store.redis_keys import LOG, NOTE, SNAPSHOTS
from service.store.redis_store import OWN_CHARACTERS, REPLICA_SECONDS, RedisNoteStore
from tests.service.conftest import GatedStore, Server, eventually, record_reads, stored_note
from tests.service.damage import DAMAGES, SECRET

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def put(store: RedisNoteStore, note: StoredNote, expected: str | None = None) -> Written:
    (written,) = await store.put([Write(note, Condition((expected,)) if expected else None)])
    assert written is not None
    return written


async def get(store: RedisNoteStore, note_id: str) -> StoredNote | None:
    (stored,) = await store.get([note_id], with_vectors=True)
    assert not isinstance(stored, Unreadable)
    return stored


async def whole_log(store: RedisNoteStore, after: str = ORIGIN, count: int = 10_000) -> list[LogEntry]:
    return (await store.read_log(after, count, 0))[0]


async def scanned(store: RedisNoteStore) -> dict[str, StoredNote]:
    notes = [note async for some in store.scan() for note in some]
    return {note.note.id: note for note in notes if isinstance(note, StoredNote)}


FULL = stored_note(
    "full:1.~-",
    "Three days",
    content="line\nline",
    hashtags=("Kyoto", "night bus"),
    category="Travel",
    author="tom",
    created_at=1_750_000_000.123456,
    expires_at=4_000_000_000.5,
    attributes={"text": "x", "int": 2**53, "float": 0.1, "true": True, "false": False},
    generated=Generated((Hashtag("bus", 1 / 3), Hashtag("夜", 0.1)), CategoryProbability("Food", 2 / 3)),
)
NOTES = {
    "every field": FULL,
    "nothing but a title": stored_note("bare"),
    "generated, but none found": stored_note("none", generated=Generated(())),
    "Chinese": stored_note("zh", "京都三日游", content="早上八点前去寺庙", hashtags=("京都",), author="小明"),
    "emoji": stored_note("emoji", "👩‍👩‍👧‍👦 🏳️‍🌈", content="\U0001f9d1\u200d\U0001f4bb"),
    "control characters": stored_note("control", "a\x00b\x1f\x7f", content="\r\n\u2028\u2029\ufeff\ufffe"),
}


@pytest.mark.parametrize("note", NOTES.values(), ids=NOTES.keys())
async def test_a_note_comes_back_as_it_was_put(store: RedisNoteStore, note: StoredNote) -> None:
    written = await put(store, note)
    found = await get(store, note.note.id)
    assert found is not None
    assert found.note == note.note
    assert found.generated == note.generated
    assert (found.space, found.revision, found.position) == (note.space, written.revision, written.position)


async def test_a_vector_comes_back_bit_for_bit(store: RedisNoteStore) -> None:
    vector = np.array([-0.0, 0.0, 1e-45, -3.4e38, np.inf, 1 / 3, 1, -1], np.float32)
    await put(store, stored_note(space="of eight", vector=vector))
    found = await get(store, "a")
    assert found is not None
    assert found.vector is not None
    assert found.vector.dtype == np.float32
    assert found.vector.tobytes() == vector.tobytes()


async def test_a_vector_comes_only_when_asked_for(store: RedisNoteStore) -> None:
    await put(store, stored_note())
    (found,) = await store.get(["a"])
    assert found is not None
    assert found.vector is None


async def test_a_note_without_a_vector_is_refused(store: RedisNoteStore) -> None:
    with pytest.raises(ValueError, match="no vector"):
        await store.put([Write(StoredNote(FULL.note, "space"))])
    assert await whole_log(store) == []


async def test_notes_come_in_the_order_asked_for(store: RedisNoteStore) -> None:
    await store.put([Write(stored_note(note_id)) for note_id in "abc"])
    notes = await store.get(["c", "unknown", "a", "c"])
    assert [note and note.note.id for note in notes] == ["c", None, "a", "c"]
    assert await store.get([]) == []


@pytest.mark.parametrize(("max_bytes", "count"), [(0, 1), (1500, 1), (2500, 3), (100_000, 5)])
async def test_reading_ends_where_the_bytes_do(store: RedisNoteStore, max_bytes: int, count: int) -> None:
    await store.put([Write(stored_note(note_id, content="x" * 700)) for note_id in ("a", "b", "c")])
    ids = ["a", "b", "unknown", "c", "a"]
    for with_vectors in (False, True):
        notes = await store.get(ids, with_vectors=with_vectors, max_bytes=max_bytes)
        assert [note and note.note.id for note in notes] == ["a", "b", None, "c", "a"][:count]


async def test_revisions_count_from_one(store: RedisNoteStore) -> None:
    assert [(await put(store, stored_note(title=t))).revision for t in ("x", "y", "y")] == [1, 2, 3]


async def test_every_write_has_its_log_entry_in_order(store: RedisNoteStore) -> None:
    written = await store.put([Write(stored_note(i)) for i in ("a", "b", "a")])
    removed = await store.delete("b")
    log = await whole_log(store)
    assert [(e.id, e.removed) for e in log] == [("a", False), ("b", False), ("a", False), ("b", True)]
    assert [e.position for e in log] == [*(w.position for w in written if w), removed]
    keys = [position_key(e.position) for e in log]
    assert keys == sorted(set(keys))


async def test_a_write_at_the_expected_position_is_made(store: RedisNoteStore) -> None:
    first = await put(store, stored_note())
    assert (await put(store, stored_note(title="new"), expected=first.position)).revision == 2


@pytest.mark.parametrize("note_id", ["a", "unknown"])
async def test_a_write_at_another_position_writes_nothing(store: RedisNoteStore, note_id: str) -> None:
    first = await put(store, stored_note("a", "old"))
    second = await put(store, stored_note("a", "new"))
    assert await store.put([Write(stored_note(note_id, "stale"), Condition((first.position,)))]) == [None]
    notes = await scanned(store)
    assert {i: n.note.title for i, n in notes.items()} == {"a": "new"}
    assert (await whole_log(store))[-1].position == second.position


async def test_concurrent_writes_at_one_position_make_exactly_one(store: RedisNoteStore) -> None:
    at = (await put(store, stored_note())).position
    answers = await asyncio.gather(
        *(store.put([Write(stored_note(title=f"t{n}"), Condition((at,)))]) for n in range(20))
    )
    winners = [n for n, (written,) in enumerate(answers) if written]
    assert len(winners) == 1
    found = await get(store, "a")
    assert found is not None
    assert (found.note.title, found.revision) == (f"t{winners[0]}", 2)
    assert len(await whole_log(store)) == 2


async def test_a_deleted_note_is_gone(store: RedisNoteStore) -> None:
    at = (await put(store, stored_note())).position
    removed = await store.delete("a", Condition((at,)))
    assert removed is not None
    assert position_key(removed) > position_key(at)
    assert await get(store, "a") is None
    assert (await whole_log(store))[-1] == LogEntry(removed, "a", True)


async def test_deleting_an_unknown_note_changes_nothing(store: RedisNoteStore) -> None:
    assert await store.delete("unknown") is None
    assert await store.delete("unknown", Condition(("1-0",))) is None
    assert await whole_log(store) == []


async def test_a_delete_at_another_position_is_refused(store: RedisNoteStore) -> None:
    first = await put(store, stored_note())
    await put(store, stored_note(title="new"))
    with pytest.raises(PreconditionFailed):
        await store.delete("a", Condition((first.position,)))
    assert await get(store, "a") is not None
    assert len(await whole_log(store)) == 2


async def test_a_note_made_again_after_its_delete_is_new(store: RedisNoteStore) -> None:
    await put(store, stored_note())
    await store.delete("a")
    assert (await put(store, stored_note())).revision == 1


async def test_an_expired_note_is_not_returned(store: RedisNoteStore, clock: Clock) -> None:
    await store.put([Write(stored_note("short", expires_at=clock() + 1000)), Write(stored_note("long"))])
    assert (await scanned(store)).keys() == {"short", "long"}
    clock.offset = 1001
    assert await get(store, "short") is None
    assert (await scanned(store)).keys() == {"long"}


async def test_redis_itself_forgets_a_note_that_expires(store: RedisNoteStore, admin: redis.Redis) -> None:
    expires_at = time.time() + 1000
    await put(store, stored_note(expires_at=expires_at))
    assert admin.pexpiretime(f"{NOTE}a") == int(expires_at * 1000)


async def test_a_note_put_again_without_expiry_stays(store: RedisNoteStore, admin: redis.Redis) -> None:
    await put(store, stored_note(expires_at=time.time() + 1000))
    await put(store, stored_note())
    assert admin.pttl(f"{NOTE}a") == -1


async def test_a_note_made_again_after_its_expiry_is_new(store: RedisNoteStore) -> None:
    await put(store, stored_note(expires_at=time.time() - 1))
    assert await get(store, "a") is None
    assert (await put(store, stored_note())).revision == 1


async def test_a_scan_gives_every_note_with_its_vector(store: RedisNoteStore) -> None:
    notes = {f"n{n}": stored_note(f"n{n}") for n in range(1500)}
    await store.put([Write(note) for note in notes.values()])
    await store.mark_samples_loaded()
    found = await scanned(store)
    assert found.keys() == notes.keys()
    np.testing.assert_array_equal([found[i].vector for i in notes], [notes[i].vector for i in notes])


async def test_long_notes_are_scanned_and_read_in_parts_of_bounded_size(
    store: RedisNoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.redis_store.MAX_READ_BYTES", 20_000)
    ids = [f"n{n}" for n in range(12)]
    notes = [stored_note(note_id, content="x" * (4000 if note_id != "n5" else 40_000)) for note_id in ids]
    await store.put([Write(note) for note in notes])
    scanned_parts = [part async for part in store.scan()]
    assert sorted(note.note.id for part in scanned_parts for note in part if isinstance(note, StoredNote)) == sorted(
        ids
    )
    wanted = ["nobody", *ids]
    read_parts = [part async for part in store.get_in_parts(wanted, with_vectors=True)]
    read = [note for part in read_parts for note in part]
    assert read[0] is None
    assert [note.note.id for note in read[1:] if isinstance(note, StoredNote)] == ids
    assert all(isinstance(note, StoredNote) and note.vector is not None for note in read[1:])
    for parts in (scanned_parts, read_parts):
        long = [sum(len(note.note.content) for note in part if isinstance(note, StoredNote)) for part in parts]
        assert all(size <= 20_000 or len(part) == 1 for size, part in zip(long, parts, strict=True))
        assert len(parts) > 3


async def test_long_notes_of_the_log_are_read_in_parts_of_bounded_size(
    store: RedisNoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.redis_store.MAX_READ_BYTES", 20_000)
    ids = [f"n{n}" for n in range(12)]
    await store.put([Write(stored_note(note_id, content="x" * 4000)) for note_id in ids])
    store.drop_own_writes()
    reads = record_reads(store, monkeypatch)
    logged = await store.get_logged(await whole_log(store))
    assert [note.note.id for note in logged.values() if isinstance(note, StoredNote)] == ids
    assert len(reads) == 3
    assert max(map(len, reads)) == 4


async def test_a_scan_of_nothing_gives_nothing(store: RedisNoteStore) -> None:
    assert await scanned(store) == {}


async def test_the_log_is_read_behind_a_position_and_up_to_a_count(store: RedisNoteStore) -> None:
    written = [(await put(store, stored_note(f"n{n}"))).position for n in range(10)]
    assert [e.position for e in await whole_log(store, written[3], 4)] == written[4:8]
    assert await whole_log(store, written[-1]) == []


async def test_a_reader_of_the_log_waits_for_the_next_write(store: RedisNoteStore, admin: redis.Redis) -> None:
    at = (await put(store, stored_note("before"))).position
    reading = asyncio.create_task(store.read_log(at, 10, 60))
    await eventually(lambda: admin.info("clients")["blocked_clients"] == 1)
    await put(store, stored_note("after"))
    entries, bounds = await reading
    assert [entry.id for entry in entries] == ["after"]
    assert (bounds.entry, bounds.last) == (at, entries[-1].position), "bounds are read after the entries"


async def test_logged_notes_are_as_written_or_as_they_are_now(
    store: RedisNoteStore, redis_url: str, clock: Clock
) -> None:
    other = RedisNoteStore(redis_url, clock=clock)
    own, again, gone, theirs = (stored_note(note_id, title="first") for note_id in ("own", "again", "gone", "theirs"))
    for note in (own, again, gone):
        await put(store, note)
    await put(store, again := stored_note("again", title="second"))
    await put(other, theirs)
    await store.delete("gone")
    entries = await whole_log(store)
    for reader in (store, other, store):
        found = await reader.get_logged(entries)
        titles = {note_id: note and note.note.title for note_id, note in found.items()}
        assert titles == {"own": "first", "again": "second", "gone": None, "theirs": "first"}
        np.testing.assert_array_equal([n.vector for n in found.values() if n], [n.vector for n in (own, again, theirs)])
    await put(other, stored_note("theirs", title="newer"))
    newer = (await store.get_logged(entries))["theirs"]
    assert newer is not None
    assert newer.note.title == "newer"
    await other.close()


async def test_own_writes_are_kept_until_read_from_the_log(store: RedisNoteStore) -> None:
    for n in range(3):
        await put(store, stored_note("a", title=f"{n}"))
    assert await store.put([Write(stored_note("a", title="late"), Condition(("1-0",)))]) == [None]
    await put(store, stored_note("long", content="long " * OWN_CHARACTERS))
    assert len(store._own_writes) == 3
    await store.get_logged(await whole_log(store))
    assert not store._own_writes


async def test_drop_own_writes_forgets_earlier_ones(store: RedisNoteStore, redis_url: str, clock: Clock) -> None:
    other = RedisNoteStore(redis_url, clock=clock)
    await put(store, stored_note("a", title="ours"))
    entries = await whole_log(store)
    await put(other, stored_note("a", title="theirs"))
    store.drop_own_writes()
    found = (await store.get_logged(entries))["a"]
    assert found is not None
    assert found.note.title == "theirs"
    await other.close()


async def test_an_own_write_that_expired_since_is_not_there(store: RedisNoteStore, clock: Clock) -> None:
    await put(store, stored_note("a", expires_at=clock() + 60))
    entries = await whole_log(store)
    clock.offset += 61
    assert await store.get_logged(entries) == {"a": None}


async def test_an_empty_log_has_no_bounds(store: RedisNoteStore) -> None:
    assert await store.log_bounds() == LogBounds(None, ORIGIN, cut=False)


async def test_log_bounds_are_the_first_kept_and_last_written_entry(store: RedisNoteStore, admin: redis.Redis) -> None:
    written = [(await put(store, stored_note(f"n{n}"))).position for n in range(5)]
    assert await store.log_bounds() == LogBounds(written[0], written[4], cut=False)
    admin.xtrim(LOG, maxlen=2, approximate=False)
    assert await store.log_bounds() == LogBounds(written[3], written[4], cut=True)
    admin.xtrim(LOG, maxlen=0, approximate=False)
    assert await store.log_bounds() == LogBounds(None, written[4], cut=True)


@pytest.mark.parametrize(
    ("bounds", "reached", "lost"),
    [
        (LogBounds(None, ORIGIN, cut=False), [ORIGIN], ["5-0"]),
        (LogBounds("3-0", "9-0", cut=False, entry="3-0"), [ORIGIN, "3-0", "9-0"], ["2-9", "9-1", "10-0"]),
        (LogBounds("3-0", "9-0", cut=True, entry="3-0"), ["3-0", "9-0"], [ORIGIN, "2-9", "10-0"]),
        (LogBounds("3-0", "9-0", cut=True), ["9-0"], ["5-0"]),
        (LogBounds(None, "9-0", cut=True), ["9-0"], [ORIGIN, "8-9", "10-0"]),
    ],
)
def test_log_reaches_a_position_if_nothing_behind_it_is_lost(
    bounds: LogBounds, reached: list[str], lost: list[str]
) -> None:
    assert [position for position in reached + lost if bounds.reach(position)] == reached


@pytest.mark.parametrize(
    ("bounds", "lost", "kept"),
    [
        (LogBounds(None, ORIGIN, cut=False), ["5-0"], [ORIGIN]),
        (LogBounds("3-0", "9-0", cut=True), ["3-0", "5-0", "9-1"], [ORIGIN, "2-9", "9-0"]),
        (LogBounds("3-0", "9-0", cut=True, entry="5-0"), ["4-0"], ["5-0"]),
        (LogBounds(None, "9-0", cut=True), ["10-0"], ["5-0", "9-0"]),
    ],
)
def test_log_has_lost_what_no_cut_explains(bounds: LogBounds, lost: list[str], kept: list[str]) -> None:
    assert [position for position in lost + kept if bounds.lost(position)] == lost


async def test_samples_begin_in_a_store_that_never_held_a_note(store: RedisNoteStore) -> None:
    assert await store.begin_samples(["a"])
    await put(store, stored_note())
    assert await store.begin_samples(["a"]), "a first loading that was cut off goes on"
    await store.mark_samples_loaded()
    assert not await store.begin_samples(["a"])


async def test_samples_do_not_go_on_in_a_store_whose_log_was_trimmed(store: RedisNoteStore, admin: redis.Redis) -> None:
    assert await store.begin_samples(["a"])
    await put(store, stored_note())
    admin.xtrim(LOG, maxlen=0, approximate=False)
    assert not await store.begin_samples(["a"])


async def test_samples_do_not_begin_in_a_store_that_was_used(store: RedisNoteStore, admin: redis.Redis) -> None:
    await put(store, stored_note())
    assert not await store.begin_samples(["a"])
    await store.delete("a")
    admin.xtrim(LOG, maxlen=0, approximate=False)
    assert not await store.begin_samples(["a"])


async def test_damaged_notes_are_unreadable_however_they_are_read(store: RedisNoteStore, admin: redis.Redis) -> None:
    types: dict[str, type] = dict.fromkeys(DAMAGES, Unreadable) | {"good": StoredNote}
    await store.put([Write(stored_note(note_id, content=SECRET)) for note_id in types])
    store.drop_own_writes()
    for note_id, damage in DAMAGES.items():
        damage(admin, note_id)
    entries = await whole_log(store)
    with structlog.testing.capture_logs() as lines:
        for reading in (await store.get(list(types)), await store.get(list(types), with_vectors=True)):
            assert dict(zip(types, map(type, reading), strict=True)) == types
        assert {note_id: type(note) for note_id, note in (await store.get_logged(entries)).items()} == types
        met = [note async for notes in store.scan() for note in notes]
        assert sorted(type(note).__name__ for note in met) == sorted(kind.__name__ for kind in types.values())
    assert sorted(store.unreadable) == sorted(DAMAGES)
    assert sorted((line["event"], line["id"]) for line in lines) == [("note_unreadable", i) for i in sorted(DAMAGES)]
    assert SECRET not in str(lines)


async def test_damaged_notes_are_healed_by_a_write_or_a_delete(store: RedisNoteStore, admin: redis.Redis) -> None:
    for note_id, damage in DAMAGES.items():
        for heal in (partial(put, store, stored_note(note_id)), partial(store.delete, note_id)):
            await put(store, stored_note(note_id))
            damage(admin, note_id)
            assert isinstance((await store.get([note_id]))[0], Unreadable), note_id
            assert await heal()
            assert not store.unreadable
            assert not isinstance((await store.get([note_id]))[0], Unreadable), note_id


async def test_an_unreadable_note_that_vanished_is_not_counted(store: RedisNoteStore, admin: redis.Redis) -> None:
    await put(store, stored_note("bad"))
    admin.hset(f"{NOTE}bad", "document", "{")
    await scanned(store)
    assert list(store.unreadable) == ["bad"]
    admin.delete(f"{NOTE}bad")
    await scanned(store)
    assert not store.unreadable


async def test_key_that_is_not_utf8_is_not_a_note(store: RedisNoteStore, redis_url: str) -> None:
    await put(store, stored_note("good"))
    with redis.Redis.from_url(redis_url) as plain:
        plain.hset(NOTE.encode() + b"\xff", "document", "{}")
    assert (await scanned(store)).keys() == {"good"}


@pytest.mark.parametrize("fields", [{"op": "put"}, {"id": "a"}, {"id": b"\xff", "op": "x"}], ids=str)
async def test_malformed_log_entry_is_logged_and_skipped(
    store: RedisNoteStore, admin: redis.Redis, fields: dict[str, str]
) -> None:
    await put(store, stored_note("a"))
    store.drop_own_writes()
    at = admin.xadd(LOG, fields)
    with structlog.testing.capture_logs() as lines:
        entries = await whole_log(store)
    assert [line["event"] for line in lines] == ["log_entry_malformed"]
    assert entries[-1].position == at
    notes = await store.get_logged(entries)
    assert isinstance(notes["a"], StoredNote)


async def drain(store: RedisNoteStore) -> None:
    async for _ in store.scan():
        pass


CALLS: dict[str, Callable[[RedisNoteStore], Awaitable[object]]] = {
    "get": lambda store: store.get(["a"]),
    "put": lambda store: store.put([Write(stored_note())]),
    "delete": lambda store: store.delete("a"),
    "read_log": lambda store: store.read_log(ORIGIN, 1, 0),
    "log_bounds": lambda store: store.log_bounds(),
    "scan": drain,
    "durability": lambda store: store.durability(),
    "begin_samples": lambda store: store.begin_samples(["a"]),
    "mark_samples_loaded": lambda store: store.mark_samples_loaded(),
}


async def test_call_without_a_server_fails_and_works_once_it_is_back(store: RedisNoteStore, server: Server) -> None:
    await put(store, stored_note("kept"))
    server.stop()
    for call in CALLS.values():
        with pytest.raises(StoreUnavailable):
            await call(store)
    server.start()
    assert await get(store, "kept") is not None
    for call in CALLS.values():
        await call(store)


async def test_a_reader_that_waits_when_the_server_goes_is_told(
    store: RedisNoteStore, server: Server, admin: redis.Redis
) -> None:
    reading = asyncio.create_task(store.read_log(ORIGIN, 1, 60))
    await eventually(lambda: admin.info("clients")["blocked_clients"] == 1)
    server.stop()
    with pytest.raises(StoreUnavailable):
        await reading


async def test_a_server_that_answers_too_late_is_a_store_that_is_unavailable(
    server: Server, admin: redis.Redis, clock: Clock
) -> None:
    """A write that was sent and not answered may still take place, and does so later."""
    store = RedisNoteStore(server.url, clock=clock, timeout_seconds=1.0)
    await put(store, stored_note("a", "old"))
    pid = admin.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        for call in (put(store, stored_note("a", "sent")), get(store, "a")):
            with pytest.raises(StoreUnavailable):
                await call
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (await put(store, stored_note("a", "new"))).revision == 3
    await store.close()


async def test_a_server_out_of_memory_refuses_writes_and_reads_on(store: RedisNoteStore, admin: redis.Redis) -> None:
    at = (await put(store, stored_note("a", "old"))).position
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailable, match="memory"):
        await store.put([Write(stored_note("a", "new")), Write(stored_note("b"))])
    assert [n.note.title for n in (await scanned(store)).values()] == ["old"]
    assert [e.position for e in await whole_log(store)] == [at]
    admin.config_set("maxmemory", 0)
    assert (await put(store, stored_note("a", "new"))).revision == 2


TEXT = "京都 " * 50


async def test_an_acknowledged_note_survives_sigkill_of_the_server(
    embedded: EmbeddedRedis, embedded_store: GatedStore
) -> None:
    acknowledged: dict[str, Written] = {}

    async def write(writer: int) -> None:
        for n in range(100_000):
            note_id = f"{writer}-{n}"
            acknowledged[note_id] = await put(embedded_store, stored_note(note_id, TEXT))

    writers = [asyncio.create_task(write(writer)) for writer in range(8)]
    await eventually(lambda: len(acknowledged) >= 200)
    assert embedded.pid is not None
    os.kill(embedded.pid, signal.SIGKILL)
    ends = await asyncio.gather(*writers, return_exceptions=True)
    assert {type(end) for end in ends} == {StoreUnavailable}

    embedded.start()
    found = await scanned(embedded_store)
    assert acknowledged.keys() <= found.keys()
    assert all(found[i].position == written.position for i, written in acknowledged.items())
    assert all(found[i].note == stored_note(i, TEXT).note for i in acknowledged)
    logged = {e.position: e.id for e in await whole_log(embedded_store)}
    assert logged.items() >= {written.position: i for i, written in acknowledged.items()}.items()


async def test_a_store_is_the_same_until_it_is_thrown_away(
    store: RedisNoteStore, redis_url: str, clock: Clock, admin: redis.Redis
) -> None:
    identity = await store.identity()
    other = RedisNoteStore(redis_url, clock=clock)
    assert await other.identity() == identity
    await other.close()
    admin.flushall()
    assert await store.identity() != identity


async def test_log_of_a_full_store_is_trimmed(store: RedisNoteStore, admin: redis.Redis) -> None:
    written = [await store.put([Write(stored_note(f"n{n}"))]) for n in range(500)]
    position = [one.position for (one,) in written if one][-1]
    assert admin.xlen(LOG) == 500
    admin.config_set("maxmemory", 1)
    try:
        await store.keep_log("a", position)
    finally:
        admin.config_set("maxmemory", 0)
    assert admin.xlen(LOG) < 200


async def test_log_is_trimmed_only_behind_the_oldest_snapshot(store: RedisNoteStore, admin: redis.Redis) -> None:
    written = [await store.put([Write(stored_note(f"n{n}"))]) for n in range(500)]
    positions = [one.position for (one,) in written if one]
    await store.keep_log("a", positions[100])
    await store.keep_log("b", positions[250])
    assert await reaches(store, positions[100])
    await store.keep_log("a", positions[499])
    assert await reaches(store, positions[250])
    assert admin.xlen(LOG) < 400
    admin.hset(SNAPSHOTS, "b", f"{positions[250]} {time.time() - REPLICA_SECONDS - 1}")
    await store.keep_log("a", positions[499])
    assert admin.xlen(LOG) <= 100
    assert await reaches(store, positions[499])


async def test_replica_whose_clock_is_ahead_does_not_cut_the_log_of_the_others(
    store: RedisNoteStore, admin: redis.Redis, clock: Clock
) -> None:
    written = [await store.put([Write(stored_note(f"n{n}"))]) for n in range(500)]
    positions = [one.position for (one,) in written if one]
    await store.keep_log("a", positions[100])
    clock.offset += 2 * REPLICA_SECONDS
    await store.keep_log("b", positions[499])
    assert await reaches(store, positions[100])
    assert admin.hlen(SNAPSHOTS) == 2


@pytest.mark.parametrize(
    "entry", [b"garbage", b"1-0", b"x 1.0", b"+1-0 1.0", b"1-0 yesterday", b"1-0 nan", b"\xff 1.0", b""]
)
async def test_malformed_entry_of_a_snapshot_is_logged_and_holds_nothing_up(
    store: RedisNoteStore, admin: redis.Redis, entry: bytes
) -> None:
    written = [await put(store, stored_note(f"n{n}")) for n in range(300)]
    admin.hset(SNAPSHOTS, "other", entry)
    with structlog.testing.capture_logs() as lines:
        await store.keep_log("a", written[-1].position)
    assert [(line["event"], line["replica"]) for line in lines] == [("snapshot_entry_malformed", "b'other'")]
    assert admin.xlen(LOG) < 200


async def reaches(store: RedisNoteStore, position: str) -> bool:
    return (await store.log_bounds(position)).reach(position)


async def test_log_that_lost_its_tail_does_not_reach_a_lost_position(store: RedisNoteStore, admin: redis.Redis) -> None:
    (kept,), (lost,) = [await store.put([Write(stored_note(name))]) for name in ("kept", "lost")]
    assert kept is not None
    assert lost is not None
    admin.xdel(LOG, lost.position)  # as after a failover to a server that never had the entry
    await store.put([Write(stored_note("newer"))])
    assert await reaches(store, kept.position)
    assert not await reaches(store, lost.position)
