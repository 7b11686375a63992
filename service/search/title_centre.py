"""TitleCentre: what the titles of a community's notes have in common, read as texts of their own.

Titles alone lean another way than whole notes do, so that the mean of the notes' vectors says nothing of theirs. A
search by a title leaves out a share of the titles' own mean (docs/decisions/0037-centre.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context

import numpy as np
import structlog

from model.note import Note
from service.errors import NoteLLMError
from service.interfaces import NoteIndex, NoteStore
from service.records import Centre, StoredNote, Vector

SAMPLED_TITLES = 64
"""Titles that are read for a centre. As many as 64 serve as well as 256 (docs/log/distillation.md)."""
log = structlog.get_logger(__name__)

ReadTexts = Callable[[Sequence[Note]], Awaitable[list[Vector]]]
"""Reads texts with the model and returns their vectors, in order."""


class TitleCentre:
    """The centre of one tenant's titles, estimated in the background from a sample of them each time the centre of the
    index has changed. `share`: that of the mean, which is the model's; 0 for no centre."""

    def __init__(self, index: NoteIndex, store: NoteStore, read: ReadTexts, share: float) -> None:
        self._index = index
        self._store = store
        self._read = read
        self._share = share
        self._known = Centre()
        self._known_of: Centre | None = None
        """The centre of the index at the time of the last estimate."""
        self._estimating: asyncio.Task[None] | None = None

    def current(self) -> Centre:
        """Return the last estimate, nothing before the first. Begin another one where the index's centre is not what it
        was then."""
        if self._share and self._index.centre is not self._known_of and self._estimating is None:
            # In a context of its own: what the titles cost is no work of the caller's.
            self._estimating = asyncio.create_task(self._estimate(), name="title-centre", context=Context())
        return self._known

    async def _estimate(self) -> None:
        """Read a sample of titles. A failure is logged; the next search tries again."""
        of = self._index.centre
        try:
            self._known = Centre() if of.vector is None else await self._sample_mean()
            self._known_of = of
        except NoteLLMError as error:
            log.warning("title_centre_failed", detail=str(error))
        finally:
            self._estimating = None

    async def _sample_mean(self) -> Centre:
        found = await self._store.get(await self._index.sampled_ids(SAMPLED_TITLES))
        stored = [one.note for one in found if isinstance(one, StoredNote)]
        titles = [Note(title=note.title) for note in stored if note.title]
        if not titles:
            return Centre()
        vectors = np.stack(await self._read(titles))
        return Centre(np.float32(self._share) * vectors.mean(axis=0))

    async def stop(self) -> None:
        """End an estimate that goes on."""
        if self._estimating:
            self._estimating.cancel()
            await asyncio.wait({self._estimating})
