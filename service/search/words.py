"""Words as evidence that notes are related: notes that share rare words with the examples come first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.note import Note
from service.filters import Filter
from service.interfaces import NoteIndex
from service.ranking.strategies import Numbers
from service.ranking.words import share_of_weight, word_factor
from service.search.sources import WORDS_POOL_SIZE
from service.search.verified import KEPT_CHARACTERS


def query_note(notes: Sequence[Note]) -> Note:
    """Return one note with the texts of all positive examples: the beginnings of title and content of each, since words
    are read from the first KEPT_CHARACTERS characters of the combined note."""
    max_chars = KEPT_CHARACTERS // len(notes) - 1
    return Note(
        title="\n".join(note.title[:max_chars] for note in notes),
        content="\n".join(note.content[:max_chars] for note in notes),
        hashtags=tuple(dict.fromkeys(hashtag for note in notes for hashtag in note.hashtags)),
    )


class WordEvidence:
    """Evidence by the words that notes share with `note`: a candidate's score is its content score plus a multiple of
    its word score (ranking/words.py). `adaptive`: words have only a share of `weight`, which rises with the best word
    score. `two_sided`: the content scores are those of `best_score`, negated where a negative example is nearer. The
    spread of the scores is then that of their absolute values: the gap between the two signs would widen it."""

    pool_size = WORDS_POOL_SIZE

    def __init__(self, index: NoteIndex, note: Note, weight: float, adaptive: bool, two_sided: bool = False) -> None:
        self._index = index
        self._note = note
        self._weight = weight
        self._adaptive = adaptive
        self._two_sided = two_sided
        self._scores: dict[str, float] = {}
        self._added: dict[str, float] = {}

    async def candidates(self, count: int, where: Filter, known: Sequence[str]) -> list[str]:
        word_scores = await self._index.search_words(self._note, count, where, known)
        self._scores = dict.fromkeys(known, 0.0) | word_scores
        return list(word_scores)

    async def adjust(self, ids: Sequence[str], scores: Numbers) -> Numbers:
        words = await self.scores(ids)
        weight = share_of_weight(words) * self._weight if self._adaptive else self._weight
        content = np.abs(scores) if self._two_sided else scores
        added = word_factor(content, words, weight) * words
        self._added = dict(zip(ids, added.tolist(), strict=True))
        return scores + added

    def added(self, note_id: str) -> float:
        """Return what words added to the score of a note: 0 for one whose score was not adjusted."""
        return self._added.get(note_id, 0.0)

    async def scores(self, ids: Sequence[str]) -> Numbers:
        """Return the word scores of notes, (N,), from 0 to 1."""
        if unknown := [note_id for note_id in ids if note_id not in self._scores]:
            word_scores = await self._index.search_words(self._note, 0, Filter(), unknown)
            self._scores |= dict.fromkeys(unknown, 0.0) | word_scores
        return np.array([self._scores[note_id] for note_id in ids], np.float64)

    async def shared(self, notes: Sequence[Note]) -> list[tuple[str, ...]]:
        """Return the rarest words that each of some notes shares with the examples, the rarest first."""
        return await self._index.shared_words(self._note, notes)
