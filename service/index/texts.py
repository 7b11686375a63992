"""LiveTexts: the author hashtags of the notes in an index, by note and as a vocabulary, and a lexical index of all
notes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from threading import Lock
from uuid import uuid4

import numpy as np

from model.generation import NamedHashtag, Neighbour, Vocabulary
from model.note import Note
from service.index.backend import LexicalIndex, Part, ReadPart
from service.index.bitmaps import RowNumbers
from service.index.merging import MergePlanner, groups_of_one_size
from service.index.packed_strings import HashedStrings, packed, unpacked
from service.index.text_segments import GrowingTexts, SealedTexts, TextSegment
from service.records import StoredNote

GROWING_ROWS = 4096
"""Capacity of a growing segment, whose rows are Python objects and are packed anew for each snapshot."""
SEGMENTS, PREFIX, GROWING = "texts", "texts-", "head"
"""Names of the parts of a snapshot. After the prefix, each sealed segment has its own name, and all growing segments
together have one."""
SHARED_WORDS = 5
"""Maximum number of words that an explanation names."""


@dataclass(slots=True, eq=False)
class TextMergeJob:
    """Merge of segments: their living rows, numbered in `kept`, become one sealed segment. `run` sets `merged`, which
    stays None where there are no rows."""

    sources: Sequence[TextSegment]
    kept: Sequence[RowNumbers]
    join: Callable[[], SealedTexts]
    merged: SealedTexts | None = field(default=None)

    @property
    def rows(self) -> int:
        return sum(map(len, self.kept))

    def run(self) -> None:
        if self.rows:
            self.merged = self.join()


class LiveTexts:
    """Author hashtags and words of the notes in an index. One call writes at a time, any thread reads. Maintainable and
    Snapshottable like a SegmentedIndex: it has segments that are merged, and whose rows only become tombstones.

    Generated hashtags are left out: else a hashtag that the model once made up would stay in the vocabulary for ever.
    `vocabulary` and `lexical_index` are empty at first. `growing_rows` is the capacity of a growing segment.
    """

    def __init__(self, vocabulary: Vocabulary, lexical_index: LexicalIndex, growing_rows: int = GROWING_ROWS) -> None:
        self.vocabulary = vocabulary
        self._lexical_index = lexical_index
        self._growing_rows = growing_rows
        self._lock = Lock()
        """Held by each search, and by each change of the segments' rows or of the list of segments."""
        self._segments: list[TextSegment] = []
        """All segments, those of the lexical index in the same order; the last one grows."""
        self._merges = MergePlanner[TextSegment]()
        self._begin_segment()

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        """Add or replace notes. One whose texts and expiry did not change keeps its row."""
        for stored in notes:
            note, digest = stored.note, _digest(stored.note)
            old = self._place_of(note.id)
            if old and old.segment.digests[old.row] == digest:
                continue
            self._count_hashtags(old, note.hashtags)
            words = self._lexical_index.words_of(note)
            with self._lock:
                growing = self._segments[-1]
                assert isinstance(growing, GrowingTexts)
                if growing.full:
                    growing = self._begin_segment()
                growing.append(note, digest)
                self._lexical_index.add(words)
                self._mark_deleted(old)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove notes; unknown ids are ignored."""
        for note_id in ids:
            if old := self._place_of(note_id):
                self._count_hashtags(old, ())
                with self._lock:
                    self._mark_deleted(old)

    def _count_hashtags(self, old: _Place | None, hashtags: tuple[str, ...]) -> None:
        """Replace the old hashtags of a note by the new ones in the vocabulary's counts."""
        old_hashtags = old.segment.hashtags(old.row) if old else ()
        if hashtags != old_hashtags:
            self.vocabulary.remove(old_hashtags)
            self.vocabulary.add(hashtags)

    def _mark_deleted(self, place: _Place | None) -> None:
        if place:
            place.segment.mark_deleted(place.row)
            self._lexical_index.remove(place.begin + place.row)

    def _begin_segment(self) -> GrowingTexts:
        words = self._lexical_index.begin_segment()
        growing = GrowingTexts(self._growing_rows, words)
        self._segments.append(growing)
        return growing

    def with_hashtags(self, scored_ids: Iterable[tuple[str, float]]) -> list[Neighbour]:
        """Return those of some scored notes that have hashtags, in the same order; each hashtag in its most frequent
        spelling."""
        scores = dict(scored_ids)
        hashtags, spell = self._hashtags_of(scores), self.vocabulary.common_spelling
        return [
            Neighbour(note_id, score, tuple(map(spell, tags)))
            for note_id, score in scores.items()
            if (tags := hashtags.get(note_id))
        ]

    def _hashtags_of(self, ids: Collection[str]) -> dict[str, tuple[str, ...]]:
        hashed = HashedStrings.of(ids)
        with self._lock:
            return {
                note_id: segment.hashtags(row)
                for segment in self._segments
                for note_id, row in segment.rows_of_ids(hashed).items()
            }

    def by_words(self, note: Note, count: int, now: float) -> list[tuple[str, float]]:
        """Return ids and scores of the `count` notes that share the most words with `note`, best first, ties by id;
        without those that have expired at `now`."""
        return sorted(self.word_scores(note, count, now).items(), key=lambda hit: (-hit[1], hit[0]))

    def word_scores(self, note: Note, count: int, now: float, ids: Collection[str] = ()) -> dict[str, float]:
        """Return by id the scores of the notes that share the most words with `note`, at least `count` where that many
        share any, and of those of `ids` that share any; never of the note with its own id, and without those that have
        expired at `now`. A score is above 0, and 1 where the words are the same."""
        words, hashed = self._lexical_index.words_of(note), HashedStrings.of(ids)
        scores_by_id: dict[str, float] = {}
        with self._lock:
            own, named = self._place_of(note.id), list[int]()
            if ids:
                named = [b + row for b, segment in self._places() for row in segment.rows_of_ids(hashed).values()]
            rows, scores = self._lexical_index.scores(words, count, own.begin + own.row if own else None, named)
            begins, segments = zip(*self._places(), strict=True)
            bounds = pairwise([*rows.searchsorted(begins).tolist(), len(rows)])
            for begin, segment, (first, end) in zip(begins, segments, bounds, strict=True):
                if first < end:
                    own_rows, own_scores = rows[first:end] - begin, scores[first:end]
                    kept = segment.expires[own_rows] > now
                    scores_by_id |= zip(segment.ids_at(own_rows[kept]), own_scores[kept].tolist(), strict=True)
        return scores_by_id

    def shared_words(self, note: Note, others: Sequence[Note]) -> list[tuple[str, ...]]:
        """Return the rarest words that each of `others` shares with `note`, the rarest first."""
        rarest = list[tuple[str, ...]]()
        for shared in self._lexical_index.shared_words(note, others):
            with self._lock:  # for each note anew: a thousand would keep other searches waiting
                rarest.append(self._lexical_index.rarest(shared, SHARED_WORDS))
        return rarest

    def named_hashtags(self, note: Note) -> tuple[NamedHashtag, ...]:
        """Return the hashtags of other notes that the text of `note` names."""
        phrases = self._lexical_index.phrases_of(note)
        with self._lock:
            own = self._place_of(note.id)
            row, hashtags = (own.begin + own.row, own.segment.hashtags(own.row)) if own else (None, ())
            return self._lexical_index.named_hashtags(phrases, self.vocabulary.uses(phrases, hashtags), row)

    def _places(self) -> Iterator[tuple[int, TextSegment]]:
        """Yield the number of each segment's first row in the lexical index, and the segment."""
        return zip(accumulate(map(len, self._segments), initial=0), self._segments, strict=False)

    def _place_of(self, note_id: str) -> _Place | None:
        for begin, segment in self._places():
            if (row := segment.row_of(note_id)) is not None:
                return _Place(begin, segment, row)
        return None

    def plan(self) -> TextMergeJob | None:
        """Return the next merge: a segment with many tombstones first, then full ones of one size, the smallest
        first."""
        candidates = self._merges.candidates(self._segments)
        sources = self._merges.choose(candidates, groups_of_one_size(candidates, self._growing_rows))
        if not sources:
            return None
        kept = [np.flatnonzero(source.alive[: len(source)]) for source in sources]
        return TextMergeJob(sources, kept, self._joiner(sources, kept))

    def finish(self, job: TextMergeJob) -> None:
        """Put the merged segment in the place of its sources. Rows that became tombstones since the plan are tombstones
        in it too."""
        alive = np.concatenate([source.alive[rows] for source, rows in zip(job.sources, job.kept, strict=True)])
        merged, words = list[TextSegment](), None
        if job.merged is not None:
            job.merged.alive, job.merged.dead = alive, int(np.count_nonzero(~alive))
            merged, words = [job.merged], job.merged.words
        place = min(map(self._segments.index, job.sources))
        kept = [segment for segment in self._segments if segment not in job.sources]
        with self._lock:
            self._lexical_index.replace([source.words for source in job.sources], words, alive)
            self._segments = [*kept[:place], *merged, *kept[place:]]
        self._merges.finish(job.sources, merged)

    def give_up(self, job: TextMergeJob) -> None:
        self._merges.give_up(job.sources)

    def drop_tombstones(self) -> None:
        if self._segments[-1].dead:
            with self._lock:
                self._begin_segment()
        self._merges.drop_tombstones(self._segments)

    @property
    def dropping(self) -> bool:
        return self._merges.dropping

    def _joiner(self, sources: Sequence[TextSegment], kept: Sequence[RowNumbers]) -> Callable[[], SealedTexts]:
        """Return a function that makes one sealed segment of the `kept` rows of `sources`, as they are now. It may be
        called in any thread."""
        packers, lexical_index = [source.packer() for source in sources], self._lexical_index

        def join() -> SealedTexts:
            parts = [(pack(), rows) for pack, rows in zip(packers, kept, strict=True)]
            return SealedTexts.joined(parts, lexical_index.joined([(part.words, rows) for part, rows in parts]))

        return join

    def snapshot_parts(self) -> list[Part]:
        """Return the state in parts, of which those of sealed segments are immutable. The growing segments are one
        part, in the form of a sealed segment."""
        sealed = [segment for segment in self._segments if isinstance(segment, SealedTexts)]
        growing = [segment for segment in self._segments if isinstance(segment, GrowingTexts)]
        join = self._joiner(growing, [np.arange(len(segment)) for segment in growing])
        alive = {segment.name: np.packbits(segment.alive) for segment in sealed}
        alive[GROWING] = np.packbits(np.concatenate([segment.alive[: len(segment)] for segment in growing]))
        return [
            Part(SEGMENTS, lambda: {**packed("names", alive), **alive}),
            Part(PREFIX + GROWING, lambda: join().arrays()),
            *(Part(PREFIX + segment.name, segment.arrays, immutable=True) for segment in sealed),
        ]

    def restore(self, read: ReadPart) -> None:
        segments = read(SEGMENTS)
        parts = {name: read(PREFIX + name) for name in unpacked("names", segments)}
        names = [uuid4().hex if name == GROWING else name for name in parts]
        alive = [
            np.unpackbits(segments[name], count=len(arrays["expires"])).astype(np.bool_)
            for name, arrays in parts.items()
        ]
        arrays = list(parts.values())
        words = self._lexical_index.restore(list(zip(arrays, alive, strict=True)))
        sealed = list(map(SealedTexts.restored, names, arrays, alive, words))
        self._segments = [*sealed]
        self._begin_segment()
        uses: Counter[str] = Counter()
        for segment in sealed:
            uses.update(segment.living_hashtags())
        self.vocabulary.add(uses)


@dataclass(frozen=True, slots=True)
class _Place:
    """Place of a note: a row of a segment, and the number of the segment's first row in the lexical index."""

    begin: int
    segment: TextSegment
    row: int


class NoTexts(LiveTexts):
    """Texts of an index that only serves vectors: nothing is kept."""

    def __init__(self) -> None:
        """Make no vocabulary and no index of words: they must not be used."""

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        """Do nothing."""

    def remove(self, ids: Iterable[str]) -> None:
        """Do nothing."""

    def plan(self) -> None:
        """Return None: there is nothing to do."""

    def drop_tombstones(self) -> None:
        """Do nothing."""

    @property
    def dropping(self) -> bool:
        return False

    def snapshot_parts(self) -> list[Part]:
        return []

    def restore(self, read: ReadPart) -> None:
        """Do nothing."""


def _digest(note: Note) -> int:
    """Return a 64-bit hash of all that a row is made of; unlike hash(), it is the same in every process."""
    content = repr((note.prompt_text, note.expires_at))
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest())
