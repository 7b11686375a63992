"""LiveHashtags: the hashtags that authors gave the notes of an index, by note, by words, and all as a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model.note import Neighbour, Note, Vocabulary, Words
from service.interfaces import StoredNote


class LiveHashtags:
    """Generated hashtags are not among them, or what the model once made up would be known for ever. Like the index
    beside it: changed by one thread."""

    def __init__(self, vocabulary: Vocabulary, words: Words) -> None:
        self.vocabulary = vocabulary
        self._of: dict[str, tuple[str, ...]] = {}
        self._words = words

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        """Add notes, or replace them."""
        for stored in notes:
            note_id, hashtags = stored.note.id, stored.note.hashtags
            if hashtags != self.of(note_id):
                self.remove([note_id])
            if hashtags:
                self._words.add(stored.note)
                if note_id not in self._of:
                    self._of[note_id] = hashtags
                    self.vocabulary.add(hashtags)

    def remove(self, ids: Iterable[str]) -> None:
        """Unknown ids are ignored."""
        for note_id in ids:
            self._words.remove(note_id)
            self.vocabulary.remove(self._of.pop(note_id, ()))

    def by_words(self, note: Note, count: int) -> list[Neighbour]:
        """The notes with hashtags that share the most words with `note`; see Words."""
        return self.tagged(self._words.nearest(note, count))

    def tagged(self, scored: Iterable[tuple[str, float]]) -> list[Neighbour]:
        """Of notes (id, score) those with hashtags, in the same order."""
        return [Neighbour(note_id, score, tags) for note_id, score in scored if (tags := self.of(note_id))]

    def of(self, note_id: str) -> tuple[str, ...]:
        """Of a note; () where it has none or is unknown."""
        return self._of.get(note_id, ())
