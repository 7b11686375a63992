"""LiveHashtags: the hashtags that authors gave the notes of an index, by note, by words, and all as a vocabulary."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from model.note import Neighbour, Note, Vocabulary, Words
from service.index.ids import packed, unpacked
from service.interfaces import Part, ReadPart, StoredNote

TAGS, WORDS = "hashtags", "words"
"""Parts of a snapshot."""


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
            if self._text.get(note.id) != (text := _digest(note.prompt_text)):
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

    def freeze(self) -> list[Part]:
        """See VectorIndex."""
        tags, texts, expires = dict(self._of), dict(self._text), dict(self._expires)
        ids, words = self._words.freeze()
        return [
            Part(
                TAGS,
                lambda: {
                    **packed("ids", tags),
                    **packed("tags", (tag for each in tags.values() for tag in each)),
                    "counts": np.fromiter(map(len, tags.values()), np.int64, len(tags)),
                    "texts": np.array([texts[note_id] for note_id in tags], np.uint64),
                    "expires": np.array([expires.get(note_id, math.inf) for note_id in tags], np.float64),
                },
            ),
            Part(WORDS, lambda: {**packed("ids", ids), **words}),
        ]

    def thaw(self, read: ReadPart) -> None:
        """See VectorIndex."""
        arrays = read(TAGS)
        ids, tags = unpacked("ids", arrays), iter(unpacked("tags", arrays))
        self._of = {i: tuple(islice(tags, n)) for i, n in zip(ids, arrays["counts"].tolist(), strict=True)}
        self._text = dict(zip(ids, arrays["texts"].tolist(), strict=True))
        expires = zip(ids, arrays["expires"].tolist(), strict=True)
        self._expires = {note_id: at for note_id, at in expires if at < math.inf}
        self.vocabulary.add(tag for each in self._of.values() for tag in each)
        words = read(WORDS)
        self._words.thaw(unpacked("ids", words), words)

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


def _digest(of: object) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(of).encode(), digest_size=8).digest())
