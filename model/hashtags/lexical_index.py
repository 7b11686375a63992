"""InvertedLexicalIndex: notes found by the words that they share.

It complements the vectors, which are close for notes that the same people read: notes with the same words are by people
who use the same hashtags (docs/decisions/0010-hashtags.md).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from model.generation import NamedHashtag
from model.hashtags.postings import Arrays, GrowingPostings, Numbers, PackedPostings, RowNumbers, view
from model.note import Note
from model.words import phrases_of, word_hash, word_hashes, words_of

COMMON_SHARE = 0.1
"""A word in more than this share of all notes, and in more than COMMON_NOTES, is not searched: it discriminates little,
and its rows cost the most."""
COMMON_NOTES = 1000
"""Number of notes up to which no word is too common to search."""
MAX_ROWS = 200_000
"""Maximum rows read by one search, those of its rarest words first; this many take 1 to 2 ms."""
FIRST_ROWS, MORE_ROWS = 32, 4
"""Rows of the rarest words that are scored first, for each requested note, and the factor by which their number grows
while they give too few scores. A row counts once for each word that it shares."""
ROUNDING = 1e-5
"""Maximum relative error of sums and bounds, which are float32."""
MIN_BOUND = 1e-6
"""Rows with a smaller bound are skipped: the note's own row, whose sum is set to 0, and removed rows, whose scale is
0."""
_Piece = tuple[int, Numbers]
"""Number of a segment's first row, and the rows of that segment that have a word."""


@dataclass(frozen=True, slots=True)
class _SummedRows:
    """Rows (P,) of the words of a search, the rarest word's first. A row occurs once for each of the words that it has.
    `sizes` and `idf_squares`: number of rows, and idf^2, of each word."""

    rows: RowNumbers
    sizes: Sequence[int]
    idf_squares: Sequence[np.float32]

    @property
    def total(self) -> float:
        """Sum of idf^2, in float32 as are the sums of rows, so that equal texts score 1."""
        return float(sum(self.idf_squares, np.float32(0)))

    def end(self, least_bound: float) -> int:
        """Return the length of a prefix of `rows` that has every row whose bound s / sqrt(n') can reach `least_bound`.

        A row that occurs only after this prefix shares only the most common words; one that shares j words has n' of j
        or more.
        """
        end = len(self.rows)
        for first in reversed(range(len(self.sizes))):
            sums = accumulate(sorted(map(float, self.idf_squares[first:]), reverse=True))
            if max(s / math.sqrt(shared) for shared, s in enumerate(sums, 1)) >= least_bound:
                break
            end -= self.sizes[first]
        return end


