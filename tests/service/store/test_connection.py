"""Connection: which errors of the client become StoreUnavailable, and connections after a failover."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog
import uvloop
from redis.exceptions import MovedError

from service.errors import StoreUnavailable
from service.interfaces import Clock
from service.records import Write
from service.store import connection as connection_module
from service.store.connection import Connection, ServerState
from service.store.embedded_redis import EmbeddedRedis
from service.store.redis_keys import LOG
from service.store.redis_store import RedisNoteStore
from tests.service.conftest import running_embedded, stored_note


async def ping(connection: Connection) -> None:
    async with connection.call("ping"):
        await connection.redis.ping()


async def ping_over_connection_that_is_reset(url: str) -> None:
    """Reset a pooled connection after the pool has checked it and before the command is sent."""
    connection = Connection(url)
    await ping(connection)
    (pooled,) = connection.redis.connection_pool._available_connections
    send = pooled.send_command

    async def send_after_reset(*arguments: Any, **options: Any) -> None:
        pooled._writer.transport.abort()
        await pooled._writer.wait_closed()
        await send(*arguments, **options)

    pooled.send_command = send_after_reset
    with pytest.raises(StoreUnavailable, match="no connection to it"):
        await ping(connection)
    pooled.send_command = send
    await ping(connection)
    await connection.close()


def test_connection_that_is_reset_before_it_is_written_to_is_an_outage(embedded: EmbeddedRedis) -> None:
    uvloop.run(
        ping_over_connection_that_is_reset(embedded.url)
    )  # uvloop reports the reset in another way than asyncio's own loop


async def fail_within_call(url: str) -> None:
    connection = Connection(url)
    try:
        async with connection.call("ping"):
            raise RuntimeError("a mistake of ours")
    finally:
        await connection.close()


def test_mistake_of_ours_is_no_outage(embedded: EmbeddedRedis) -> None:
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        uvloop.run(fail_within_call(embedded.url))


@pytest.mark.anyio
async def test_call_that_is_cancelled_beside_reconnecting_ones_gives_back_its_connection(
    embedded: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old server takes long to close its connections."""
    ended = asyncio.Event()

    async def close_slowly(writer: asyncio.StreamWriter) -> None:
        await ended.wait()

    connection = Connection(embedded.url, max_connections=2)
    pool = connection.redis.connection_pool
    first, second = [await pool.get_connection() for _ in range(2)]
    monkeypatch.setattr(asyncio.StreamWriter, "wait_closed", close_slowly)
    pool.mark_all()
    releasing = [asyncio.create_task(pool.release(one)) for one in (first, second)]
    for _ in range(5):
        await asyncio.sleep(0)
    releasing[1].cancel()
    ended.set()
    await asyncio.gather(*releasing, return_exceptions=True)
    monkeypatch.undo()
    assert not pool._in_use_connections
    await asyncio.gather(*(ping(connection) for _ in range(4)))
    await connection.close()


@pytest.mark.anyio
async def test_error_with_an_address_of_the_store_is_not_told_to_callers(embedded: EmbeddedRedis) -> None:
    connection = Connection(embedded.url)
    with pytest.raises(StoreUnavailable) as refused:
        async with connection.call("ping"):
            raise MovedError("5460 10.0.3.7:6379")
    assert "it refused a command" in str(refused.value)
    assert "10.0.3.7" not in str(refused.value)
    await connection.close()


async def close_after_refused_call() -> None:
    connection = Connection("redis://127.0.0.1:9/0")  # nothing listens there
    with pytest.raises(StoreUnavailable):
        await ping(connection)
    await connection.close()


def test_end_of_a_connection_to_a_store_that_is_unavailable_does_not_say_that_it_answers() -> None:
    with structlog.testing.capture_logs() as lines:
        uvloop.run(close_after_refused_call())
    assert [line["event"] for line in lines] == ["store_unavailable"]


