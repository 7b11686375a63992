"""Maintainer: seals and merges the segments of an index in the background."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from service.index.backend import Maintainable
from service.index.native import trim_heap
from service.index.state import IndexedNotes, IndexState
from service.index.threads import IndexWriter, run_in_daemon

TRIM_HEAP_ROWS = 50_000
"""A job of at least this many rows frees enough memory to be worth the time of returning it to the system."""
log = structlog.get_logger(__name__)


class Maintainer:
    """Runs the maintenance jobs of the index and its texts, one at a time. `writer` runs the calls that change them."""

    def __init__(self, state: IndexState, writer: IndexWriter) -> None:
        self._state = state
        self._writer = writer
        self._changed = asyncio.Event()
        self.idle = asyncio.Event()
        """Set once no job is left to run, except those that failed, and cleared by `notify`."""

    def notify(self) -> None:
        """Look for jobs, after a write."""
        self.idle.clear()
        self._changed.set()

    async def run(self) -> None:
        """Run jobs until cancelled. While the index is rebuilt, the old one is left as it is."""
        while True:
            if self._state.rebuilding or not await self._try_jobs():
                self.idle.set()
                # Cleared only after the wait, so that after a write during a failing job the job is tried again.
                await self._changed.wait()
                self._changed.clear()
                self.idle.clear()

    async def _try_jobs(self) -> bool:
        """Run the next jobs, and return whether to look for more at once: there was a job, and nothing but jobs
        failed."""
        try:
            return await self.run_jobs(self._state.notes)
        except Exception:  # the task must not end unseen: nothing would be merged any more
            log.exception("index_maintenance_failed", detail="will be tried again after the next write")
            return False

    async def run_jobs(self, notes: IndexedNotes) -> bool:
        """Run the next job of each part of the notes, and return whether there was one."""
        return any([await self._run_job(part) for part in notes.maintained])

    async def _run_job(self, part: Maintainable) -> bool:
        """Run the next job, and return whether there was one. A failed job costs speed and memory, but answers stay the
        same."""
        job = await self._writer.run_short(part.plan)
        if job is None:
            return False
        try:
            await run_in_daemon(job.run)
            await self._writer.run(partial(part.finish, job))
            self._state.unlogged_changes += 1  # so that a snapshot is made of what was merged
        except Exception:
            log.exception("index_job_failed", detail="will be tried again after the next write")
            await self._writer.run(partial(part.give_up, job))
        frees_much = job.rows >= TRIM_HEAP_ROWS
        del job  # it refers to the old segments
        if frees_much:
            await asyncio.to_thread(trim_heap)
        return True