class InvertedLexicalIndex:
    """An inverted index from words to rows; the port `LexicalIndex` of service/index/backend.py. Not thread-safe,
    except `words_of`, `phrases_of`, `shared_words` and `joined`.

    A row is a text as it was added. Rows are numbered from 0 through all segments, of which only the last one grows.
    Replacing segments renumbers the rows.
    """

    def __init__(self) -> None:
        self._segments: list[GrowingPostings | PackedPostings] = []
        self._counts = array("I")
        """Number of words of each row; 0 where it was removed."""
        self._scales = array("f")
        """1 / sqrt(number of words) of each row; 0 where it was removed."""
        self._sums = np.zeros(0, np.float32)
        """Sums of idf^2 by row during a search; all 0 between searches."""
        self._living = 0

    def __len__(self) -> int:
        """Number of rows that have words and were not removed."""
        return self._living

    @staticmethod
    def words_of(note: Note) -> frozenset[int]:
        """Return the hashes of the words of a note, as `add` takes them."""
        return word_hashes(note)

    def add(self, words: Collection[int]) -> None:
        """Append a row to the last segment, which must be growing. A row without words is never found."""
        growing = self._segments[-1]
        assert isinstance(growing, GrowingPostings)
        growing.add(words)
        self._counts.append(len(words))
        self._scales.append(len(words) ** -0.5 if words else 0.0)
        self._living += bool(words)

    def remove(self, row: int) -> None:
        """Mark a row as removed. Row numbers do not change."""
        self._living -= bool(self._counts[row])
        self._counts[row], self._scales[row] = 0, 0.0

    def begin_segment(self) -> GrowingPostings:
        """Begin a new segment, to which the next rows are added, and return it."""
        growing = GrowingPostings()
        self._segments.append(growing)
        return growing

    def joined(self, parts: Sequence[tuple[PackedPostings, RowNumbers]]) -> PackedPostings:
        """Return some rows of packed segments as one segment. Thread-safe."""
        return PackedPostings.joined(parts)

    def replace(
        self,
        sources: Collection[GrowingPostings | PackedPostings],
        merged: PackedPostings | None,
        alive: npt.NDArray[np.bool_],
    ) -> None:
        """Replace `sources` by `merged`, in the place of the first of them, or remove them if it is None. `alive`:
        which rows of `merged` were not removed since."""
        begins = _begins(self._segments)
        places = [place for place, segment in enumerate(self._segments) if any(segment is each for each in sources)]
        for place in reversed(places):
            rows = slice(begins[place], begins[place + 1])
            self._living -= int(np.count_nonzero(self._counts[rows]))
            del self._segments[place], self._counts[rows], self._scales[rows]
        if merged is not None:
            counts = np.where(alive, merged.counts, 0).astype(np.uint32)
            begin = begins[places[0]]
            self._segments.insert(places[0], merged)
            self._counts[begin:begin], self._scales[begin:begin] = array("I", counts.tobytes()), _scales(counts)
            self._living += int(np.count_nonzero(counts))

    def restore(self, segments: Sequence[tuple[Arrays, npt.NDArray[np.bool_]]]) -> list[PackedPostings]:
        """Replace the content by the packed segments of a snapshot, and return them. Each is given by its arrays and by
        which of its rows were not removed."""
        packed = [PackedPostings.restored(arrays) for arrays, _ in segments]
        self._segments = list(packed)
        counts = [np.where(alive, part.counts, 0) for part, (_, alive) in zip(packed, segments, strict=True)]
        joined = np.concatenate([np.zeros(0, np.uint32), *counts], dtype=np.uint32)
        self._counts, self._scales = array("I", joined.tobytes()), _scales(joined)
        self._living = int(np.count_nonzero(joined))
        return packed

    def scores(
        self, words: Collection[int], count: int, own_row: int | None = None, rows: Collection[int] = ()
    ) -> tuple[RowNumbers, npt.NDArray[np.float64]]:
        """Return the rows with the best scores for `words`, in ascending order, and these scores: at least `count` rows
        if that many share a word, and also those of `rows` that share one. `own_row` is left out.

            score = s / sqrt(m n max(m n', s)),    s = sum of idf(w)^2 over shared words w,
            idf(w) = log(1 + rows / rows with w)

        where n is the number of `words`, m the sum of idf^2 of those that are searched divided by n, and n' the number
        of words of the row. This is the cosine of TF-IDF (Salton and Buckley 1988) with each word counted once, where
        the words of a row are assumed to be as rare as `words`, or as those that both share. So only n' has to be
        stored for each row.
        """
        summed = self._sum_up(words)
        if not summed.total:  # no word is searched: the formula is undefined
            return np.zeros(0, np.int64), np.zeros(0)
        if own_row is not None:
            self._sums[own_row] = 0
        mean = summed.total / len(words)
        best = self._best(summed, mean, count)
        if rows:
            named = np.fromiter(rows, np.int64, len(rows))
            best = np.union1d(best, named[self._sums[named] > 0])
        scores = self._scores(best, summed.total, mean)
        self._sums[summed.rows] = 0
        return best, scores

    def _sum_up(self, words: Collection[int]) -> _SummedRows:
        """Add the idf^2 of each word that is searched to the sums of its rows, and return these rows.

        Words that no row has come first, as the rarest; words that are too common, or beyond MAX_ROWS, are not
        searched. Removed rows are included, but do not count for idf.
        """
        most, rows_left = max(COMMON_NOTES, COMMON_SHARE * len(self)), MAX_ROWS
        searched, sizes = list[_Piece](), list[int]()
        for pieces in self._pieces_by_word(words):
            size = _size(pieces)
            rows_left -= size
            if rows_left < 0:
                break
            if size <= most or self._living_rows(pieces) <= most:
                searched += pieces
                sizes.append(size)
        begins = np.array([begin for begin, _ in searched], np.uint32)
        numbers = np.concatenate([np.zeros(0, np.uint32), *(rows for _, rows in searched)])
        rows = (numbers + np.repeat(begins, [len(rows) for _, rows in searched])).astype(np.int64)
        living = np.array(sizes, np.int64)
        if self._living < len(self._counts):
            living_before = np.concatenate([[0], np.cumsum(view(self._counts)[rows] > 0)])
            living = np.diff(living_before[[0, *accumulate(sizes)]])
        idf_squares = [np.float32(math.log1p(len(self) / max(1, number)) ** 2) for number in living.tolist()]
        if len(self._sums) < len(self._counts):
            self._sums = np.zeros(2 * len(self._counts), np.float32)
        np.add.at(self._sums, rows, np.repeat(np.array(idf_squares, np.float32), sizes))
        return _SummedRows(rows, sizes, idf_squares)

    def _pieces_by_word(self, words: Collection[int]) -> list[list[_Piece]]:
        """Return the rows of each word, the rarest word's first, ties by the word. The caller must not keep them: while
        they exist, the postings of a growing segment cannot grow."""
        hashes = np.array(sorted(words), np.uint32)
        pieces: list[list[_Piece]] = [[] for _ in words]
        for begin, segment in zip(_begins(self._segments), self._segments, strict=False):
            for place, rows in segment.rows(hashes):
                pieces[place].append((begin, rows))
        return sorted(pieces, key=_size)

    def _living_rows(self, pieces: Sequence[_Piece]) -> int:
        """Return how many rows were not removed."""
        if self._living == len(self._counts):
            return _size(pieces)
        counts = view(self._counts)
        return sum(int(np.count_nonzero(counts[begin:][rows])) for begin, rows in pieces)

    def _best(self, summed: _SummedRows, mean: float, count: int) -> RowNumbers:
        """Return the summed rows that have the `count` best scores; more on ties, fewer if no others have a score.
        `mean`: m of the formula of `scores`.

        No score is above its bound s / sqrt(m n m n'). So only rows are scored whose bound reaches the `count`-th best
        score among the rows of the rarest words. Rows that share only common words do not reach it (the threshold of
        MaxScore: Turtle and Flood 1995).
        """
        if not count:
            return np.zeros(0, np.int64)
        lowest, depth = 0.0, FIRST_ROWS * count
        while not lowest and depth < len(summed.rows):
            _, scores = self._score(summed.rows[:depth], MIN_BOUND, summed.total, mean)
            lowest = _at_rank(scores, count)
            depth *= MORE_ROWS
        least_bound = max(MIN_BOUND, lowest * math.sqrt(summed.total * mean) * (1 - ROUNDING))
        best, scores = self._score(summed.rows[: summed.end(least_bound)], least_bound, summed.total, mean)
        return best[scores >= _at_rank(scores, count)]

    def _score(
        self, rows: RowNumbers, least_bound: float, total: float, mean: float
    ) -> tuple[RowNumbers, npt.NDArray[np.float64]]:
        """Return those of `rows` (P,) whose bounds reach `least_bound`, each once, and their scores; `total` and `mean`
        as in `_scores`."""
        bounds = self._sums.take(rows) * np.frombuffer(self._scales, np.float32).take(rows)
        reaching = np.sort(rows[bounds >= least_bound])
        reaching = reaching[np.diff(reaching, prepend=-1) > 0]
        return reaching, self._scores(reaching, total, mean)

    def _scores(self, rows: RowNumbers, total: float, mean: float) -> npt.NDArray[np.float64]:
        """Return the scores of rows (R,) from their sums. `total`: m n of the formula of `scores`; `mean`: m."""
        sums = self._sums[rows].astype(np.float64)
        scores: npt.NDArray[np.float64] = sums / np.sqrt(total * np.maximum(mean * view(self._counts)[rows], sums))
        return scores

    @staticmethod
    def phrases_of(note: Note) -> dict[str, tuple[str, ...]]:
        """Return the words of each phrase of a note that may be a hashtag, by `hashtag_key`."""
        return phrases_of(note)

    def named_hashtags(
        self, phrases: Mapping[str, tuple[str, ...]], uses: Mapping[str, tuple[str, int]], own_row: int | None = None
    ) -> tuple[NamedHashtag, ...]:
        """Return the hashtags of stored notes among `phrases`. `uses`: spelling and number of notes of each, by the
        phrase. `own_row` is not counted."""
        rows = self._count_rows({word for key in uses for word in phrases[key]}, own_row)
        return tuple(
            NamedHashtag(spelling, carriers, min(rows[word] for word in phrases[key]))
            for key, (spelling, carriers) in uses.items()
        )

    def _count_rows(self, words: Collection[str], own_row: int | None = None) -> dict[str, int]:
        """Return the number of rows that have each of `words`, without removed rows and `own_row`."""
        counted = sorted(words)
        hashes = np.array(list(map(word_hash, counted)), np.uint32)
        sizes = dict.fromkeys(counted, 0)
        for begin, segment in zip(_begins(self._segments), self._segments, strict=False):
            for place, rows in segment.rows(hashes):
                own = own_row is not None and bool(np.any(rows == own_row - begin))
                sizes[counted[place]] += self._living_rows([(begin, rows)]) - own
        return sizes

    @staticmethod
    def shared_words(note: Note, others: Sequence[Note]) -> list[frozenset[str]]:
        """Return the words that each of `others` shares with `note`."""
        words = words_of(note)
        return [words & words_of(other) for other in others]

    def rarest(self, words: Collection[str], count: int) -> tuple[str, ...]:
        """Return up to `count` of `words`, the rarest first, ties by the word; without those that are too common to be
        searched."""
        sizes = self._count_rows(words)
        most = max(COMMON_NOTES, COMMON_SHARE * len(self))
        return tuple(sorted((w for w, size in sizes.items() if size <= most), key=lambda w: (sizes[w], w))[:count])


def _begins(segments: Sequence[GrowingPostings | PackedPostings]) -> list[int]:
    """Return the number of each segment's first row, and last the number that the next new row would get."""
    return [0, *accumulate(map(len, segments))]


def _size(pieces: Sequence[_Piece]) -> int:
    """Return the number of rows."""
    return sum([len(rows) for _, rows in pieces])


def _at_rank(scores: npt.NDArray[np.float64], rank: int) -> float:
    """Return the `rank`-th highest score; 0 if there are fewer."""
    return float(np.partition(scores, -rank)[-rank]) if len(scores) >= rank else 0.0


def _scales(counts: npt.NDArray[np.uint32]) -> array[float]:
    """Return 1 / sqrt(count) of each count, 0 of 0."""
    scales = np.zeros(len(counts), np.float32)
    np.divide(1, np.sqrt(counts), out=scales, where=counts > 0, casting="same_kind")
    return array("f", scales.tobytes())
