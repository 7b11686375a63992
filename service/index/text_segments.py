"""Segments of texts: for each note a row with its id, hashtags, expiry and words.

A row never changes. When its note is changed or removed it becomes a tombstone: its entry in `alive` becomes False.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from model.note import Note
from service.index.backend import Arrays, PackedWords, WordSegment
from service.index.bitmaps import Mask, RowNumbers
from service.index.packed_strings import HashedStrings, PackedLists, PackedStrings

Digests = npt.NDArray[np.uint64]
Times = npt.NDArray[np.float64]
"""(N,): seconds since the epoch."""


class TextSegment(ABC):
    """Rows numbered from 0 on. `alive` is False for tombstones, which `dead` counts. `expires` are their times of
    expiry, infinite for none; `digests` are hashes of all that a row is made of. `words` is the same rows' segment in
    the lexical index. `name` is unique, also among segments of other processes."""

    def __init__(self, name: str, alive: Mask, expires: Times, digests: Digests, words: WordSegment) -> None:
        self.name = name
        self.alive = alive
        self.expires = expires
        self.digests = digests
        self.words = words
        self.dead = 0

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows, tombstones included."""

    @abstractmethod
    def row_of(self, note_id: str) -> int | None:
        """Return the living row of a note."""

    @abstractmethod
    def rows_of_ids(self, note_ids: HashedStrings) -> dict[str, int]:
        """Return the living row of each of the notes that has one, by the note's id."""

    @abstractmethod
    def ids_at(self, rows: RowNumbers) -> list[str]:
        """Return the ids of the notes of some rows, in their order."""

    @abstractmethod
    def hashtags(self, row: int) -> tuple[str, ...]:
        """Return the hashtags of a row."""

    @abstractmethod
    def packer(self) -> Callable[[], SealedTexts]:
        """Return a function that packs the present rows into a sealed segment. It may be called in any thread."""

    @property
    def living(self) -> int:
        """Number of rows that are not tombstones."""
        return len(self) - self.dead

    def mark_deleted(self, row: int) -> None:
        """Make a living row a tombstone."""
        self.alive[row] = False
        self.dead += 1


class GrowingTexts(TextSegment):
    """Segment with room for `capacity` rows."""

    def __init__(self, capacity: int, words: WordSegment) -> None:
        expires, digests = np.zeros(capacity), np.zeros(capacity, np.uint64)
        super().__init__(uuid4().hex, np.zeros(capacity, np.bool_), expires, digests, words)
        self._ids: list[str] = []
        self._hashtags: list[tuple[str, ...]] = []
        self._row_of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def full(self) -> bool:
        return len(self) == len(self.alive)

    def row_of(self, note_id: str) -> int | None:
        return self._row_of.get(note_id)

    def rows_of_ids(self, note_ids: HashedStrings) -> dict[str, int]:
        return {note_id: row for note_id in note_ids.texts if (row := self._row_of.get(note_id)) is not None}

    def ids_at(self, rows: RowNumbers) -> list[str]:
        return [self._ids[row] for row in rows.tolist()]

    def hashtags(self, row: int) -> tuple[str, ...]:
        return self._hashtags[row]

    def append(self, note: Note, digest: int) -> None:
        """Append a row. The caller then makes an older row of the note a tombstone."""
        row = len(self)
        self.expires[row] = np.inf if note.expires_at is None else note.expires_at
        self.digests[row] = digest
        self.alive[row] = True
        self._hashtags.append(note.hashtags)
        self._ids.append(note.id)
        self._row_of[note.id] = row

    def mark_deleted(self, row: int) -> None:
        if self._row_of[self._ids[row]] == row:  # else this is the number of the row that replaces it
            del self._row_of[self._ids[row]]
        super().mark_deleted(row)

    def packer(self) -> Callable[[], SealedTexts]:
        rows = len(self)
        hashtags, pack_words = self._hashtags.copy(), self.words.packer()
        alive, expires, digests = self.alive[:rows].copy(), self.expires[:rows].copy(), self.digests[:rows].copy()
        # A tombstone loses its id: a sealed segment finds only one row for each id.
        ids = [note_id if living else "" for note_id, living in zip(self._ids, alive.tolist(), strict=True)]

        def pack() -> SealedTexts:
            packed_ids, tags = PackedStrings.of(ids), PackedLists.of(hashtags)
            return SealedTexts(self.name, alive, expires, digests, pack_words(), packed_ids, tags)

        return pack


class SealedTexts(TextSegment):
    """Segment to which no row is added."""

    words: PackedWords

    def __init__(
        self,
        name: str,
        alive: Mask,
        expires: Times,
        digests: Digests,
        words: PackedWords,
        ids: PackedStrings,
        hashtags: PackedLists,
    ) -> None:
        super().__init__(name, alive, expires, digests, words)
        self.dead = int(len(alive) - np.count_nonzero(alive))
        self._ids = ids
        self._hashtags = hashtags

    @classmethod
    def joined(cls, parts: Sequence[tuple[SealedTexts, RowNumbers]], words: PackedWords) -> SealedTexts:
        """Return some rows of each part, one part after the other. `words`: the segment of these rows in the lexical
        index."""
        return cls(
            uuid4().hex,
            np.ones(sum(len(rows) for _, rows in parts), np.bool_),
            np.concatenate([part.expires[rows] for part, rows in parts]),
            np.concatenate([part.digests[rows] for part, rows in parts]),
            words,
            PackedStrings.joined([part._ids.take(rows) for part, rows in parts]),
            PackedLists.joined([part._hashtags.take(rows) for part, rows in parts]),
        )

    @classmethod
    def restored(cls, name: str, arrays: Arrays, alive: Mask, words: PackedWords) -> SealedTexts:
        """Return the segment that these `arrays` were taken from, with the given living rows and words."""
        ids, hashtags = PackedStrings.restored(arrays), PackedLists.restored("hashtags", arrays)
        return cls(name, alive, arrays["expires"], arrays["digests"], words, ids, hashtags)

    def arrays(self) -> Arrays:
        """Return everything except `alive`, by its name in a snapshot: arrays that never change."""
        columns = {"expires": self.expires, "digests": self.digests}
        return {**columns, **self._ids.arrays(), **self._hashtags.arrays("hashtags"), **self.words.arrays()}

    def __len__(self) -> int:
        return len(self.alive)

    def row_of(self, note_id: str) -> int | None:
        row = self._ids.row(note_id)
        return row if row is not None and self.alive[row] else None

    def rows_of_ids(self, note_ids: HashedStrings) -> dict[str, int]:
        return {note_id: row for note_id, row in self._ids.rows(note_ids).items() if self.alive.item(row)}

    def ids_at(self, rows: RowNumbers) -> list[str]:
        return self._ids.at(rows)

    def hashtags(self, row: int) -> tuple[str, ...]:
        return self._hashtags[row]

    def living_hashtags(self) -> list[str]:
        """Return the hashtags of all living rows, one row after the other."""
        hashtags = self._hashtags.take(np.flatnonzero(self.alive)) if self.dead else self._hashtags
        return hashtags.strings()

    def packer(self) -> Callable[[], SealedTexts]:
        return lambda: self
