"""LiveHashtags: the hashtags that authors gave the notes of an index, by note, by words, and all as a vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from model.generation import Neighbour, Vocabulary
from model.note import Note
from service.index.packed_strings import packed, unpacked
from service.interfaces import Arrays, LexicalIndex, Part, ReadPart
from service.records import StoredNote

TAGS, WORDS = "hashtags", "words"
"""Parts of a snapshot."""


class LiveHashtags:
    """Generated hashtags are not among them, or what the model once made up would be known for ever. Like the index
    beside it: changed by one thread."""

    def __init__(self, vocabulary: Vocabulary, words: LexicalIndex) -> None:
        self.vocabulary = vocabulary
        self._of: dict[str, tuple[str, ...]] = {}
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
            self._words.add(note)
            self._of[note.id] = note.hashtags

    def remove(self, ids: Iterable[str]) -> None:
        """Unknown ids are ignored."""
        for note_id in ids:
            self._words.remove(note_id)
            self._expires.pop(note_id, None)
            self.vocabulary.remove(self._of.pop(note_id, ()))

    def snapshot_parts(self) -> list[Part]:
        """See VectorIndex."""
        tags, expires = dict(self._of), dict(self._expires)
        worded, words = self._words.snapshot_parts()
        return [
            Part(TAGS, lambda: _packed_tags(tags, expires)),
            Part(WORDS, lambda: {**words, "places": _places_in(tags, worded)}),
        ]

    def restore(self, read: ReadPart) -> None:
        """See VectorIndex."""
        arrays, words = read(TAGS), read(WORDS)
        ids, known, codes = unpacked("ids", arrays), unpacked("tags", arrays), arrays["codes"]
        tags = map(known.__getitem__, codes.tolist())
        self._of = {i: tuple(islice(tags, n)) for i, n in zip(ids, arrays["counts"].tolist(), strict=True)}
        expires = arrays["expires"]
        self._expires = {ids[place]: float(expires[place]) for place in np.flatnonzero(expires < np.inf).tolist()}
        self.vocabulary.add(dict(zip(known, np.bincount(codes, minlength=len(known)).tolist(), strict=True)))
        self._words.restore([ids[place] if place >= 0 else "" for place in words["places"].tolist()], words)

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


def _packed_tags(tags: Mapping[str, tuple[str, ...]], expires: Mapping[str, float]) -> Arrays:
    """By note: its hashtags as numbers of different ones, how many it has, when it expires."""
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(tag, len(numbers)) for each in tags.values() for tag in each]
    return {
        **packed("ids", tags),
        **packed("tags", numbers),
        "codes": np.array(codes, np.int32),
        "counts": np.fromiter(map(len, tags.values()), np.int64, len(tags)),
        "expires": np.array([expires.get(note_id, math.inf) for note_id in tags], np.float64),
    }


def _places_in(tags: Iterable[str], ids: Iterable[str]) -> npt.NDArray[np.int32]:
    """-1 for one that is not there: of a note that is gone."""
    place = {note_id: at for at, note_id in enumerate(tags)}
    return np.array([place.get(note_id, -1) for note_id in ids], np.int32)
