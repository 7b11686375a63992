"""Connection to Redis: raises its errors as StoreUnavailable, and returns from writes once they are on disk."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from service.errors import StoreUnavailable
from service.records import Durability
from service.shared_probe import SharedProbe
from service.store.durability import probe_write_policy
from service.store.redis_keys import TOUCHED
from service.store.scripts import FIRST_WRITE
from service.tracing import stage

MAX_CONNECTIONS = 32
"""Connections of one pool to Redis; further calls wait for a free one."""
RECONNECT_SECONDS = 1.0
"""Minimum time between two reconnections of all connections."""
CLOSED = "the handler is closed"
"""Message of the RuntimeError that uvloop raises on a write to a connection that was reset since it was last
checked."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """One script that writes, with its keys and arguments."""

    script: str
    keys: Sequence[str]
    arguments: Sequence[Any]

    @property
    def words(self) -> tuple[Any, ...]:
        """The command as Redis takes it."""
        return "EVAL", self.script, len(self.keys), *self.keys, *self.arguments


TOUCH = Command(FIRST_WRITE + "redis.call('SET', KEYS[1], '', 'PX', 1)", (TOUCHED,), ())
"""Command that always writes. WAITAOF waits for the last write of its own connection and all writes before it, but for
none where that connection has not written."""


class ServerState:
    """State of one server, shared by all pools of connections to it: whether it answers, and whether writes must wait
    for its disk. An outage is logged once when it begins and once when it ends."""

    def __init__(self) -> None:
        self.waits_for_disk: bool | None = None
        """Whether writes need WAITAOF; None until the server was asked, and again after `forget_policy`."""
        self.policy_generation = 0
        """Number of calls of `forget_policy`."""
        self._pools: set[_Pool] = set()
        self._failing: set[_Pool] = set()
        """Pools whose last call failed."""
        self._reconnected_at = -math.inf
        """Monotonic time at which all connections were last marked to reconnect."""

    def join(self, pool: _Pool) -> None:
        """Register a pool of connections to the server."""
        self._pools.add(pool)

    def forget_policy(self) -> None:
        """Forget how the server writes: another server may answer at the address by now."""
        self.waits_for_disk = None
        self.policy_generation += 1

    def reconnect_all(self) -> None:
        """Make later calls of all pools reconnect instead of using connections that are open now; at most once in
        RECONNECT_SECONDS, since the address may lead to the replica for minutes."""
        if (now := time.monotonic()) - self._reconnected_at >= RECONNECT_SECONDS:
            self._reconnected_at = now
            for pool in self._pools:
                pool.mark_all()

    def begin_outage(self, pool: _Pool, detail: str) -> None:
        """Record that a call of `pool` failed."""
        if not self._failing:
            log.error("store_unavailable", detail=detail)
        self._failing.add(pool)

    def end_outage(self, pool: _Pool) -> None:
        """Record that a call of `pool` was answered."""
        if pool in self._failing:
            self._failing.discard(pool)
            if not self._failing:
                log.warning("store_available", detail="the store answers again")

    def leave(self, pool: _Pool) -> None:
        """Unregister a pool that makes no more calls, which says nothing about the server."""
        self._failing.discard(pool)
        self._pools.discard(pool)


class _Pool(BlockingConnectionPool):
    """Pool whose marked connections reconnect: a connection in use after its call, an idle connection before its next
    call. (Closing idle connections at once might close one that a call has just taken.)"""

    def mark_all(self) -> None:
        connections: list[Any] = [*self._available_connections, *self._in_use_connections]
        for connection in connections:
            connection.mark_for_reconnect()

    async def release(self, connection: Any) -> None:
        """Give back a connection, without waiting for the end of a marked one. redis-py would wait for it under the
        pool's lock, and a call that is cancelled while it waits for that lock never gives back its own connection."""
        if connection.should_reconnect():
            await connection.disconnect(nowait=True)
        await super().release(connection)

    async def ensure_connection(self, connection: Any) -> None:
        if connection.should_reconnect():
            await connection.disconnect()
        await super().ensure_connection(connection)


