"""Hashtags without a language model: copied from the nearest training notes, or the most frequent ones for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from model.evaluation.metrics import Floats
from model.evaluation.ranking import queries_at_once
from model.evaluation.record import HashtagSource
from model.evaluation.system import Retriever
from model.note import Note, hashtag_key

TUNED_NEIGHBOURS, TUNED_POWER = 100, 2.0
"""Number of neighbours, and exponent of their scores, with which copying by TF-IDF has the best F1@3 on validation
notes of microlens50k and of movielens_tmdb (docs/log/hashtags.md#a-copier-with-the-same-care)."""


class CopiedHashtags:
    """Hashtags of a note's nearest `known` notes, ranked by the summed scores of the neighbours that have them.

    Known notes without hashtags are excluded: there is nothing to copy. Among equal scores the smaller id is nearer.
    The defaults, ten neighbours weighted by their scores, are the plain copier; `tuned` is the best on validation.
    """

    def __init__(self, system: Retriever, known: Iterable[Note], neighbours: int = 10, power: float = 1.0) -> None:
        """Copy from `neighbours` notes, each weighted by its score to the `power`."""
        self.name = f"{system.name}, hashtags copied"
        self.source: HashtagSource = "copied"
        self._system = system
        self._known = sorted((note for note in known if note.hashtags), key=lambda note: note.id)
        self._neighbours = neighbours
        self._power = power

    @classmethod
    def tuned(cls, system: Retriever, known: Iterable[Note]) -> CopiedHashtags:
        """Return the copier with TUNED_NEIGHBOURS and TUNED_POWER."""
        copier = cls(system, known, TUNED_NEIGHBOURS, TUNED_POWER)
        copier.source = "copied, tuned"
        return copier

    def hashtags(self, notes: Sequence[Note], count: int) -> list[tuple[str, ...]]:
        """Return at most `count` hashtags for each note, the best first.

        The note's own hashtags are not used, even if it is one of the known notes.
        """
        pool = [*self._known, *(replace(note, hashtags=()) for note in notes)]
        score = self._system.related(pool)
        copied: list[tuple[str, ...]] = []
        size = queries_at_once(len(pool))
        for start in range(0, len(notes), size):
            queries = notes[start : start + size]
            rows = len(self._known) + start + np.arange(len(queries))
            scores = score(rows)[:, : len(self._known)]
            copied += [self._copied(note, row, count) for note, row in zip(queries, scores, strict=True)]
        return copied

    def _copied(self, note: Note, scores: Floats, count: int) -> tuple[str, ...]:
        nearest = np.argsort(-scores, kind="stable")[: self._neighbours + 1]  # one more: the note itself may be known
        others = [row for row in nearest if self._known[row].id != note.id][: self._neighbours]
        weights = [(row, max(float(scores[row]), 0.0) ** self._power) for row in others]
        weighted = ((hashtag, weight) for row, weight in weights for hashtag in self._known[row].hashtags)
        return heaviest(weighted, count)


class FrequentHashtags:
    """The most frequent hashtags of the `known` notes, the same for every note."""

    name = "frequent hashtags"

    def __init__(self, known: Iterable[Note]) -> None:
        self._hashtags = heaviest((hashtag, 1.0) for note in known for hashtag in note.hashtags)

    def hashtags(self, notes: Sequence[Note], count: int) -> list[tuple[str, ...]]:
        """Return at most `count` hashtags for each note, the best first."""
        return [self._hashtags[:count]] * len(notes)


def heaviest(weighted: Iterable[tuple[str, float]], count: int | None = None) -> tuple[str, ...]:
    """Sum the weights of each hashtag and return the `count` heaviest, or all; ties are ordered by key.

    Spellings with the same `hashtag_key` are one hashtag, which keeps its first spelling.
    """
    weights: dict[str, float] = defaultdict(float)
    spellings: dict[str, str] = {}
    for hashtag, weight in weighted:
        key = hashtag_key(hashtag)
        weights[key] += weight
        spellings.setdefault(key, hashtag)
    best = sorted(weights, key=lambda key: (-weights[key], key))[:count]
    return tuple(spellings[key] for key in best)
