"""EventFollower: what it does when the stream loses entries that it has read, as a failover to a replica that lags."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis
from structlog.testing import capture_logs

from service.behaviour.co_occurrence import CoOccurrenceOptions
from service.behaviour.live import LiveBehaviour
from service.events import Event, EventBounds
from service.interfaces import Clock
from service.records import Write
from service.store.connection import Connection
from service.store.embedded_redis import EmbeddedRedis
from service.store.events import RedisEventStore
from service.store.purge import purge_store
from service.telemetry import Telemetry
from tests.service.conftest import GatedStore, eventually, stored_note

pytestmark = pytest.mark.anyio
BOUNDS = EventBounds(seconds=3600.0, bytes=2**20, id_seconds=3600.0, ids=1000)
EVENTS = "{notes}:events"


@pytest.fixture
async def behaviour(embedded: EmbeddedRedis, embedded_store: GatedStore, clock: Clock) -> AsyncIterator[LiveBehaviour]:
    """The behaviour of one reader, who has read the notes a, b and c."""
    await embedded_store.put([Write(stored_note(note_id)) for note_id in "abc"])
    connection = Connection(embedded.url)
    store = RedisEventStore(connection, BOUNDS)
    live = LiveBehaviour(store, CoOccurrenceOptions(), {"click": 1.0}, BOUNDS.seconds, Telemetry(), clock)
    live.start()
    for note_id in "abc":
        await live.add([Event(note_id, "click", note_id, "u1", clock())], clock())
    await eventually(lambda: live.status().reads == 3)
    yield live
    await live.stop()
    await connection.close()


def fail_over(admin: redis.Redis, lost: int, added: int) -> None:
    """Replace the stream, in one step, by one that lacks the last `lost` entries and has `added` later ones."""
    entries = admin.xrange(EVENTS)
    fields = entries[0][1]
    with admin.pipeline(transaction=True) as pipeline:
        pipeline.delete(EVENTS)
        for position, values in entries[: len(entries) - lost]:
            pipeline.xadd(EVENTS, values, id=position)
        for number in range(added):
            pipeline.xadd(EVENTS, {**fields, "reader": f"later {number}"})
        pipeline.execute()


@pytest.mark.parametrize(("lost", "added"), [(1, 0), (1, 1), (2, 1), (2, 2), (3, 1), (3, 4)])
async def test_events_that_the_stream_loses_no_longer_count(
    behaviour: LiveBehaviour, embedded_admin: redis.Redis, lost: int, added: int
) -> None:
    with capture_logs() as logs:
        fail_over(embedded_admin, lost, added)
        await eventually(lambda: [line["event"] for line in logs] == ["events_lost", "behaviour_built"])
    assert behaviour.status().reads == 3 - lost + added


async def test_events_that_a_purge_leaves_out_do_not_count_as_lost(
    behaviour: LiveBehaviour, embedded: EmbeddedRedis, clock: Clock
) -> None:
    await behaviour.add([Event("gone", "click", "a", "u2", clock())], clock())
    await behaviour.forget("u2")
    with capture_logs() as logs:
        await asyncio.to_thread(purge_store, embedded.url)
        await behaviour.add([Event("last", "click", "a", "u3", clock())], clock())
        await eventually(lambda: behaviour.status().ready and behaviour.status().reads == 4)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == []


async def test_events_that_are_added_and_removed_do_not_count_as_lost(
    behaviour: LiveBehaviour, embedded_admin: redis.Redis, clock: Clock
) -> None:
    with capture_logs() as logs:
        for number in range(5):
            await behaviour.add([Event(f"{number}", "click", "a", "u2", clock())], clock())
            await behaviour.forget("u2")
        embedded_admin.xtrim(EVENTS, maxlen=1, approximate=False)
        await behaviour.add([Event("last", "click", "b", "u3", clock())], clock())
        await eventually(lambda: behaviour.status().position == embedded_admin.xrevrange(EVENTS, count=1)[0][0])
    assert [line["event"] for line in logs] == []
