"""The order of the ids as an answer to every query: what the numbering of a data set tells of its notes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.evaluation.ranking import Scorer
from model.note import Note


class OrderOfIds:
    """Ranks the notes of the pool by their ids as texts, the same for every query.

    It reads nothing else. Where it finds much, the numbering follows popularity, and the pairs ask for popular notes.
    """

    name = "by-id"

    def related(self, notes: Sequence[Note]) -> Scorer:
        """Return scores of the pool, a row of equal ones for each query: minus the place of the note's id."""
        by_id = sorted(range(len(notes)), key=lambda row: notes[row].id)
        scores = np.empty(len(notes), np.float32)
        scores[by_id] = -np.arange(len(notes), dtype=np.float32)
        return lambda rows: np.tile(scores, (len(rows), 1))
