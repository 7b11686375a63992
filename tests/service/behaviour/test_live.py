"""LiveBehaviour: when the removal of a reader's events answers."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from service.behaviour import live
from service.behaviour.co_occurrence import CoOccurrenceOptions
from service.behaviour.live import LiveBehaviour
from service.events import Event, EventBounds
from service.interfaces import Clock
from service.records import Write
from service.store.connection import Connection
from service.store.embedded_redis import EmbeddedRedis
from service.store.events import RedisEventStore
from service.store.redis_store import RedisNoteStore
from service.telemetry import Telemetry
from tests.service.conftest import stored_note

pytestmark = pytest.mark.anyio
BOUNDS = EventBounds(seconds=3600.0, bytes=2**20, id_seconds=3600.0, ids=1000)


async def test_removal_answers_though_the_stream_is_not_read_and_says_so_in_the_log(
    embedded: EmbeddedRedis, embedded_store: RedisNoteStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FORGET_SECONDS", 0.01)
    connection = Connection(embedded.url)
    store = RedisEventStore(connection, BOUNDS)
    not_started = LiveBehaviour(store, CoOccurrenceOptions(), {"click": 1.0}, BOUNDS.seconds, Telemetry(), clock)
    await embedded_store.put([Write(stored_note("a"))])
    await not_started.add([Event("e1", "click", "a", "u1", clock())], clock())
    with capture_logs() as logs:
        assert await not_started.forget("u1") == 1
    assert [line["event"] for line in logs] == ["forgotten_reader_counts"]
    assert [part async for part in not_started.read_events_of("u1")] == [[]]
    await connection.close()
