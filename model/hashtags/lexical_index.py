"""InvertedLexicalIndex: notes found by the words that they share.

It complements the vectors, which bring together notes that the same people read: notes with the same words are by
people who use the same hashtags (docs/decisions/0010-hashtags.md).
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
import zlib
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from model.note import Note, replace_lone_surrogates

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\U0003ffff"
"""Characters of scripts without spaces between words, from Thai to Chinese; there each pair of neighbouring characters
is taken as a word."""
RUN = re.compile(rf"([^\W_{UNSPACED}]+)|((?:(?=[^\W_])[{UNSPACED}])+)")
"""A run of letters and digits: a word, or else a text without spaces."""
MAX_CHARS = 2000
"""Bound on the characters of a title, and of a content, that are split into words. The prompt holds fewer."""
COMMON_SHARE = 0.1
"""A word that more than this share of all notes have, and more than COMMON_NOTES, is left out of a search: it tells
little, and its rows cost the most."""
COMMON_NOTES = 1000
"""Number of notes up to which no word is too common to search."""
MAX_ROWS = 200_000
"""Bound on the rows read by one search, those of its rarest words first; that many take 1 to 2 ms."""
FIRST_ROWS, MORE_ROWS = 32, 4
"""Rows of the rarest words that are scored first, for each note that a search is to find, and the factor for more of
them. A row counts once for each word that it shares."""
ROUNDING = 1e-5
"""Bound on the relative error of sums and bounds, which have 32 bits."""
MIN_BOUND = 1e-6
"""A row whose sum of idf^2, times its scale, is less than this shares no word: its sum was taken off."""
NO_ROWS = array("I")
DEAD_SHARE = 0.5
"""Share of rows of removed notes above which the index is rewritten without them. At a half a rewrite, which a search
has to wait for, costs each removal a constant time on the average."""


@dataclass(frozen=True, slots=True)
class _SummedRows:
    """Rows (P,) of the words of a search, each once for each of these words, the rarest word's first. `sizes` and
    `idf_squares`: number of rows, and idf^2, of each word."""

    rows: npt.NDArray[np.int64]
    sizes: Sequence[int]
    idf_squares: Sequence[np.float32]

    @property
    def total(self) -> float:
        """Total of idf^2, in 32 bits, as a row's own sum: equal texts score 1."""
        return float(sum(self.idf_squares, np.float32(0)))

    def end(self, least_bound: float) -> int:
        """Return behind which place no row has a bound s / sqrt(n') of `least_bound` without being at an earlier place
        too: one that shares j words has j or more."""
        end = len(self.rows)
        for first in reversed(range(len(self.sizes))):
            sums = accumulate(sorted(map(float, self.idf_squares[first:]), reverse=True))
            if max(s / math.sqrt(shared) for shared, s in enumerate(sums, 1)) >= least_bound:
                break
            end -= self.sizes[first]
        return end