class Connection:
    """A pool of connections. `redis` is the client, whose calls are to be made within `call`.

    `url`: redis://, rediss:// or unix://. `on_error` is called with each call that fails. `server`: shared by the pools
    of one server.
    """

    def __init__(
        self,
        url: str,
        timeout_seconds: float = 5.0,
        on_error: Callable[[], object] = lambda: None,
        max_connections: int = MAX_CONNECTIONS,
        server: ServerState | None = None,
    ) -> None:
        # No retries: a write that is sent twice would answer with a revision that the caller never made.
        # No socket_timeout: the client would make a task for each command; `call` bounds the time of all together.
        # No maintenance notifications: with them the pool hands out connections that the server has closed.
        self._pool: Any = _Pool.from_url(
            url,
            max_connections=max_connections,
            timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=timeout_seconds,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        self.redis: Any = Redis.from_pool(self._pool)
        self.timeout_seconds = timeout_seconds
        self._on_error = on_error
        self._server = server or ServerState()
        self._server.join(self._pool)
        self._shared_probe = SharedProbe(self.durability)
        """Queries how the server writes, once for all writes that wait for the answer."""
        self._closed = False
        self._calls = 0
        """Number of running calls."""
        self._idle = asyncio.Event()
        """Set once no call runs after `close`."""

    async def close(self) -> None:
        """Refuse further calls, wait for running ones, and close all connections."""
        self._closed = True
        if self._calls:  # one that went on after the close would reconnect
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), self.timeout_seconds)
        self._server.leave(self._pool)
        await self.redis.aclose()

    @contextlib.asynccontextmanager
    async def call(self, operation: str) -> AsyncIterator[None]:
        """Raise StoreUnavailable for every error of the client within the block (Redis unreachable, loading, out of
        memory, its disk full), and where the block takes longer than `timeout_seconds`. After a read-only replica has
        answered, the next calls of all pools reconnect: the address may lead to another server by now. The block is
        traced as a stage of its request."""
        if self._closed:
            raise StoreUnavailable("its connection was closed")
        self._calls += 1
        try:
            with stage("store", operation):
                async with asyncio.timeout(self.timeout_seconds):
                    yield
        except (RedisError, OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and CLOSED not in str(error):
                raise
            self._on_error()
            self._server.begin_outage(self._pool, str(error) or type(error).__name__)
            self._forget_after(error)
            raise StoreUnavailable(_reason(error)) from error
        finally:
            self._calls -= 1
            if self._closed and not self._calls:
                self._idle.set()
        self._server.end_outage(self._pool)

    def _forget_after(self, error: Exception) -> None:
        """Forget how the server writes where `error` may mean that another server has its address now. A refused
        command does not mean that, unless the server says that it is a replica. Where writes wait for the disk, a
        time-out does not either: the disk may be slow."""
        if isinstance(error, ReadOnlyError):
            self._server.reconnect_all()
        elif isinstance(error, ResponseError) or (isinstance(error, TimeoutError) and self._server.waits_for_disk):
            return
        self._server.forget_policy()

    async def send(self, *commands: Sequence[Any]) -> list[Any]:
        """Run commands in one round trip; return their answers as the server gives them. To be called within `call`.
        Raises redis.exceptions.ResponseError for the first command that fails.

        The client's own `execute` does more work around each command than needed here (decision 34).
        """
        connection = await self._pool.get_connection()
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            answers = [await _read_answer(connection) for _ in commands]
        finally:
            await self._pool.release(connection)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise answer
        return answers

    async def write(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one round trip; return their answers once the writes are durable.

        A server with `appendfsync always` answers after the fsync. For others that support WAITAOF, TOUCH and WAITAOF
        are the last commands (durability.py): also a script that finds nothing to do may have seen a write that is not
        on disk yet. Raises StoreUnavailable, also where the disk takes longer than the timeout.
        """
        if not commands:
            return []
        waits = await self._must_wait()
        words = [command.words for command in commands]
        if waits:
            words += [TOUCH.words, ("WAITAOF", 1, 0, int(self.timeout_seconds * 1000))]
        async with self.call("write"):
            results = await self.send(*words)
        if not waits:  # waits if a call has failed meanwhile: the write may have gone to another server
            await self.wait_for_disk()
        elif results[-1][0] < 1:
            raise StoreUnavailable("the write was not on disk in time")
        return results[: len(commands)]

    async def wait_for_disk(self) -> None:
        """Return once all writes that earlier calls have seen are durable, whoever made them: at once for a server
        that answers after fsync. Raises StoreUnavailable, as `write` does."""
        if await self._must_wait():
            await self.write([TOUCH])

    async def _must_wait(self) -> bool:
        """Return whether writes need WAITAOF. The answer may change with the next call of `durability` on any pool of
        the server. Raises StoreUnavailable, also where each answer was forgotten before it could be kept."""
        if (waits := self._server.waits_for_disk) is not None:
            return waits
        try:
            async with asyncio.timeout(self.timeout_seconds):
                while (waits := self._server.waits_for_disk) is None:
                    await self._shared_probe.answer()
        except TimeoutError as error:
            raise StoreUnavailable(_reason(error)) from error
        return waits

    async def durability(self) -> Durability:
        """Ask the server whether acknowledged writes survive its death. The answer is kept, unless `forget_policy` was
        called meanwhile: then it may be that of another server."""
        policy_generation = self._server.policy_generation
        async with self.call("durability"):
            policy = await probe_write_policy(self.redis)
        if policy_generation == self._server.policy_generation:
            self._server.waits_for_disk = policy.waits
        return policy.durability


async def _read_answer(connection: Any) -> Any:
    """Read the answer to one command; return an error of the server, so that the answers after it are read too."""
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _reason(error: Exception) -> str:
    """Return the cause of an error for callers, without the server's address, its users and keys: Redis's own words
    only where these are known. The log has them all."""
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "no answer within the timeout"
    if isinstance(error, OSError | RuntimeError | RedisConnectionError) and not isinstance(error, BusyLoadingError):
        return "no connection to it"
    if isinstance(error, OutOfMemoryError):
        return "its memory is full, or, for the embedded server, its disk"
    if isinstance(error, BusyLoadingError | ReadOnlyError) or str(error).startswith("MISCONF"):
        return str(error)
    return "it refused a command; its log and the service's say why"
