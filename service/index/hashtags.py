"""LiveHashtags: the hashtags that authors gave the notes of an index, by note, and all together as a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model.note import Vocabulary
from service.interfaces import StoredNote


class LiveHashtags:
    """Generated hashtags are not among them, or what the model once made up would be known for ever. Like the index
    beside it: changed by one thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._of: dict[str, tuple[str, ...]] = {}

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        """Add notes, or replace them."""
        for stored in notes:
            note_id, hashtags = stored.note.id, stored.note.hashtags
            if hashtags != self.of(note_id):
                self.remove([note_id])
                self._of[note_id] = hashtags
                self.vocabulary.add(hashtags)

    def remove(self, ids: Iterable[str]) -> None:
        """Unknown ids are ignored."""
        for note_id in ids:
            self.vocabulary.remove(self._of.pop(note_id, ()))

    def of(self, note_id: str) -> tuple[str, ...]:
        """Of a note; () where it has none or is unknown."""
        return self._of.get(note_id, ())