class InvertedLexicalIndex:
    """An inverted file from words to notes; the port `LexicalIndex` of service/interfaces.py. Thread-safe.

    A row is a note as it was added; one that is changed gets a new row. Words are kept as 32-bit hashes, with 4 bytes
    for each note that has the word.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._row_of: dict[str, int] = {}
        self._ids: list[str] = []
        self._counts = array("I")
        """Number of words of each row; 0 where the note was removed."""
        self._texts = array("Q")
        """Hash of each row's text, 64 bits: a note whose text did not change keeps its row."""
        self._scales = array("f")
        """1 / sqrt(number of words) of each row; 0 where the note was removed."""
        self._sums = np.zeros(0, np.float32)
        """Sums of idf^2 by row, for the time of a search; 0 between searches."""
        self._postings: dict[int, array[int]] = {}
        """Rows of each word, in ascending order; those of removed notes too, until the next rewrite."""

    def __len__(self) -> int:
        return len(self._row_of)

    def add(self, note: Note) -> None:
        """Add a note, or replace the one of its id. A note without words is never found."""
        text = _digest(note.prompt_text)
        with self._lock:
            old = self._row_of.get(note.id)
            if old is not None and self._texts[old] == text:
                return
        words = word_hashes(note)
        with self._lock:
            self._remove(note.id)
            if not words:
                return
            row = len(self._ids)
            self._ids.append(note.id)
            self._row_of[note.id] = row
            self._counts.append(len(words))
            self._scales.append(len(words) ** -0.5)
            self._texts.append(text)
            for word in words:
                self._postings.setdefault(word, array("I")).append(row)

    def remove(self, note_id: str) -> None:
        with self._lock:
            self._remove(note_id)

    def nearest(self, note: Note, count: int) -> list[tuple[str, float]]:
        """Return ids and scores of the `count` notes that share the most with `note`, best first, ties by id."""
        return sorted(self.scores(note, count).items(), key=lambda hit: (-hit[1], hit[0]))[:count]

    def scores(self, note: Note, count: int, ids: Collection[str] = ()) -> dict[str, float]:
        """Return the scores of the notes that share the most with `note`, at least `count` where so many share a word,
        and of those of `ids` that do. The note of its own id is left out.

            score = s / sqrt(m n max(m n', s)),    s = sum of idf(w)^2 over shared words w,
            idf(w) = log(1 + notes / notes with w)

        where m is the mean of idf^2 over the n words of `note`, and n' the number of words of the other note. It is the
        cosine of TF-IDF (Salton and Buckley 1988) with each word counted once, and the words of a stored note taken to
        be as rare as those of `note`, or as those that both share. So of a stored note only n' need be kept.
        """
        words = word_hashes(note)
        with self._lock:
            own_row = self._row_of.get(note.id)
            named = {note_id: row for note_id in ids if (row := self._row_of.get(note_id)) not in (None, own_row)}
            named_rows = np.fromiter(named.values(), np.int64, len(named))
            summed = self._sum_up(words)
            if not summed.total:  # no word is searched: the formula has no value
                return {}
            if own_row is not None:
                self._sums[own_row] = 0
            mean = summed.total / len(words)
            best, scores = self._best(summed, mean, count)
            scores_of_named = self._scores(named_rows, summed.total, mean).tolist()
            self._sums[summed.rows] = 0
            found = dict(zip(map(self._ids.__getitem__, best.tolist()), scores.tolist(), strict=True))
            return found | {note_id: s for note_id, s in zip(named, scores_of_named, strict=True) if s}

    def _sum_up(self, words: frozenset[int]) -> _SummedRows:
        """Add the idf^2 of each word that is searched to the sums of its rows, and return these rows.

        A word that no note has is the rarest; those that are too common, or beyond MAX_ROWS, are not searched. Rows of
        removed notes are among the rows, and do not count for idf.
        """
        counts = _view(self._counts) if len(self) < len(self._ids) else None
        searched, idf_squares = [np.zeros(0, np.uint32)], list[np.float32]()
        rows_left = MAX_ROWS
        for posting in sorted((self._postings.get(word, NO_ROWS) for word in words), key=len):
            rows_left -= len(posting)
            if rows_left < 0:
                break
            rows = _view(posting)  # ends with this call, within the lock: a posting with a view cannot grow
            living = len(rows) if counts is None else int(np.count_nonzero(counts[rows]))
            if living <= max(COMMON_NOTES, COMMON_SHARE * len(self)):
                searched.append(rows)
                idf_squares.append(np.float32(math.log1p(len(self) / max(1, living)) ** 2))
        summed = _SummedRows(np.concatenate(searched, dtype=np.int64), list(map(len, searched[1:])), idf_squares)
        if len(self._sums) < len(self._ids):
            self._sums = np.zeros(2 * len(self._ids), np.float32)
        np.add.at(self._sums, summed.rows, np.repeat(np.array(idf_squares, np.float32), summed.sizes))
        return summed

    def _best(
        self, summed: _SummedRows, mean: float, count: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the summed rows that have the `count` best scores, and these scores; more rows where scores are equal,
        fewer where no others have a score. `mean`: m of the formula of `scores`.

        No score is above its bound s / sqrt(m n m n'). So only rows are scored whose bound reaches the `count`-th best
        score among the rows of the rarest words, and of rows whose shared words are all common none does (the
        threshold of MaxScore: Turtle and Flood 1995).
        """
        if not count:
            return np.zeros(0, np.int64), np.zeros(0)
        lowest, depth = 0.0, FIRST_ROWS * count
        while not lowest and depth < len(summed.rows):
            _, scores = self._score(summed.rows[:depth], MIN_BOUND, summed.total, mean)
            lowest = _at_rank(scores, count)
            depth *= MORE_ROWS
        least_bound = max(MIN_BOUND, lowest * math.sqrt(summed.total * mean) * (1 - ROUNDING))
        best, scores = self._score(summed.rows[: summed.end(least_bound)], least_bound, summed.total, mean)
        lowest = _at_rank(scores, count)
        return best[scores >= lowest], scores[scores >= lowest]

    def _score(
        self, rows: npt.NDArray[np.int64], least_bound: float, total: float, mean: float
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return those of `rows` (P,) whose bounds reach `least_bound`, each once, and their scores; `total` and `mean`
        as in `_scores`."""
        bounds = self._sums.take(rows) * np.frombuffer(self._scales, np.float32).take(rows)
        reaching = np.sort(rows[bounds >= least_bound])
        reaching = reaching[np.diff(reaching, prepend=-1) > 0]
        return reaching, self._scores(reaching, total, mean)

    def _scores(self, rows: npt.NDArray[np.int64], total: float, mean: float) -> npt.NDArray[np.float64]:
        """Return the scores of rows (R,) by their sums. `total`: m n of the formula of `scores`; `mean`: m."""
        sums = self._sums[rows].astype(np.float64)
        scores: npt.NDArray[np.float64] = sums / np.sqrt(total * np.maximum(mean * _view(self._counts)[rows], sums))
        return scores

    def shared_words(self, note: Note, other: Note, count: int) -> tuple[str, ...]:
        """Return up to `count` words that two notes share, the rarest first, ties by the word; without those that are
        too common to be searched."""
        shared = words_of(note) & words_of(other)
        with self._lock:
            sizes = {word: len(self._postings.get(_word_hash(word), NO_ROWS)) for word in shared}
            most = max(COMMON_NOTES, COMMON_SHARE * len(self))
        return tuple(sorted((w for w, size in sizes.items() if size <= most), key=lambda w: (sizes[w], w))[:count])

    def drop_tombstones(self) -> None:
        with self._lock:
            if len(self) < len(self._ids):
                self._rewrite()

    def snapshot_parts(self) -> tuple[list[str], Mapping[str, npt.NDArray[Any]]]:
        """Return a copy of ids and arrays for `restore`; all other calls wait while it is made.

        The rows of word i are rows[ends[i] : ends[i + 1]].
        """
        with self._lock:
            words = np.fromiter(self._postings, np.uint32, len(self._postings))
            ends = np.cumsum([0, *map(len, self._postings.values())], dtype=np.int64)
            rows = np.frombuffer(b"".join(posting.tobytes() for posting in self._postings.values()), np.uint32)
            counts, texts = np.array(self._counts, np.uint32), np.array(self._texts, np.uint64)
            return list(self._ids), {"words": words, "ends": ends, "rows": rows, "counts": counts, "texts": texts}

    def restore(self, ids: Sequence[str], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replace the content by what `snapshot_parts` returned."""
        ends, rows = arrays["ends"].tolist(), arrays["rows"]
        spans = zip(arrays["words"].tolist(), pairwise(ends), strict=True)
        with self._lock:
            self._ids = list(ids)
            self._counts = array("I", arrays["counts"].tobytes())
            self._scales = _scales(arrays["counts"])
            self._texts = array("Q", arrays["texts"].tobytes())
            self._row_of = {self._ids[row]: row for row in np.flatnonzero(arrays["counts"]).tolist()}
            self._postings = {word: array("I", rows[begin:end].tobytes()) for word, (begin, end) in spans}

    def _remove(self, note_id: str) -> None:
        row = self._row_of.pop(note_id, None)
        if row is None:
            return
        self._counts[row], self._scales[row] = 0, 0.0
        if len(self._ids) - len(self) > DEAD_SHARE * len(self._ids):
            self._rewrite()

    def _rewrite(self) -> None:
        """Drop the rows of removed notes and number the others anew, in their order."""
        counts = np.frombuffer(self._counts, np.uint32)
        kept = np.flatnonzero(counts)
        new_row = np.full(len(counts), -1, np.int64)
        new_row[kept] = np.arange(len(kept))
        for word, posting in list(self._postings.items()):
            rows = new_row[np.frombuffer(posting, np.uint32)]
            rows = rows[rows >= 0]
            if len(rows):
                self._postings[word] = array("I", rows.astype(np.uint32).tobytes())
            else:
                del self._postings[word]
        self._ids = [self._ids[row] for row in kept.tolist()]
        self._row_of = {note_id: row for row, note_id in enumerate(self._ids)}
        self._counts, self._scales = array("I", counts[kept].tobytes()), _scales(counts[kept])
        self._texts = array("Q", np.frombuffer(self._texts, np.uint64)[kept].tobytes())


def _view(numbers: array[int]) -> npt.NDArray[np.uint32]:
    """Return the numbers as an array that shares their memory. `numbers` cannot grow while it lives."""
    return np.frombuffer(numbers, np.uint32) if numbers else np.zeros(0, np.uint32)


def _at_rank(scores: npt.NDArray[np.float64], rank: int) -> float:
    """Return the score of which `rank` scores are no lower; 0 where there are fewer."""
    return float(np.partition(scores, -rank)[-rank]) if len(scores) >= rank else 0.0


def _scales(counts: npt.NDArray[np.uint32]) -> array[float]:
    """Return 1 / sqrt(count) of each count, 0 of 0."""
    scales = np.zeros(len(counts), np.float32)
    np.divide(1, np.sqrt(counts), out=scales, where=counts > 0, casting="same_kind")
    return array("f", scales.tobytes())


def words_of(note: Note) -> frozenset[str]:
    """Return the words of title, content and hashtags.

    A word is a case-folded run of letters and digits without combining marks, such as the vowel signs of Indic
    scripts; in UNSPACED scripts, each pair of neighbouring characters.
    """
    return frozenset(words_in(" ".join((note.title[:MAX_CHARS], note.content[:MAX_CHARS], *note.hashtags))))


def words_in(text: str) -> list[str]:
    """Return the words of a text, in its order; see `words_of`."""
    text = unicodedata.normalize("NFKC", replace_lone_surrogates(text)).casefold()
    if not text.isascii():
        text = "".join(char for char in text if not unicodedata.category(char).startswith("M"))
    return [word for run, unspaced in RUN.findall(text) for word in ([run] if run else _pairs(unspaced))]


def word_hashes(note: Note) -> frozenset[int]:
    """Return 32-bit hashes of the words of a note."""
    return frozenset(map(_word_hash, words_of(note)))


def _word_hash(word: str) -> int:
    return zlib.crc32(word.encode())


def _pairs(run: str) -> list[str]:
    """Return the pairs of neighbouring characters; a single character is its own."""
    return [run[start : start + 2] for start in range(max(1, len(run) - 1))]


def _digest(content: object) -> int:
    """Return a 64-bit hash of `content` by its repr; unlike hash(), it is the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(content).encode(), digest_size=8).digest())
