"""StoreProbe: checks whether the store answers within READ_SECONDS, how it persists, and how full its memory is."""

from __future__ import annotations

import asyncio
import contextlib
import math

import structlog

from service.errors import StoreUnavailable
from service.interfaces import NoteStore
from service.read_time import ReadTime
from service.records import Durability
from service.shared_probe import SharedProbe
from service.telemetry import Telemetry

WATCH_SECONDS = 5.0
"""Seconds between two checks by `watch`: the metrics are at most this much behind /readyz."""
log = structlog.get_logger(__name__)


class StoreProbe:
    """Asks a store how it persists; concurrent callers share one request. The metrics show the last result. `answers`:
    whether the last request was answered within READ_SECONDS; False before the first."""

    def __init__(self, store: NoteStore, telemetry: Telemetry) -> None:
        self._store = store
        self._telemetry = telemetry
        self._shared = SharedProbe(self._measure)
        self.answers = False

    async def ask(self) -> Durability:
        """Return how the store persists. Raises StoreUnavailable, also after READ_SECONDS."""
        try:
            durability = await ReadTime().wait(self._shared.answer())
        except Exception:
            self.answers = False
            raise
        self.answers = True
        return durability

    async def watch(self) -> None:
        """Ask every WATCH_SECONDS, until cancelled. Perhaps nobody calls /readyz, and the server's settings may change
        while it runs, after which the writes of all tenants may have to wait for its disk."""
        while True:
            try:
                with contextlib.suppress(StoreUnavailable):  # which the connection has logged and counted
                    await self.ask()
            except Exception:  # the task must not end unnoticed: writes might be acknowledged before they are on disk
                log.exception("durability_unknown")
            await asyncio.sleep(WATCH_SECONDS)

    async def _measure(self) -> Durability:
        durability = await self._store.durability()
        self._telemetry.store_durable.set(durability.durable)
        filled = durability.memory_filled
        self._telemetry.store_memory_filled.set(math.nan if filled is None else filled)
        return durability
