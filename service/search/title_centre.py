"""TitleCentre: a share of the mean vector of a community's titles, read as texts of their own.

The mean vector of titles alone differs from that of whole notes, so the centre of the index does not serve for them. A
search by a title subtracts a share of the titles' own mean (docs/decisions/0037-centre.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context

import numpy as np
import structlog

from model.note import Note
from service.errors import NoteLLMError
from service.interfaces import NoteIndex, NoteStore
from service.records import Centre, StoredNote, Vector
from service.tasks import cancel_until_done

SAMPLED_TITLES = 256
"""Number of titles that are read for an estimate. With 64 the scores of two samples differ by 0.008, with 256 by
0.003."""
MIN_TITLES = 16
"""Minimum number of titles for a centre: the mean of one or two is mostly their own content."""
READ_BATCH_SIZE = 8
"""Titles that wait for the engine at a time, so that its queue has room for other requests."""
MIN_TITLE_CENTRE_SHIFT = 0.05
"""Distance by which the centre of the index must move before titles are read again. Two estimates of the mean of the
same notes are at most 0.03 apart (service/index/centre.py), and their centres a share of that."""
RETRY_SECONDS = 30.0
"""Pause after an estimate that failed."""
log = structlog.get_logger(__name__)

ReadTexts = Callable[[Sequence[Note]], Awaitable[list[Vector]]]
"""Function that reads texts with the model and returns their vectors, in order."""


class TitleCentre:
    """The centre of one tenant's titles, estimated in the background from a sample of them, and again once the centre
    of the index has moved. `share`: the share of the mean that the model has queries leave out; 0 for no centre."""

    def __init__(self, index: NoteIndex, store: NoteStore, read: ReadTexts, share: float, tenant: str) -> None:
        self._index = index
        self._store = store
        self._read = read
        self._share = share
        self._tenant = tenant
        self._known = Centre()
        self._index_centre: Vector | None = None
        """The centre of the index at the time of the last estimate; None where that had none."""
        self._next_try = 0.0
        self._estimating: asyncio.Task[None] | None = None

    def current(self) -> Centre:
        """Return the last estimate, an empty centre before the first. Begin another estimate where the centre of the
        index has moved since."""
        if self._share and self._estimating is None and self._is_stale() and time.monotonic() >= self._next_try:
            # In a context of its own: the cost of reading titles is not the caller's.
            self._estimating = asyncio.create_task(self._estimate(), name="title-centre", context=Context())
        return self._known

    def _is_stale(self) -> bool:
        now, then = self._index.centre.vector, self._index_centre
        if now is None or then is None:
            return now is not then
        return bool(np.linalg.norm(now - then) > MIN_TITLE_CENTRE_SHIFT)

    async def _estimate(self) -> None:
        """Read a sample of titles. A failure is logged; a search tries again after RETRY_SECONDS."""
        index_centre = self._index.centre.vector
        try:
            self._known = Centre() if index_centre is None else await self._sample_mean()
            self._index_centre = index_centre
        except Exception as error:  # whatever it is: without a pause each search by a title would read them again
            self._next_try = time.monotonic() + RETRY_SECONDS
            unexpected = not isinstance(error, NoteLLMError)
            log.warning("title_centre_failed", detail=str(error), tenant=self._tenant, exc_info=unexpected)
        finally:
            self._estimating = None

    async def _sample_mean(self) -> Centre:
        sample = await self._store.get(await self._index.sampled_ids(SAMPLED_TITLES))
        stored = [one.note for one in sample if isinstance(one, StoredNote)]
        titles = [Note(title=note.title) for note in stored if note.title]
        if len(titles) < MIN_TITLES:
            return Centre()
        vectors: list[Vector] = []
        for begin in range(0, len(titles), READ_BATCH_SIZE):
            vectors += await self._read(titles[begin : begin + READ_BATCH_SIZE])
        return Centre(np.float32(self._share) * np.mean(vectors, axis=0))

    async def stop(self) -> None:
        """End a running estimate, and any that a late search begins meanwhile."""
        while (task := self._estimating) and not task.done():
            await cancel_until_done(task)
