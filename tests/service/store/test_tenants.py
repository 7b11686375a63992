"""RedisTenants: removals of one tenant by several replicas."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from service.errors import TenantNotFound
from service.store.connection import Connection
from service.store.embedded_redis import EmbeddedRedis
from service.store.redis_keys import RedisKeys
from service.store.tenants import REMOVING, TENANTS, RedisTenants

pytestmark = pytest.mark.anyio
KEYS = RedisKeys("acme")


@contextlib.asynccontextmanager
async def directory(url: str) -> AsyncIterator[RedisTenants]:
    """Open the tenants of a store as one replica does, while the block lasts."""
    connection = Connection(url)
    yield RedisTenants(connection, max_tenants=10)
    await connection.close()


@pytest.mark.parametrize("removal", ["remove", "finish_removal"])
async def test_tenant_made_anew_behind_one_of_two_removals_is_left_alone_by_the_other(
    embedded: EmbeddedRedis, embedded_admin: redis.Redis, monkeypatch: pytest.MonkeyPatch, removal: str
) -> None:
    reached, gate = asyncio.Event(), asyncio.Event()
    async with directory(embedded.url) as quick, directory(embedded.url) as slow:
        await quick.open("acme")
        embedded_admin.hset(f"{KEYS.note}old", "document", "{}")
        if removal == "finish_removal":  # the slow one finds an interrupted removal
            embedded_admin.hset(TENANTS, "acme", REMOVING + str(embedded_admin.getdel(KEYS.identity)))
        scan = slow._connection.redis.scan

        async def scan_behind_gate(*arguments: Any, **options: Any) -> Any:
            reached.set()
            await gate.wait()
            return await scan(*arguments, **options)

        monkeypatch.setattr(slow._connection.redis, "scan", scan_behind_gate)
        removing = asyncio.create_task(getattr(slow, removal)("acme"))
        await reached.wait()
        await quick.remove("acme")
        identity = await quick.open("acme")
        for number in range(5):
            embedded_admin.hset(f"{KEYS.note}{number}", "document", "{}")
        gate.set()
        await removing
        assert len(embedded_admin.keys(f"{KEYS.note}*")) == 5
        assert embedded_admin.get(KEYS.identity) == identity
        assert await quick.open("acme") == identity


async def test_removal_that_another_replica_has_ended_is_not_begun_again(
    embedded: EmbeddedRedis, embedded_admin: redis.Redis
) -> None:
    async with directory(embedded.url) as tenants:
        await tenants.finish_removal("acme")
        identity = await tenants.open("acme")
        await tenants.finish_removal("acme")
        assert await tenants.known() == {"acme": identity}
        await tenants.remove("acme")
        assert not embedded_admin.keys(f"{KEYS.prefix}*")
        with pytest.raises(TenantNotFound):
            await tenants.remove("acme")
