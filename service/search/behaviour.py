"""Behaviour as evidence that notes are related: what readers of the examples read after them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.behaviour.co_occurrence import Related
from service.filters import Filter
from service.interfaces import NoteIndex
from service.ranking.strategies import Numbers
from service.search.sources import POOL_SIZE


class BehaviourEvidence:
    """Evidence by the readers of the examples.

        score = content + weight n / (n + kappa)

    with n the readers who read the note after an example, over all examples. A note that nobody read keeps the score of
    its content; the more readers there are, the more they count. `related`: notes read after the examples, the best
    first. `unit`: factor that makes a score comparable with a cosine.
    """

    pool_size = POOL_SIZE

    def __init__(self, related: Sequence[Related], index: NoteIndex, weight: float, kappa: float, unit: float) -> None:
        self._readers = {one.id: one.readers for one in related}
        self._index = index
        self._factor = weight / unit
        self._kappa = kappa
        self._added: dict[str, float] = {}

    async def candidates(self, count: int, where: Filter, known: Sequence[str]) -> list[str]:
        ids = [note_id for note_id in self._readers if note_id not in where.exclude]
        # Behaviour knows ids of notes, neither the fields that a filter tests nor whether a note has expired.
        return (await self._index.passing(ids, where))[:count]

    async def adjust(self, ids: Sequence[str], scores: Numbers) -> Numbers:
        readers = np.array([self.readers(note_id) for note_id in ids], np.float64)
        added = self._factor * readers / (readers + self._kappa)
        self._added = dict(zip(ids, added.tolist(), strict=True))
        return scores + added

    def added(self, note_id: str) -> float:
        """Return what behaviour added to the score of a note: 0 for one whose score was not adjusted."""
        return self._added.get(note_id, 0.0)

    def readers(self, note_id: str) -> float:
        """Return how many readers read a note after an example, each decayed with its age."""
        return self._readers.get(note_id, 0.0)