@contextlib.contextmanager
def two_servers(folder: Path) -> Iterator[tuple[Path, EmbeddedRedis, EmbeddedRedis]]:
    """Run two servers; yield an address that leads to the first one, and both."""
    address = folder / "primary.sock"
    with running_embedded(folder / "a") as old, running_embedded(folder / "b") as new:
        address.symlink_to(old.socket)
        yield address, old, new


def fail_over(address: Path, old: EmbeddedRedis, new: EmbeddedRedis) -> None:
    """Make the old primary a replica, and have its address lead to the new one."""
    with redis.Redis.from_url(old.url) as admin:
        admin.replicaof("127.0.0.1", 1)
    address.unlink()
    address.symlink_to(new.socket)


@pytest.mark.anyio
async def test_write_after_a_failover_that_keeps_the_old_primary_reaches_the_new_one(
    short_folder: Path, clock: Clock
) -> None:
    with two_servers(short_folder) as (address, old, new):
        store = RedisNoteStore(f"unix://{address}", clock=clock)
        await asyncio.gather(*(store.put([Write(stored_note(f"n{n}"))]) for n in range(5)))
        pool = store.connection.redis.connection_pool
        in_use = await pool.get_connection()
        fail_over(address, old, new)
        with pytest.raises(StoreUnavailable, match="read only"):
            await store.put([Write(stored_note("refused"))])
        await asyncio.gather(*(store.put([Write(stored_note(f"n{n}"))]) for n in range(5)))
        await pool.release(in_use)  # the next call takes it
        await store.put([Write(stored_note("last"))])
        await store.close()
        with redis.Redis.from_url(new.url) as admin:
            assert admin.xlen(LOG) == 6


@pytest.mark.anyio
async def test_write_that_a_replica_refuses_has_all_pools_of_the_server_connect_anew(
    short_folder: Path, clock: Clock
) -> None:
    server = ServerState()
    with two_servers(short_folder) as (address, old, new):
        first, second = (RedisNoteStore(f"unix://{address}", clock=clock, server=server) for _ in range(2))
        for store in (first, second):
            await store.put([Write(stored_note("before"))])
        fail_over(address, old, new)
        with pytest.raises(StoreUnavailable, match="read only"):
            await first.put([Write(stored_note("refused"))])
        for store in (first, second):
            await store.put([Write(stored_note("after"))])
            await store.close()


@pytest.mark.anyio
async def test_process_that_only_reads_finds_the_new_primary_by_its_next_probe(
    short_folder: Path, clock: Clock
) -> None:
    with two_servers(short_folder) as (address, old, new):
        reader, writer = RedisNoteStore(f"unix://{address}", clock=clock), RedisNoteStore(new.url, clock=clock)
        await reader.put([Write(stored_note("removed"))])
        fail_over(address, old, new)
        await writer.put([Write(stored_note("a"))])
        assert [note is None for note in await reader.get(["removed"])] == [False]
        with pytest.raises(StoreUnavailable, match="read only replica"):
            await reader.durability()
        assert (await reader.durability()).durable
        assert await reader.get(["removed"]) == [None]
        for store in (reader, writer):
            await store.close()


@pytest.mark.anyio
async def test_reads_beside_writes_that_a_replica_refuses_are_answered(
    embedded: EmbeddedRedis, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "RECONNECT_SECONDS", 0.0)
    store = RedisNoteStore(embedded.url, clock=clock)
    await store.put([Write(stored_note("a"))])
    with redis.Redis.from_url(embedded.url) as admin:
        admin.replicaof("127.0.0.1", 1)

    async def write() -> None:
        for _ in range(100):
            with pytest.raises(StoreUnavailable, match="read only"):
                await store.put([Write(stored_note("b"))])

    async def read() -> None:
        for _ in range(100):
            assert await store.get(["a"])

    await asyncio.gather(*(work() for work in (write, read, read) * 12))
    await store.close()
