"""LiveTexts: what the texts of the notes in an index say: the hashtags that authors gave them, by note and as a
vocabulary, and all notes by their words."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from model.generation import Neighbour, Vocabulary
from model.note import Note
from service.index.backend import Arrays, LexicalIndex, Part, ReadPart
from service.index.packed_strings import packed, unpacked
from service.records import StoredNote

HASHTAGS, WORDS = "hashtags", "words"
"""Names of the parts of a snapshot."""
SHARED_WORDS = 5
"""Words that an explanation names."""


class LiveTexts:
    """Author hashtags and words of the notes in an index. One call writes at a time, any thread reads.
    Snapshottable.

    Generated hashtags are left out: else a hashtag that the model once made up would stay in the vocabulary for ever.
    `vocabulary` and `lexical_index` are empty at first.
    """

    def __init__(self, vocabulary: Vocabulary, lexical_index: LexicalIndex) -> None:
        self.vocabulary = vocabulary
        self._lexical_index = lexical_index
        self._by_note: dict[str, tuple[str, ...]] = {}
        """Hashtags of the notes that have some."""
        self._expires: dict[str, float] = {}
        """Time of expiry of the notes that have one."""

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        """Add or replace notes."""
        for stored in notes:
            note = stored.note
            if note.hashtags != self.of(note.id):
                self.vocabulary.remove(self._by_note.pop(note.id, ()))
                self.vocabulary.add(note.hashtags)
                if note.hashtags:
                    self._by_note[note.id] = note.hashtags
            self._expires.pop(note.id, None)
            if note.expires_at is not None:
                self._expires[note.id] = note.expires_at
            self._lexical_index.add(note)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove notes; unknown ids are ignored."""
        for note_id in ids:
            self._lexical_index.remove(note_id)
            self._expires.pop(note_id, None)
            self.vocabulary.remove(self._by_note.pop(note_id, ()))

    def drop_tombstones(self) -> None:
        """Drop all that is known of removed notes."""
        self._lexical_index.drop_tombstones()

    def of(self, note_id: str) -> tuple[str, ...]:
        """Return a note's hashtags; () where it has none or is unknown."""
        return self._by_note.get(note_id, ())

    def with_hashtags(self, scored_ids: Iterable[tuple[str, float]]) -> list[Neighbour]:
        """Return those of some scored notes that have hashtags, in the same order."""
        return [Neighbour(note_id, score, tags) for note_id, score in scored_ids if (tags := self.of(note_id))]

    def by_words(self, note: Note, count: int, now: float) -> list[tuple[str, float]]:
        """Return ids and scores of the `count` notes that share the most words with `note`, best first, ties by id;
        without those that have expired at `now`."""
        return sorted(self.word_scores(note, count, now).items(), key=lambda hit: (-hit[1], hit[0]))

    def word_scores(self, note: Note, count: int, now: float, ids: Collection[str] = ()) -> dict[str, float]:
        """Return by id the scores of the notes that share the most words with `note`, at least `count` where so many
        share any, and of those of `ids` that share any; without those that have expired at `now`."""
        scores = self._lexical_index.scores(note, count, ids)
        if not self._expires:
            return scores
        return {note_id: score for note_id, score in scores.items() if self._expires.get(note_id, math.inf) > now}

    def shared_words(self, note: Note, other: Note) -> tuple[str, ...]:
        """Return the rarest words that two notes share, the rarest first."""
        return self._lexical_index.shared_words(note, other, SHARED_WORDS)

    def snapshot_parts(self) -> list[Part]:
        hashtags, expires = dict(self._by_note), dict(self._expires)
        ids, words = self._lexical_index.snapshot_parts()
        known = list(dict.fromkeys([*hashtags, *expires, *(note_id for note_id in ids if note_id)]))
        return [
            Part(HASHTAGS, lambda: _packed_hashtags(known, hashtags, expires)),
            Part(WORDS, lambda: {**words, "places": _places_in(known, ids)}),
        ]

    def restore(self, read: ReadPart) -> None:
        arrays, words = read(HASHTAGS), read(WORDS)
        ids, distinct, codes = unpacked("ids", arrays), unpacked("tags", arrays), arrays["codes"]
        hashtags = tuple(map(distinct.__getitem__, codes.tolist()))
        ends = np.cumsum([0, *arrays["counts"].tolist()]).tolist()
        spans = zip(ids, pairwise(ends), strict=True)
        self._by_note = {note_id: hashtags[begin:end] for note_id, (begin, end) in spans if end > begin}
        expires = arrays["expires"]
        self._expires = {ids[place]: float(expires[place]) for place in np.flatnonzero(expires < np.inf).tolist()}
        uses = np.bincount(codes, minlength=len(distinct)).tolist()
        self.vocabulary.add(dict(zip(distinct, uses, strict=True)))
        worded_ids = [ids[place] if place >= 0 else "" for place in words["places"].tolist()]
        self._lexical_index.restore(worded_ids, words)


class NoTexts(LiveTexts):
    """Texts of an index that is only asked for vectors: nothing is kept."""

    def __init__(self) -> None:
        """Make no vocabulary and no index of words: nobody may ask for them."""

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        """Do nothing."""

    def remove(self, ids: Iterable[str]) -> None:
        """Do nothing."""

    def drop_tombstones(self) -> None:
        """Do nothing."""

    def snapshot_parts(self) -> list[Part]:
        return []

    def restore(self, read: ReadPart) -> None:
        """Do nothing."""


def _packed_hashtags(
    ids: Sequence[str], hashtags: Mapping[str, tuple[str, ...]], expires: Mapping[str, float]
) -> Arrays:
    """Return the notes' ids, the distinct hashtags, and for each note how many it has, which ones by their numbers, one
    note after the other, and when it expires."""
    numbers: dict[str, int] = {}
    tags = [hashtags.get(note_id, ()) for note_id in ids]
    codes = [numbers.setdefault(hashtag, len(numbers)) for tags_of_note in tags for hashtag in tags_of_note]
    return {
        **packed("ids", ids),
        **packed("tags", numbers),
        "codes": np.array(codes, np.int32),
        "counts": np.fromiter(map(len, tags), np.int64, len(ids)),
        "expires": np.array([expires.get(note_id, math.inf) for note_id in ids], np.float64),
    }


def _places_in(known: Sequence[str], ids: Iterable[str]) -> npt.NDArray[np.int32]:
    """Return the place of each id among the `known` ones, -1 for that of a note that is gone."""
    places = {note_id: place for place, note_id in enumerate(known)}
    return np.array([places.get(note_id, -1) for note_id in ids], np.int32)
