"""Interfaces of an index: the parts of LiveIndex, and how they are maintained, saved and restored.

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
    """Rows of one vector space, searched by inner product. One thread writes while any number search."""

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        """Add or replace rows; every note has a vector of the index's dimension."""

    def remove(self, ids: Sequence[str]) -> None:
        """Remove rows; unknown ids are ignored."""

    def expire(self, now: float) -> list[str]:
        """Remove the rows that have expired at `now`, and return their ids."""

    def search(self, vector: Vector, k: int, where: Filter, now: float, recall_k: int | None = None) -> list[Hit]:
        """Return the `k` rows nearest to `vector` among those that pass the filter and have not expired at `now`, best
        first, ties by id; fewer only where fewer pass. Without `where.exact` it may miss some of the nearest.
        `recall_k`: only this many of them have the recall that a search promises (probing.RECALL), and more of the
        others may be missed; None: all `k`."""

    def search_rows(
        self, vector: Vector, k: int, where: Filter, now: float, recall_k: int | None = None
    ) -> tuple[list[Hit], IndexRows]:
        """Return what `search` does, and the rows of these notes in the same order."""

    def passing(self, ids: Sequence[str], where: Filter, now: float) -> list[str]:
        """Return those of `ids` whose rows pass the filter and have not expired at `now`, in the order of `ids`. A note
        that gets another vector meanwhile, or moves to another segment, may be left out."""

    def written(
        self, after: PositionKey, until: PositionKey, count: int, where: Filter, now: float
    ) -> dict[str, PositionKey]:
        """Return, by id and in ascending order, the log positions of the first `count` rows that were written after
        `after` and up to `until`, pass the filter (its `exclude` is ignored) and have not expired. A note that is
        replaced meanwhile may have any of its positions, or be missing."""

    def count(self, where: Filter, now: float) -> int:
        """Return how many rows pass the filter and have not expired at `now`."""

    def vector(self, note_id: str) -> Vector | None:
        """Return a note's vector, bit for bit as it was written; None for an unknown id."""

    @property
    def centre(self) -> Centre:
        """The share of the rows' mean vector that is subtracted from queries. Each estimate of the mean is a new
        object."""

    def rows(self, note_ids: Sequence[str]) -> IndexRows:
        """Return the rows of those notes that the index has, in the order of `note_ids`."""

    def ids(self) -> list[str]:
        """Return the ids of all rows, in no order."""

    def sampled_ids(self, count: int) -> list[str]:
        """Return the ids of `count` rows or somewhat more, evenly spread over the index; all ids where there are
        fewer."""

    def __len__(self) -> int:
        """Number of rows that can be found."""

    @property
    def tombstones(self) -> int:
        """Number of rows that still take memory but can never be found."""

    @property
    def segments(self) -> int:
        """Number of segments that a search goes through."""

    @property
    def shared(self) -> bool:
        """Whether a search may have to wait for another, so that it must not run in the event loop."""


class MaintenanceJob(Protocol):
    """Work that makes an index smaller or faster."""

    @property
    def rows(self) -> int:
        """Number of rows that the job moves."""

    def run(self) -> None:
        """Do the work, in any thread, while others write and search."""


class Maintainable(Protocol):
    """An object whose segments are merged in the background, one job at a time. The thread that writes calls `plan` and
    `finish`."""

    def plan(self) -> MaintenanceJob | None:
        """Return the next job, None when there is nothing to do."""

    def finish(self, job: Any) -> None:
        """Put the result of a finished job in place."""

    def give_up(self, job: Any) -> None:
        """Postpone a failed job until no other is left."""

    def drop_tombstones(self) -> None:
        """Make the next jobs drop every tombstone, however few there are, and all data about their notes."""

    @property
    def dropping(self) -> bool:
        """Whether jobs that `drop_tombstones` requested are left."""


Scores = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a snapshot. `make` returns its arrays as they were when the snapshot was taken; it may be called in
    any thread. An immutable part never changes: later snapshots with a part of this name reuse its file."""

    name: str
    make: Callable[[], Arrays]
    immutable: bool = False


ReadPart = Callable[[str], Arrays]
"""Function that returns the arrays of a part, given the part's name."""


class Snapshottable(Protocol):
    """State that can be saved in a snapshot while others write and search."""

    def snapshot_parts(self) -> list[Part]:
        """Return the current state in parts. Called by the thread that writes."""

    def restore(self, read: ReadPart) -> None:
        """Load the state of a snapshot into this object, which is new and empty."""


class IndexBackend(VectorIndex, Maintainable, Snapshottable, Protocol):
    """A vector index that is kept up to date, maintained, saved and restored: what LiveIndex needs."""


class WordSegment(Protocol):
    """Segment of a LexicalIndex: the words of some of its rows. Only the last segment of an index grows."""

    def packer(self) -> Callable[[], PackedWords]:
        """Return a function that packs the present rows. It may be called in any thread."""


class PackedWords(WordSegment, Protocol):
    """An immutable segment."""

    def arrays(self) -> Arrays:
        """Return the segment's arrays by their names in a snapshot."""


class LexicalIndex(Protocol):
    """Index that finds rows by the words they share with a query. Rows are numbered from 0 across all segments. One
    call at a time."""

    def words_of(self, note: Note) -> Collection[int]:
        """Return the words of a note in the form in which rows store them. It may be called in any thread."""

    def add(self, words: Collection[int]) -> None:
        """Append a row to the segment that was begun last."""

    def remove(self, row: int) -> None:
        """Remove a row; the others keep their numbers."""

    def scores(
        self, words: Collection[int], count: int, own_row: int | None = None, rows: Collection[int] = ()
    ) -> tuple[RowNumbers, Scores]:
        """Return the rows that share the most with `words`, in ascending order, and their scores: at least `count` rows
        where that many share any word, and those of `rows` that share any; never `own_row`. A score is above 0, and 1
        where the words are the same."""

    def shared_words(self, note: Note, others: Sequence[Note]) -> list[frozenset[str]]:
        """Return the words that each of `others` shares with `note`. It may be called in any thread."""

    def rarest(self, words: Collection[str], count: int) -> tuple[str, ...]:
        """Return up to `count` of `words`, the rarest first; words too common to be searched are left out."""

    def phrases_of(self, note: Note) -> Mapping[str, tuple[str, ...]]:
        """Return the phrases of a note's text that may be hashtags: the words of each, by its `hashtag_key`. It may be
        called in any thread."""

    def named_hashtags(
        self, phrases: Mapping[str, tuple[str, ...]], uses: Mapping[str, tuple[str, int]], own_row: int | None = None
    ) -> tuple[NamedHashtag, ...]:
        """Return the hashtags that are among `phrases`. `uses`: what Vocabulary.uses returns for these phrases.
        `own_row` is not counted among the notes that have a word."""

    def begin_segment(self) -> WordSegment:
        """Begin a new segment for the next rows, and return it."""

    def joined(self, parts: Sequence[tuple[Any, RowNumbers]]) -> PackedWords:
        """Return one segment of some rows of packed segments; the row numbers of each part are ascending. It may be
        called in any thread."""

    def replace(self, sources: Collection[Any], merged: Any | None, alive: Mask) -> None:
        """Replace the source segments by the merged one (None: by nothing), at the place of the first source. `alive`:
        which of the merged rows have not been removed since."""

    def restore(self, segments: Sequence[tuple[Arrays, Mask]]) -> Sequence[PackedWords]:
        """Load segments from their arrays and the masks of their living rows, and return them."""
