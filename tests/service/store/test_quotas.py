"""RedisQuotaStore on each Redis: all replicas share one count, which is not written to the disk."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import pytest
import redis

from service.access.principal import Quota
from service.access.quota import carry_over
from service.errors import StoreUnavailable
from service.store.connection import Connection
from service.store.quotas import QUOTA, RedisQuotaStore
from tests.service.conftest import Server

pytestmark = pytest.mark.anyio


@pytest.fixture
async def quotas(redis_url: str) -> AsyncIterator[RedisQuotaStore]:
    connection = Connection(redis_url)
    yield RedisQuotaStore(connection)
    await connection.close()


async def test_requests_are_allowed_up_to_the_quota(quotas: RedisQuotaStore) -> None:
    usages = [await quotas.count("a", Quota(3), 1, 0) for _ in range(5)]
    assert [usage.allowed for usage in usages] == [True, True, True, False, False]
    assert usages[-1].requests.before + usages[-1].requests.present == 3  # refused requests are not counted
    assert (await quotas.count("b", Quota(3), 1, 0)).allowed


async def test_requests_at_once_are_counted_exactly(quotas: RedisQuotaStore, redis_url: str) -> None:
    other = Connection(redis_url)
    stores = (quotas, RedisQuotaStore(other))
    usages = await asyncio.gather(*(stores[number % 2].count("a", Quota(20), 1, 0) for number in range(100)))
    assert sum(usage.allowed for usage in usages) == 20
    await other.close()


async def test_tokens_beyond_the_quota_are_remembered(quotas: RedisQuotaStore) -> None:
    quota = Quota(None, 100)
    assert (await quotas.count("a", quota, 1, 0)).allowed
    await quotas.count("a", quota, 0, 1000)
    usage = await quotas.count("a", quota, 1, 0)
    assert (usage.allowed, usage.tokens.before + usage.tokens.present) == (False, 1000)
    assert usage.seconds_to_wait(quota) > 9 * 60 - 1  # 901 of the 1,000 must leave the window, at 100 a minute


async def test_requests_that_use_no_tokens_are_counted_when_those_of_the_quota_are_used_up(
    quotas: RedisQuotaStore,
) -> None:
    quota = Quota(3, 100)
    await quotas.count("a", quota, 0, 1000)
    usages = [await quotas.count("a", quota, 1, 0, spends_tokens=False) for _ in range(4)]
    assert [usage.allowed for usage in usages] == [True, True, True, False]
    last = usages[-1]
    assert (last.requests.before + last.requests.present, last.tokens.before + last.tokens.present) == (3, 1000)
    assert 0 < last.seconds_to_wait(quota, spends_tokens=False) <= 120 < last.seconds_to_wait(quota)


async def test_use_of_the_minute_before_counts_by_its_share(quotas: RedisQuotaStore, admin: redis.Redis) -> None:
    minute = math.floor(admin.time()[0] / 60)
    admin.hset(QUOTA + "a", mapping={"minute": minute - 1, "requests": 1000, "tokens": 7})
    usage = await quotas.count("a", Quota(10_000), 1, 0)
    assert (usage.requests.before, usage.requests.present, usage.tokens.before) in {(1000, 1, 7), (0, 1, 0)}
    admin.hset(QUOTA + "a", mapping={"minute": minute - 5, "requests": 1000})
    assert (await quotas.count("a", Quota(10_000), 1, 0)).requests.before == 0
    assert 0 < admin.ttl(QUOTA + "a") <= 120


@pytest.mark.parametrize("ago", [1, 2, 3, 5])
async def test_tokens_beyond_the_quota_are_carried_over(quotas: RedisQuotaStore, admin: redis.Redis, ago: int) -> None:
    minute = math.floor(admin.time()[0] / 60)
    admin.hset(QUOTA + "a", mapping={"minute": minute - ago, "tokens": 1000})
    usage = await quotas.count("a", Quota(None, 300), 1, 0)
    tokens = usage.tokens
    assert (tokens.before, tokens.present) in {carry_over(1000, ago, 300), carry_over(1000, ago + 1, 300)}
    assert usage.allowed is (tokens.used + 1 <= 300)
    assert admin.ttl(QUOTA + "a") > 60 * math.ceil(tokens.present / 300), "it is kept until they have left"


async def test_requests_are_counted_where_memory_is_full(quotas: RedisQuotaStore, admin: redis.Redis) -> None:
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", 1)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        admin.set("written", "x")
    usages = [await quotas.count("a", Quota(2), 1, 0) for _ in range(3)]
    assert [usage.allowed for usage in usages] == [True, True, False]
    assert 0 < admin.ttl(QUOTA + "a") <= 120


async def test_counting_writes_nothing_to_the_log_of_redis(quotas: RedisQuotaStore, admin: redis.Redis) -> None:
    await quotas.count("a", Quota(10_000), 1, 0)
    admin.set("written", "x")
    before = admin.info("persistence")["aof_current_size"]
    for _ in range(200):
        await quotas.count("a", Quota(10_000), 1, 0)
    assert admin.info("persistence")["aof_current_size"] == before
    admin.set("written", "y")
    assert admin.info("persistence")["aof_current_size"] > before


async def test_store_that_is_unavailable_is_said_so(quotas: RedisQuotaStore, server: Server) -> None:
    server.stop()
    with pytest.raises(StoreUnavailable):
        await quotas.count("a", Quota(1), 1, 0)
