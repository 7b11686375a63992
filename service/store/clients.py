"""Blocking clients of one database of a Redis server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import redis
from redis.maint_notifications import MaintNotificationsConfig

TIMEOUT_SECONDS = 120.0
"""Time-out of one answer: long enough for a server that forks or frees much memory."""


def pool_of(url: str, database: int | None = None) -> redis.ConnectionPool:
    """Return a pool of connections to a database, by default the one that the URL names."""
    pool = redis.ConnectionPool.from_url(
        url,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    if database is not None:
        pool.connection_kwargs["db"] = database
    return pool


def database_of(url: str) -> int:
    """Return the number of the database that a URL names."""
    return int(pool_of(url).connection_kwargs.get("db", 0))


@contextlib.contextmanager
def client_of(url: str, database: int | None = None) -> Iterator[Any]:
    """Yield a client that uses a single connection, so that its commands arrive in their order."""
    pool = pool_of(url, database)
    try:
        with redis.Redis(connection_pool=pool, single_connection_client=True) as client:
            yield client
    finally:
        pool.disconnect()
