"""Durability of acknowledged writes, on each Redis that the store works on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from model.note import Note
from service.adding import GENERATE_NOTHING
from service.admission import PATIENT
from service.batcher import Batcher
from service.claims import Claims
from service.collection.importing import NEW, Importer, NoteToImport
from service.collection.removal import Remover
from service.errors import StoreUnavailable
from service.events import Event, EventBounds
from service.filters import Filter
from service.interfaces import Clock
from service.records import Attempt, Durability, Generated, Write
from service.store.connection import Connection, ServerState
from service.store.durability import WritePolicy, _persistence, probe_write_policy
from service.store.events import RedisEventStore
from service.store.redis_store import RedisNoteStore
from tests.service.conftest import (
    DIMENSION,
    SPACE,
    DebianRedis,
    WordEngine,
    eventually,
    following,
    make_recommender,
    stored_note,
)

COMMANDS = 5000
"""Commands in the file of a server that loads slowly; while loading, it answers clients after each 1024 of them."""
SLOW_LOAD = ("--appendfsync", "everysec", "--key-load-delay", "200")
"""Options of a server that waits 200 microseconds after each command that it loads."""
LATE = pytest.mark.parametrize("server", ["redis-server"], indirect=True)
"""Runs a test on a server whose WAITAOF answers after the fsync: writes then wait under appendfsync everysec."""
pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.mark.parametrize(
    ("settings", "durable", "detail"),
    [
        ({"appendfsync": "always"}, True, "always"),
        ({"appendfsync": "no"}, False, "appendfsync no"),
        ({"no-appendfsync-on-rewrite": "yes"}, False, "no-appendfsync-on-rewrite"),
        ({"appendonly": "no"}, False, "appendonly is off"),
        ({"maxmemory": "1gb", "maxmemory-policy": "noeviction"}, True, "always"),
        ({"maxmemory": "1gb", "maxmemory-policy": "volatile-ttl"}, False, "set it to noeviction"),
        ({"maxmemory": "0", "maxmemory-policy": "allkeys-lru"}, True, "always"),
    ],
)
async def test_durability_follows_the_settings_of_the_server(
    store: RedisNoteStore, admin: redis.Redis, settings: dict[str, str], durable: bool, detail: str
) -> None:
    for name, value in settings.items():
        admin.config_set(name, value)
    durability = await store.durability()
    assert durability.durable is durable
    assert detail in durability.detail
    (written,) = await store.put([Write(stored_note())])
    assert written is not None
    assert written.revision == 1
    assert await store.get(["a"]) != [None]


async def test_filled_memory_is_a_share_of_maxmemory_and_none_without_one(
    store: RedisNoteStore, admin: redis.Redis
) -> None:
    admin.config_set("maxmemory", "0")
    assert (await store.durability()).memory_filled is None
    admin.config_set("maxmemory", "1gb")
    used = admin.info("memory")["used_memory"]
    assert (await store.durability()).memory_filled == pytest.approx(used / 2**30, abs=0.01)
    admin.config_set("maxmemory", "1")
    assert (await store.durability()).memory_filled == 1.0


@LATE
async def test_write_to_a_server_that_fsyncs_late_waits_for_its_disk(store: RedisNoteStore, admin: redis.Redis) -> None:
    admin.config_set("appendfsync", "everysec")
    assert await store.durability() == Durability(
        True, "appendonly with appendfsync everysec, each write waits with WAITAOF"
    )
    await store.put([Write(stored_note())])
    assert admin.info("commandstats")["cmdstat_waitaof"]["calls"] == 1


@pytest.mark.parametrize("server", ["embedded"], indirect=True)
async def test_server_whose_waitaof_answers_before_the_fsync_is_not_durable(
    store: RedisNoteStore, admin: redis.Redis
) -> None:
    admin.config_set("appendfsync", "everysec")
    durability = await store.durability()
    assert not durability.durable
    assert "use appendfsync always" in durability.detail
    (written,) = await store.put([Write(stored_note())])
    assert written is not None


@pytest.mark.parametrize(
    ("version", "durable"),
    [
        ({"redis_version": "7.0.15"}, False),
        ({"redis_version": "7.2.4"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.0"}, False),
        ({"redis_version": "7.4.1"}, False),
        ({"redis_version": "8.0.2"}, True),
    ],
)
def test_late_fsync_is_durable_where_waitaof_is_right(version: dict[str, str], durable: bool) -> None:
    for appendfsync in ("everysec", "always"):
        policy = _persistence({"aof_enabled": 1, **version}, {"appendfsync": appendfsync})
        assert policy.durability.durable is (durable or appendfsync == "always")
        assert policy.waits is (durable and appendfsync == "everysec")


@LATE
async def test_write_that_another_one_brought_about_is_not_acknowledged_before_that_is_on_disk(
    redis_url: str, admin: redis.Redis, clock: Clock, engine: WordEngine, batcher: Batcher
) -> None:
    admin.config_set("appendfsync", "everysec")
    store = RedisNoteStore(redis_url, clock=clock, dimensions={SPACE: DIMENSION}, timeout_seconds=3.0)
    events = RedisEventStore(store.connection, EventBounds(86_400.0, 2**24, 3600.0, 1000))
    note = Note(id="a", title="lemon")
    async with following(store, clock) as index:
        recommender = make_recommender(engine, batcher, store, index, clock)
        importer = Importer(recommender, store, clock)
        remover = Remover(store, index, Claims(store, 3600))
        await recommender.put(note, GENERATE_NOTHING)
        attempt, click = Attempt("key", "fingerprint"), Event("e1", "click", "a", "u1", clock())
        await recommender.put(Note(id="b", title="tart"), GENERATE_NOTHING, attempts=[attempt])
        await events.add([click])

        async def repeat_all() -> list[object]:
            """Repeat earlier writes, which change nothing now."""
            return await asyncio.gather(
                recommender.put(note, GENERATE_NOTHING),
                recommender.put(note, GENERATE_NOTHING, attempts=[attempt]),
                recommender.put_each([(note, GENERATE_NOTHING)], NEW, PATIENT),
                importer.add([NoteToImport(note, Generated(), SPACE, None)], False, PATIENT),
                remover.remove(Filter(author="nobody"), PATIENT),
                events.add([click]),
                return_exceptions=True,
            )

        assert not any(isinstance(answer, Exception) for answer in await repeat_all())
        admin.config_set("appendfsync", "no")  # from now on nothing is written to the disk
        assert [type(answer) for answer in await repeat_all()] == [StoreUnavailable] * 6

        other = Attempt("other", "fingerprint")
        with pytest.raises(StoreUnavailable):
            await store.claim([attempt, other], "first", 60.0, 60.0)
        assert [claim.earlier for claim in await store.claim([other], "second", 60.0, 60.0)] == [None]
    await store.close()


@pytest.fixture
def loading(tmp_path: Path) -> Iterator[DebianRedis]:
    """A server that loads its file for about a second."""
    server = DebianRedis(tmp_path)
    server.start()
    with redis.Redis.from_url(server.url) as client:
        pipeline = client.pipeline(transaction=False)
        for number in range(COMMANDS):
            pipeline.set("key", number)
        pipeline.execute()
    server.stop()
    server.launch(*SLOW_LOAD)
    yield server
    server.stop()


async def test_server_that_loads_its_file_is_not_taken_for_one_without_a_file(loading: DebianRedis) -> None:
    connection = Connection(loading.url)
    answers: set[Durability | str] = set()

    async def durable() -> bool:
        try:
            durability = await connection.durability()
        except StoreUnavailable as error:
            answers.add(str(error))
            return False
        answers.add(durability)
        return durability.durable

    await eventually(durable)
    assert any("loading" in str(answer) for answer in answers)
    assert not any(isinstance(answer, Durability) and not answer.durable for answer in answers)
    await connection.close()


@LATE
async def test_write_under_way_is_answered_where_the_server_turns_out_to_fsync_late(
    store: RedisNoteStore, admin: redis.Redis
) -> None:
    await store.durability()
    admin.client_pause(60_000, all=False)
    removing = asyncio.create_task(store.delete("b"))
    await asyncio.sleep(0)  # lets the removal begin and wait for the server
    admin.config_set("appendfsync", "everysec")
    assert "WAITAOF" in (await store.durability()).detail
    admin.client_unpause()
    assert await removing is None


def waits_for_disk(admin: redis.Redis) -> int:
    """Return how often clients of the server have waited for its disk."""
    return int(admin.info("commandstats").get("cmdstat_waitaof", {"calls": 0})["calls"])


@LATE
async def test_writes_of_all_pools_wait_once_one_of_them_has_seen_that_the_server_fsyncs_late(
    redis_url: str, admin: redis.Redis, clock: Clock
) -> None:
    server = ServerState()
    first, second = (RedisNoteStore(redis_url, clock=clock, server=server) for _ in range(2))
    for store in (first, second):
        await store.put([Write(stored_note())])
    admin.config_set("appendfsync", "everysec")
    await first.durability()
    await second.put([Write(stored_note("b"))])
    assert waits_for_disk(admin) == 1
    for store in (first, second):
        await store.close()


@LATE
async def test_write_after_a_lost_connection_waits_where_the_server_fsyncs_late_by_then(
    redis_url: str, admin: redis.Redis, clock: Clock
) -> None:
    server = ServerState()
    reader, writer = (RedisNoteStore(redis_url, clock=clock, server=server) for _ in range(2))
    await writer.put([Write(stored_note())])
    end = (await reader.log_bounds()).last
    reading = asyncio.create_task(reader.read_log(end, 1, 60.0))
    await eventually(lambda: admin.info("clients")["blocked_clients"] == 1)
    admin.config_set("appendfsync", "everysec")
    admin.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(StoreUnavailable):
        await reading
    await writer.put([Write(stored_note("b"))])
    assert waits_for_disk(admin) == 1
    for store in (reader, writer):
        await store.close()


@LATE
async def test_write_that_was_under_way_when_the_server_was_lost_waits_where_it_fsyncs_late_by_then(
    redis_url: str, admin: redis.Redis, clock: Clock
) -> None:
    server = ServerState()
    store = RedisNoteStore(redis_url, clock=clock, server=server, max_connections=1)
    await store.put([Write(stored_note())])
    pool = store.connection.redis.connection_pool
    connection = await pool.get_connection()
    writing = asyncio.create_task(store.put([Write(stored_note("b"))]))
    await asyncio.sleep(0)  # lets the write decide not to wait for the disk, and wait for the connection
    admin.config_set("appendfsync", "everysec")
    server.forget_policy()  # as if another pool had lost its connections
    await pool.release(connection)
    await writing
    assert waits_for_disk(admin) == 1
    await store.close()


def times_asked(admin: redis.Redis) -> int:
    """Return how often clients of the server have read its settings."""
    return int(admin.info("commandstats").get("cmdstat_config|get", {"calls": 0})["calls"])


async def test_server_that_refuses_a_write_is_not_asked_again_how_it_writes(
    store: RedisNoteStore, admin: redis.Redis
) -> None:
    await store.put([Write(stored_note())])
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", 1)
    asked = times_asked(admin)
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="its memory is full"):
            await store.put([Write(stored_note("b"))])
    admin.config_set("maxmemory", 0)
    await store.put([Write(stored_note("b"))])
    assert times_asked(admin) == asked


async def test_writes_that_begin_together_ask_once_how_the_server_writes(
    redis_url: str, admin: redis.Redis, clock: Clock
) -> None:
    store = RedisNoteStore(redis_url, clock=clock)
    asked = times_asked(admin)
    await asyncio.gather(*(store.put([Write(stored_note(f"n{number}"))]) for number in range(20)))
    assert times_asked(admin) == asked + 1
    await store.close()


@LATE
async def test_answer_of_a_server_that_was_lost_meanwhile_is_not_kept(
    redis_url: str, admin: redis.Redis, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServerState()
    store = RedisNoteStore(redis_url, clock=clock, server=server)

    async def probe_before_another_server(client: Any) -> WritePolicy:
        monkeypatch.undo()
        policy = await probe_write_policy(client)
        admin.config_set("appendfsync", "everysec")
        server.forget_policy()  # as if another pool had lost its connections
        return policy

    monkeypatch.setattr("service.store.connection.probe_write_policy", probe_before_another_server)
    await store.put([Write(stored_note())])
    assert waits_for_disk(admin) == 1
    await store.close()


async def test_write_whose_every_answer_about_the_server_is_forgotten_ends_as_an_outage(
    redis_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServerState()
    store = RedisNoteStore(redis_url, clock=clock, server=server)

    async def probe_while_others_fail(client: Any) -> WritePolicy:
        policy = await probe_write_policy(client)
        server.forget_policy()
        return policy

    monkeypatch.setattr("service.store.connection.probe_write_policy", probe_while_others_fail)
    monkeypatch.setattr(store.connection, "timeout_seconds", 0.3)
    with pytest.raises(StoreUnavailable, match="no answer within the timeout"):
        await store.put([Write(stored_note())])
    await store.close()
