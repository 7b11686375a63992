"""PurgeSchedule: purges the store at intervals, once for all replicas."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import structlog
from pydantic import SecretStr

from service.erasure.snapshot_renewal import remove_unused
from service.index.threads import run_in_daemon
from service.interfaces import Clock
from service.store.purge import last_purge, logs_of_store, purge_store_if_due
from service.store.purge_claim import PurgeError
from service.telemetry import Telemetry

MAX_PAUSE_SECONDS = 60.0
"""Bound on the pause between two checks whether a purge is due."""
PAUSES = 10
"""Least number of checks within an interval."""
log = structlog.get_logger(__name__)


class PurgeSchedule:
    """Purges the store of `url` every `seconds`, by whichever replica finds it due first. After a purge, each replica
    removes the older snapshots that no process uses from its own `data_dir`."""

    def __init__(self, url: SecretStr, data_dir: Path, seconds: float, telemetry: Telemetry, clock: Clock) -> None:
        self._url = url
        self._data_dir = data_dir
        self._seconds = seconds
        self._telemetry = telemetry
        self._clock = clock
        self._last = 0.0
        """Time of the last purge; 0 until the store was asked."""
        self._snapshots_removed_after = 0.0
        """Time of the last purge after which this process removed snapshots; 0 before its first check."""
        telemetry.purge_overdue.set_function(self._overdue)
        telemetry.purge_time.set_function(lambda: self._last)

    async def run(self) -> None:
        """Purge when it is due, until cancelled. A failure is logged, and tried again at the next check."""
        while True:
            try:
                await run_in_daemon(self._purge_if_due)
            except PurgeError as error:
                log.error("purge_failed", detail=str(error))
            except Exception:  # the task must not end unnoticed: nothing would be purged any more
                log.exception("purge_failed")
            await asyncio.sleep(min(MAX_PAUSE_SECONDS, self._seconds / PAUSES))

    def _purge_if_due(self) -> None:
        """Purge the store if that is due, and remove this machine's snapshots from before the last purge. Raises
        PurgeError."""
        url = self._url.get_secret_value()
        self._last = last_purge(url, self._clock())  # known even if the purge fails
        self._last, purged = purge_store_if_due(url, self._seconds, self._clock())
        if self._last != self._snapshots_removed_after:
            remove_unused(self._data_dir, logs_of_store(url))
            self._snapshots_removed_after = self._last
        if purged:
            log.info("store_purged", detail="the files of the store were rewritten without removed data")

    def _overdue(self) -> float:
        """Return the seconds since a purge was due; NaN until the store was asked, since the alert's minimum over all
        replicas ignores NaN."""
        return max(0.0, self._clock() - self._last - self._seconds) if self._last else math.nan
