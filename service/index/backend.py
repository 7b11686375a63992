"""Ports of an index: what LiveIndex is made of, and how it is maintained, saved and restored.

Scores are cosines: all vectors have unit length; 1 is the same direction, higher is closer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from model.generation import NamedHashtag
from model.note import Note
from service.filters import Filter
from service.index.bitmaps import Mask, RowNumbers
from service.records import Centre, Hit, IndexRows, PositionKey, StoredNote, Vector


class VectorIndex(Protocol):
    """Rows of one space, searched by inner product. One thread writes; any number search meanwhile."""

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        """Add or replace rows; every note has a vector of the index's dimension."""

    def remove(self, ids: Sequence[str]) -> None:
        """Remove rows; unknown ids are ignored."""

    def expire(self, now: float) -> list[str]:
        """Remove the rows that have expired at `now`, and return their ids."""

    def search(self, vector: Vector, k: int, where: Filter, now: float, recall_k: int | None = None) -> list[Hit]:
        """Return the `k` rows nearest to `vector` among those that pass the filter and have not expired at `now`, best
        first, ties by id; fewer only where fewer pass. Without `where.exact` it may miss some of the nearest. With
        `recall_k` only the nearest `recall_k` rows have the recall of a search for that many; more of the others may be
        missed."""

    def search_rows(
        self, vector: Vector, k: int, where: Filter, now: float, recall_k: int | None = None
    ) -> tuple[list[Hit], IndexRows]:
        """Return what `search` does, and the rows of these notes in the same order."""

    def passing(self, ids: Sequence[str], where: Filter, now: float) -> list[str]:
        """Return those of some ids whose rows pass the filter and have not expired at `now`, in their order. A note
        that gets another vector meanwhile, or moves to another segment, may be left out."""

    def written(
        self, after: PositionKey, until: PositionKey, count: int, where: Filter, now: float
    ) -> dict[str, PositionKey]:
        """Return by id, in order, the first `count` positions after `after`, up to `until`, of rows that pass the
        filter but for `exclude` and have not expired; of one that is replaced meanwhile, any or none."""

    def count(self, where: Filter, now: float) -> int:
        """Return how many rows pass the filter and have not expired at `now`."""

    def vector(self, note_id: str) -> Vector | None:
        """Return a row's vector, bit for bit as it was written."""

    @property
    def centre(self) -> Centre:
        """The share of the rows' mean vector that queries leave out. Each estimate of the mean is a new object."""

    def rows(self, note_ids: Sequence[str]) -> IndexRows:
        """Return those of some notes that the index has, in their order."""

    def ids(self) -> list[str]:
        """Return the ids of all rows, in no order."""

    def sampled_ids(self, count: int) -> list[str]:
        """Return the ids of `count` rows or somewhat more, evenly spread over all; of all where there are fewer."""

    def __len__(self) -> int:
        """Rows that can be found."""

    @property
    def tombstones(self) -> int:
        """Rows that take memory and can never be found."""

    @property
    def segments(self) -> int:
        """Parts that a search goes through."""

    @property
    def shared(self) -> bool:
        """Whether a search may have to wait for another, so that it must not run in the event loop."""


class MaintenanceJob(Protocol):
    """Work that makes an index smaller or faster."""

    @property
    def rows(self) -> int:
        """Rows that the job moves."""

    def run(self) -> None:
        """Do the work, in any thread, while others write and search."""


class Maintainable(Protocol):
    """An object whose segments are merged in the background, one job at a time. The thread that writes calls `plan` and
    `finish`."""

    def plan(self) -> MaintenanceJob | None:
        """Return the next job, None when there is nothing to do."""

    def finish(self, job: Any) -> None:
        """Take in the result of a job that ran."""

    def give_up(self, job: Any) -> None:
        """Put a job that failed after all others."""

    def drop_tombstones(self) -> None:
        """Have the next jobs drop every row that can no longer be found, however few there are, and all that is known
        of their notes."""

    @property
    def dropping(self) -> bool:
        """Whether some of these jobs are left."""


Scores = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a snapshot. `make` returns its arrays as they were when the snapshot was taken; it may be called in
    any thread. An immutable part has the same content whenever it has this name."""

    name: str
    make: Callable[[], Arrays]
    immutable: bool = False


ReadPart = Callable[[str], Arrays]
"""Returns the arrays of a part by its name."""


class Snapshottable(Protocol):
    """State that a snapshot can be made of while others write and search."""

    def snapshot_parts(self) -> list[Part]:
        """Return the state at this moment, in parts. Called by the thread that writes."""

    def restore(self, read: ReadPart) -> None:
        """Take on the state of a snapshot. The object is new and empty."""


class IndexBackend(VectorIndex, Maintainable, Snapshottable, Protocol):
    """A vector index that is kept up to date, maintained, saved and restored: what LiveIndex needs."""


class WordSegment(Protocol):
    """Words of some rows of a LexicalIndex; a segment of these rows. Only the last one of an index grows."""

    def packer(self) -> Callable[[], PackedWords]:
        """Return a call that packs the rows that there are now. It may be called in any thread."""


class PackedWords(WordSegment, Protocol):
    """A segment that never changes."""

    def arrays(self) -> Arrays:
        """Return the segment by the names of its arrays in a snapshot."""


class LexicalIndex(Protocol):
    """Rows found by the words that they share, numbered from 0 on through all segments. One call at a time."""

    def words_of(self, note: Note) -> Collection[int]:
        """Return the words of a note, as a row has them. It may be called in any thread."""

    def add(self, words: Collection[int]) -> None:
        """Add the next row to the segment that was begun last."""

    def remove(self, row: int) -> None:
        """Remove a row; the others keep their numbers."""

    def scores(
        self, words: Collection[int], count: int, own_row: int | None = None, rows: Collection[int] = ()
    ) -> tuple[RowNumbers, Scores]:
        """Return the rows that share the most with `words`, in rising order, and their scores: at least `count` rows
        where so many share any, and those of `rows` that do; never `own_row`. A score is above 0, and 1 where the words
        are the same."""

    def shared_words(self, note: Note, other: Note, count: int) -> tuple[str, ...]:
        """Return up to `count` words that two notes share, the rarest first, without those that are too common to be
        searched."""

    def phrases_of(self, note: Note) -> Mapping[str, tuple[str, ...]]:
        """Return the phrases of a note's text that may be hashtags, by `hashtag_key`, and the words of each. It may be
        called in any thread."""

    def named_hashtags(
        self, phrases: Mapping[str, tuple[str, ...]], uses: Mapping[str, tuple[str, int]], own_row: int | None = None
    ) -> tuple[NamedHashtag, ...]:
        """Return the hashtags that are among `phrases`. `uses`: what Vocabulary.uses says of these. `own_row` does not
        count."""

    def begin_segment(self) -> WordSegment:
        """Have the next rows in a segment of their own, and return it."""

    def joined(self, parts: Sequence[tuple[Any, RowNumbers]]) -> PackedWords:
        """Return some rows of packed segments, those of each in rising order, as one segment. It may be called in any
        thread."""

    def replace(self, sources: Collection[Any], merged: Any | None, alive: Mask) -> None:
        """Put a segment, or none, in the place of the first of its sources. `alive`: which of its rows were not removed
        since."""

    def restore(self, segments: Sequence[tuple[Arrays, Mask]]) -> Sequence[PackedWords]:
        """Take on segments by their arrays and by which of their rows were not removed, and return them."""
