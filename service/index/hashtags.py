"""LiveHashtags: the hashtags that authors gave the notes of an index, by note, by words, and all as a vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from model.note import Neighbour, Note, Vocabulary, Words
from service.interfaces import StoredNote


class LiveHashtags:
    """Generated hashtags are not among them, or what the model once made up would be known for ever. Like the index
    beside it: changed by one thread."""

    def __init__(self, vocabulary: Vocabulary, words: Words) -> None:
        self.vocabulary = vocabulary
        self._of: dict[str, tuple[str, ...]] = {}
        self._text: dict[str, int] = {}
        """Hashes: a note whose text did not change keeps its words."""
        self._expires: dict[str, float] = {}
        """Of those that will."""
        self._words = words

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        """Add notes, or replace them."""
        for stored in notes:
            note = stored.note
            if note.hashtags != self.of(note.id):
                self.remove([note.id])
                self.vocabulary.add(note.hashtags)
            if not note.hashtags:
                continue
            self._expires.pop(note.id, None)
            if note.expires_at is not None:
                self._expires[note.id] = note.expires_at
            if self._text.get(note.id) != (text := hash(note.prompt_text)):
                self._words.add(note)
                self._text[note.id] = text
            self._of[note.id] = note.hashtags

    def remove(self, ids: Iterable[str]) -> None:
        """Unknown ids are ignored."""
        for note_id in ids:
            self._words.remove(note_id)
            self._text.pop(note_id, None)
            self._expires.pop(note_id, None)
            self.vocabulary.remove(self._of.pop(note_id, ()))

    def of(self, note_id: str) -> tuple[str, ...]:
        """Of a note; () where it has none or is unknown."""
        return self._of.get(note_id, ())

    def by_words(self, note: Note, count: int, now: float) -> list[Neighbour]:
        """The notes with hashtags that share the most words with `note`, but for those that have expired; see Words."""
        found = self._words.nearest(note, count)
        return self.tagged((i, score) for i, score in found if self._expires.get(i, math.inf) > now)

    def tagged(self, scored: Iterable[tuple[str, float]]) -> list[Neighbour]:
        """Of notes (id, score) those with hashtags, in the same order."""
        return [Neighbour(note_id, score, tags) for note_id, score in scored if (tags := self.of(note_id))]
