"""Claims on idempotency keys, while the store does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from service import claims as claims_module
from service.admission import Lane, Urgency
from service.claims import Claims
from service.errors import KeyInUse, StoreUnavailable
from service.interfaces import Clock
from service.records import Attempt, Write
from service.store.redis_store import RedisNoteStore
from tests.service.conftest import DIMENSION, SPACE, DebianRedis, stored_note

pytestmark = pytest.mark.anyio
ATTEMPT = Attempt("key", "fingerprint")
TIMEOUT = 1.0


@pytest.fixture
async def store(debian_redis: DebianRedis, clock: Clock) -> AsyncIterator[RedisNoteStore]:
    store = RedisNoteStore(debian_redis.url, clock=clock, dimensions={SPACE: DIMENSION}, timeout_seconds=TIMEOUT)
    await store.put([Write(stored_note("first"))])
    yield store
    await store.close()


def urgency() -> Urgency:
    return Urgency(Lane.BULK, 60.0, time.monotonic())


async def write_to_stopped_store(claims: Claims, store: RedisNoteStore, server: DebianRedis) -> None:
    async with claims.hold([ATTEMPT], urgency()):
        server.stop()
        await store.put([Write(stored_note("second"))])


async def claim_when_free(claims: Claims) -> None:
    """Claim the key as soon as it is free."""
    async with asyncio.timeout(20):
        while True:
            try:
                async with claims.hold([ATTEMPT], urgency()):
                    return
            except (KeyInUse, StoreUnavailable):
                await asyncio.sleep(0.05)


async def test_claim_that_the_store_answers_too_late_is_released(
    store: RedisNoteStore, debian_redis: DebianRedis
) -> None:
    claims = Claims(store, 3600.0)
    with debian_redis.hanging(), pytest.raises(StoreUnavailable):
        async with claims.hold([ATTEMPT], urgency()):
            raise AssertionError("nothing was claimed")
    await claim_when_free(claims)


async def test_claim_whose_release_fails_is_released_once_the_store_is_back(
    store: RedisNoteStore, debian_redis: DebianRedis
) -> None:
    claims = Claims(store, 3600.0)
    with pytest.raises(StoreUnavailable):
        await write_to_stopped_store(claims, store, debian_redis)
    debian_redis.start()
    await claim_when_free(claims)


async def test_claim_that_is_given_up_while_the_store_is_away_is_released_once_it_is_back(
    store: RedisNoteStore, debian_redis: DebianRedis
) -> None:
    claims = Claims(store, 3600.0)
    async with claims.hold([ATTEMPT], urgency()) as held:
        debian_redis.stop()
        await claims.give_up(held)
        debian_redis.start()
        await claim_when_free(claims)


async def test_answer_does_not_wait_for_the_release_of_an_unavailable_store(
    store: RedisNoteStore, debian_redis: DebianRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "RELEASE_PAUSE_SECONDS", 3600.0)
    released: list[str] = []
    release = store.release
    monkeypatch.setattr(store, "release", lambda claims: released.append("release") or release(claims))
    with pytest.raises(StoreUnavailable):
        await write_to_stopped_store(Claims(store, 3600.0), store, debian_redis)
    assert released == []


async def test_claim_that_cannot_be_released_is_left_to_its_lease(
    store: RedisNoteStore, debian_redis: DebianRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "RELEASE_SECONDS", 0.0)
    monkeypatch.setattr(claims_module, "RELEASE_PAUSE_SECONDS", 0.01)
    claims = Claims(store, 3600.0)
    with pytest.raises(StoreUnavailable):
        await write_to_stopped_store(claims, store, debian_redis)
    assert claims._releasing is not None
    await asyncio.wait_for(claims._releasing, 5)
    assert claims._unreleased == []
