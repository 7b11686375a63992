"""Durability of acknowledged writes, on each Redis that the store works on."""

from __future__ import annotations

import pytest
import redis

from service.records import Write
from service.store.redis_store import RedisNoteStore
from tests.service.conftest import stored_note

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.mark.parametrize(
    ("settings", "durable", "detail"),
    [
        ({"appendfsync": "always"}, True, "always"),
        ({"appendfsync": "everysec"}, True, "WAITAOF"),
        ({"appendfsync": "no"}, False, "appendfsync no"),
        ({"appendonly": "no"}, False, "appendonly is off"),
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


async def test_write_to_a_server_that_fsyncs_late_waits_for_its_disk(store: RedisNoteStore, admin: redis.Redis) -> None:
    admin.config_set("appendfsync", "everysec")
    await store.put([Write(stored_note())])
    assert admin.info("commandstats")["cmdstat_waitaof"]["calls"] == 1
