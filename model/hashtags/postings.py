"""Postings: the rows that have each word, for one segment of rows. A segment first grows, and is packed once it no
longer changes.

Words are 32-bit hashes. Rows are numbered from 0 in each segment; packed, each takes 4 bytes for each of its words.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint32]
RowNumbers = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[Any]]


class GrowingPostings:
    """Postings of a segment that grows, row by row."""

    def __init__(self) -> None:
        self._words = array("I")
        """Words of all rows, one row after the other."""
        self._counts = array("I")
        """Number of words of each row."""
        self._rows_by_word: dict[int, array[int]] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, words: Collection[int]) -> None:
        """Add the next row."""
        row = len(self)
        self._counts.append(len(words))
        self._words.extend(words)
        for word in words:
            self._rows_by_word.setdefault(word, array("I")).append(row)

    def rows(self, words: Numbers) -> list[tuple[int, Numbers]]:
        """Return the rows of the words that have some, each as (position in `words`, rows). While this result is
        referenced, its words cannot get further rows."""
        by_word = self._rows_by_word
        return [(place, view(by_word[word])) for place, word in enumerate(words.tolist()) if word in by_word]

    def packer(self) -> Callable[[], PackedPostings]:
        """Return a function that packs the rows added so far."""
        words, counts = np.array(self._words, np.uint32), np.array(self._counts, np.uint32)
        return lambda: PackedPostings.of(words, counts)


class PackedPostings:
    """Immutable postings. `counts`: number of words of each row. `words` (W,) are ascending; word i is in the rows
    `rows[ends[i] : ends[i + 1]]`."""

    def __init__(self, counts: Numbers, words: Numbers, ends: RowNumbers, rows: Numbers) -> None:
        self.counts = counts
        self._words = words
        self._ends = ends
        self._rows = rows

    @classmethod
    def of(cls, words: Numbers, counts: Numbers) -> PackedPostings:
        """Pack rows. `words`: those of all rows, one row after the other. `counts`: number of words of each row."""
        order = np.argsort(words, kind="stable")
        distinct, sizes = np.unique(words, return_counts=True)
        rows = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)
        return cls(counts, distinct, _ends(sizes), rows[order])

    @classmethod
    def restored(cls, arrays: Arrays) -> PackedPostings:
        """Return postings from their `arrays` in a snapshot."""
        return cls(arrays["word_counts"], arrays["words"], arrays["word_ends"], arrays["word_rows"])

    @classmethod
    def joined(cls, parts: Sequence[tuple[PackedPostings, RowNumbers]]) -> PackedPostings:
        """Return some rows of each part, one part after the other. The rows of each part must be ascending.

        All steps are NumPy operations that release the GIL, and take time in proportion to the rows' words.
        """
        counts = np.concatenate([part.counts[rows] for part, rows in parts])
        words, places = np.unique(np.concatenate([part._words for part, _ in parts]), return_inverse=True)
        places_of_parts = np.split(places, np.cumsum([len(part._words) for part, _ in parts])[:-1])
        kept = []
        begin = 0
        for part, rows in parts:
            kept.append(part._renumbered(rows, begin))
            begin += len(rows)
        sizes = np.zeros(len(words), np.int64)
        for own_places, (_, own_sizes) in zip(places_of_parts, kept, strict=True):
            sizes[own_places] += own_sizes
        ends = _ends(sizes)
        filled = ends[:-1].copy()
        joined = np.empty(ends[-1], np.uint32)
        for own_places, (own_rows, own_sizes) in zip(places_of_parts, kept, strict=True):
            joined[_runs(filled[own_places], own_sizes)] = own_rows
            filled[own_places] += own_sizes
        used = sizes > 0
        return cls(counts, words[used], _ends(sizes[used]), joined)

    def _renumbered(self, kept: RowNumbers, begin: int) -> tuple[Numbers, RowNumbers]:
        """Return the rows of all words, restricted to `kept` and renumbered from `begin`, and the number of these rows
        for each word."""
        is_kept = np.zeros(len(self), np.bool_)
        is_kept[kept] = True
        new_row = np.zeros(len(self), np.uint32)
        new_row[kept] = np.arange(begin, begin + len(kept))
        places = np.flatnonzero(is_kept[self._rows])
        sizes = np.diff(places.searchsorted(self._ends))  # a cumulative sum of booleans would hold the GIL
        return new_row[self._rows[places]], sizes

    def __len__(self) -> int:
        return len(self.counts)

    def rows(self, words: Numbers) -> list[tuple[int, Numbers]]:
        """Return the rows of the words that have some, each as (position in `words`, rows)."""
        if not len(self._words):
            return []
        own = self._words.searchsorted(words)
        own[own == len(self._words)] = 0
        places = np.flatnonzero(self._words[own] == words)
        begins, ends = self._ends[own[places]].tolist(), self._ends[own[places] + 1].tolist()
        spans = zip(places.tolist(), begins, ends, strict=True)
        return [(place, self._rows[begin:end]) for place, begin, end in spans]

    def packer(self) -> Callable[[], PackedPostings]:
        """Return a function that returns these postings."""
        return lambda: self

    def arrays(self) -> Arrays:
        """Return the arrays of these postings by their names in a snapshot."""
        return {"word_counts": self.counts, "words": self._words, "word_ends": self._ends, "word_rows": self._rows}


def view(numbers: array[int]) -> Numbers:
    """Return the numbers as an array that shares their memory. `numbers` cannot grow while this array exists."""
    return np.frombuffer(numbers, np.uint32) if numbers else np.zeros(0, np.uint32)


def _ends(sizes: npt.NDArray[Any]) -> RowNumbers:
    """Return the cumulative sums of `sizes`, preceded by 0."""
    ends = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    return ends


def _runs(begins: RowNumbers, sizes: RowNumbers) -> RowNumbers:
    """Return the concatenated ranges of integers with these first numbers and sizes."""
    ends = _ends(sizes)
    return np.repeat(begins - ends[:-1], sizes) + np.arange(ends[-1])
