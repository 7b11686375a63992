"""Reference for the lexical index that compares notes one by one, and a lexical index addressed by note ids."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from model.hashtags.lexical_index import InvertedLexicalIndex
from model.hashtags.vocabulary import HashtagTrie
from model.note import Note
from model.words import word_hashes


def by_comparing_all(notes: Mapping[str, Note], query: Note) -> list[tuple[str, float]]:
    """Return ids and scores by the formula of `InvertedLexicalIndex.scores`, computed note by note; ties by id."""
    words = word_hashes(query)
    living = {note_id: note for note_id, note in notes.items() if word_hashes(note)}
    counts = {word: sum(word in word_hashes(note) for note in living.values()) for word in words}
    idf_squares = {word: math.log(1 + len(living) / max(1, counts[word])) ** 2 for word in words}
    total = sum(idf_squares.values())
    scores = {}
    for note in living.values():
        note_words = word_hashes(note)
        shared = sum(idf_squares[word] for word in words & note_words)
        if shared and note.id != query.id:
            scores[note.id] = shared / math.sqrt(total * max(total / len(words) * len(note_words), shared))
    return sorted(scores.items(), key=lambda hit: (-round(hit[1], 9), hit[0]))


class NoteIndex:
    """A lexical index of some notes, in segments of `segment_rows` rows."""

    def __init__(self, *notes: Note, segment_rows: int = 4) -> None:
        self.index = InvertedLexicalIndex()
        self._segments = [self.index.begin_segment()]
        self._segment_rows = segment_rows
        self._ids: list[str] = []
        self._row_of: dict[str, int] = {}
        for note in notes:
            self.add(note)

    def add(self, note: Note) -> None:
        self.remove(note.id)
        if len(self._segments[-1]) == self._segment_rows:
            self._segments.append(self.index.begin_segment())
        self._row_of[note.id] = len(self._ids)
        self._ids.append(note.id)
        self.index.add(self.index.words_of(note))

    def remove(self, note_id: str) -> None:
        if (row := self._row_of.pop(note_id, None)) is not None:
            self.index.remove(row)

    def scores(self, query: Note, count: int, ids: Collection[str] = ()) -> dict[str, float]:
        named = [self._row_of[note_id] for note_id in ids if note_id in self._row_of]
        rows, scores = self.index.scores(self.index.words_of(query), count, self._row_of.get(query.id), named)
        assert (np.diff(rows) > 0).all()
        return {self._ids[row]: score for row, score in zip(rows.tolist(), scores.tolist(), strict=True)}

    def nearest(self, query: Note, count: int) -> list[tuple[str, float]]:
        """Return ids and scores of the `count` notes that share the most with `query`, best first, ties by id."""
        return sorted(self.scores(query, count).items(), key=lambda hit: (-hit[1], hit[0]))[:count]


def letter_trie() -> HashtagTrie:
    """Return an empty trie in which a token is a character."""
    return HashtagTrie(lambda hashtags: [list(map(ord, hashtag)) for hashtag in hashtags])
