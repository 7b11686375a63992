"""Readers: what becomes of processes that do not start. What they serve is tested in api/test_readers.py."""

from __future__ import annotations

import asyncio

import pytest

from service.readers import Readers, ReaderStart, samples_of
from service.telemetry import Telemetry
from tests.service.conftest import eventually

pytestmark = pytest.mark.anyio
START = ReaderStart("model", "space", 4, 0.0, embedded=False)


async def test_reader_that_cannot_start_is_tried_again_and_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.readers.MODULE", "service.no_such_module")
    restarts: list[None] = []
    readers = Readers(1)
    listener = readers.listen()
    assert listener is not None
    with listener:
        readers.start(START, "redis://none", lambda: restarts.append(None))
        assert not readers.tried
        await eventually(lambda: len(restarts) > 1)
        assert readers.tried
        assert readers.ready == 0
        await readers.stop(5)


async def test_readers_that_were_stopped_are_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.readers.MODULE", "service.no_such_module")
    before, readers = asyncio.all_tasks(), Readers(1)
    listener = readers.listen()
    assert listener is not None
    with listener:
        await readers.stop(5)
        readers.start(START, "redis://none", lambda: None)
        assert asyncio.all_tasks() == before, "no task that would start one"


async def test_connections_that_a_reader_refuses_are_told_with_its_metrics() -> None:
    telemetry = Telemetry()
    telemetry.refused_connections.inc()
    samples = samples_of(telemetry.registry)["notellm_connections_refused"]
    assert ("notellm_connections_refused_total", {}, 1.0) in samples
