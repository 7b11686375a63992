"""Purger: drops all data about removed notes from an index, and then makes a snapshot without it."""

from __future__ import annotations

import asyncio

import structlog

from service.index.maintenance import Maintainer
from service.index.snapshot_keeper import SnapshotKeeper
from service.index.state import IndexState
from service.index.threads import IndexWriter

CHECK_SECONDS = 0.1
"""Pause between two checks whether the jobs of the index are done."""
RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0
"""Pause after a purge that failed: after the first failure, and after many in a row."""
log = structlog.get_logger(__name__)


class Purger:
    """Purges on request, in the background, while writes and searches go on.

    Between the request and the end of the purge no snapshot is made, so that a snapshot at or after the position of the
    purge holds nothing of notes that were removed before. `writer` runs the calls that change the notes.
    """

    def __init__(self, state: IndexState, keeper: SnapshotKeeper, maintainer: Maintainer, writer: IndexWriter) -> None:
        self._state = state
        self._keeper = keeper
        self._maintainer = maintainer
        self._writer = writer
        self._requested = asyncio.Event()

    def request(self) -> None:
        """Request a purge. Called before the index moves to the position of the purge."""
        self._state.purging = True
        self._requested.set()

    async def run(self) -> None:
        """Purge as requested until cancelled. A failure is logged, and the purge tried again, after a pause that grows
        with each failure in a row."""
        pause = RETRY_SECONDS
        while True:
            await self._requested.wait()
            self._requested.clear()
            try:
                await self._purge()
                pause = RETRY_SECONDS
            except Exception:  # the task must not end unseen: no snapshot would be made any more
                log.exception("index_purge_failed", detail=f"will be tried again in {pause:g} s")
                self.request()
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_RETRY_SECONDS)

    async def _purge(self) -> None:
        notes = self._state.notes
        await self._writer.run(notes.drop_tombstones)
        self._state.notify_listeners(None)  # caches of answers may name removed notes
        while notes is self._state.notes and notes.dropping:  # a new build has no tombstones
            self._maintainer.notify()
            await asyncio.sleep(CHECK_SECONDS)
            if self._maintainer.idle.is_set() and notes.dropping and not self._state.rebuilding:
                raise RuntimeError("a segment with removed notes could not be rewritten")
        self._state.purging = self._requested.is_set()
        await self._keeper.save()
        log.info("index_purged", position=self._state.position)
