"""Freshness: whether an index has every change that was acknowledged before a read arrived.

An acknowledged change is in the log of the store before its caller hears of it. So one question answers it: where does
the log end now? An index that has come to that end needs to ask the store about no note (docs/decisions/0031-reads.md).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from service.errors import IndexBehind
from service.interfaces import NoteIndex, NoteStore
from service.read_time import ReadTime
from service.records import LogEnd, position_key

FOLLOW_SECONDS = 0.02
"""How long a read waits for an index that is behind; most changes are in it after a millisecond or two."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of the log, and the position that the index had when the store was asked for it."""

    end: LogEnd
    asked_at: str


class Freshness:
    """Compares the index of a tenant with the end of the log. Reads that arrive before a question is sent share it."""

    def __init__(self, store: NoteStore, index: NoteIndex) -> None:
        self._store = store
        self._index = index
        self._unsent: asyncio.Task[Answer] | None = None
        self._sent: asyncio.Task[Answer] | None = None

    async def wait(self, time_left: ReadTime) -> float | None:
        """Wait until the index has every change that was acknowledged before this call, and return the time of the
        store's clock in seconds since the epoch. None where the index stays behind, or the log ends before what it has:
        then the store must be asked about each note. Raises StoreUnavailable."""
        answer = await time_left.wait(asyncio.shield(self._ask()))
        end, key = answer.end, position_key(answer.end.position)
        if key < position_key(answer.asked_at):
            return None
        if key > position_key(self._index.position):
            try:
                await self._index.wait_for(end.position, min(FOLLOW_SECONDS, time_left.seconds))
            except IndexBehind:
                return None
        return end.time

    def _ask(self) -> asyncio.Task[Answer]:
        """Return the task of a question that was not sent yet. It is sent once the one before it was answered: under
        load one question then serves many reads."""
        if self._unsent is None:
            self._unsent = asyncio.create_task(self._read(self._sent), name="read-log-end")
            self._unsent.add_done_callback(_retrieve)
        return self._unsent

    async def _read(self, before: asyncio.Task[Answer] | None) -> Answer:
        if before and not before.done():
            await asyncio.wait({before})
        self._sent, self._unsent = self._unsent, None
        position = self._index.position
        return Answer(await self._store.log_end(), position)


def _retrieve(task: asyncio.Task[Answer]) -> None:
    """Mark a failure as retrieved: those who waited for it may have given up."""
    if not task.cancelled():
        task.exception()
