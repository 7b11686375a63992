"""WordIndex: notes that come and go, found by the words that they share, as an inverted file.

Beside the vectors, which bring together what the same people read: notes with the same words have the same hashtags.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from array import array
from collections.abc import Iterator
from threading import Lock

import numpy as np
import numpy.typing as npt

from model.note import Note, replace_lone_surrogates

WORD = re.compile(r"[^\W_]+")
FIRST_EAST_ASIAN = "\u2e80"
"""From here on scripts put no spaces between words: two characters at a time stand for one."""
COMMON_SHARE, COMMON_NOTES = 0.1, 1000
"""A word that more of the notes have, and more than so many, tells nothing and costs the most: it is left out."""
NO_ROWS = array("I")
DEAD_SHARE = 0.5
"""With more rows of removed notes than that, all is written anew without them."""


class WordIndex:
    """See note.Words. Words are kept as hashes, with 4 bytes for each note that has one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._row_of: dict[str, int] = {}
        self._ids: list[str] = []
        self._counts = array("H")
        """Words of each row; 0 where the note is gone."""
        self._rows_with: dict[int, array[int]] = {}

    def __len__(self) -> int:
        return len(self._row_of)

    def add(self, note: Note) -> None:
        """See Words. A note without words is never found."""
        words = words_of(note)
        with self._lock:
            self._remove(note.id)
            if not words:
                return
            row = len(self._ids)
            self._ids.append(note.id)
            self._row_of[note.id] = row
            self._counts.append(len(words))
            for word in words:
                self._rows_with.setdefault(word, array("I")).append(row)

    def remove(self, note_id: str) -> None:
        """See Words."""
        with self._lock:
            self._remove(note_id)

    def nearest(self, note: Note, count: int) -> list[tuple[str, float]]:
        """See Words.

        score = sum of idf(w)^2 over shared words w / (m sqrt(words of one * words of the other)), in [0, 1] but for
        rounding, 1 between equal texts; m: the mean of idf^2 over the words of `note`; idf(w) = log(1 + notes / notes
        with w). It is the cosine of TF-IDF (Salton and Buckley 1988), words counted once, and all other words of a note
        taken to be as rare as those of `note`, so that nothing need be kept of a stored note but how many it has.
        """
        words = words_of(note)
        with self._lock:
            sums, mean = self._shared(words)
            counts = np.frombuffer(self._counts[: len(sums)], np.uint16)
            scores = np.where(counts > 0, sums, 0) / np.sqrt(np.maximum(counts, 1))
            if (own := self._row_of.get(note.id, len(scores))) < len(scores):
                scores[own] = 0
            most = min(count, int(np.count_nonzero(scores)))
            best = np.argpartition(-scores, most - 1)[:most] if most else np.zeros(0, np.int64)
            ids = [self._ids[row] for row in best.tolist()]
        of = scores[best] / (mean * len(words) ** 0.5) if most else scores[best]
        return sorted(zip(ids, of.tolist(), strict=True), key=lambda hit: (-hit[1], hit[0]))

    def _shared(self, words: frozenset[int]) -> tuple[npt.NDArray[np.float64], float]:
        """The sum of idf^2 of what each row shares with `words`, up to the last row that shares something; and the mean
        of idf^2 over `words`, where what no note has is the rarest, and what is too common counts nothing."""
        notes = len(self._ids)
        common = max(COMMON_NOTES, COMMON_SHARE * notes)
        rows, squares = [], []
        for word in sorted(words):
            having = self._rows_with.get(word, NO_ROWS)
            if len(having) <= common:
                rows.append(np.array(having, np.int64))  # a copy: an array that is looked at cannot grow
                squares.append(math.log1p(notes / max(1, len(having))) ** 2)
        if not any(map(len, rows)):
            return np.zeros(0), 0.0
        weights = np.repeat(squares, [len(some) for some in rows])
        sums = np.bincount(np.concatenate(rows), weights).astype(np.float64)
        return sums, sum(squares) / len(words)

    def _remove(self, note_id: str) -> None:
        row = self._row_of.pop(note_id, None)
        if row is None:
            return
        self._counts[row] = 0
        if len(self._ids) - len(self) > DEAD_SHARE * len(self._ids):
            self._forget_removed()

    def _forget_removed(self) -> None:
        counts = np.frombuffer(self._counts, np.uint16)
        kept = np.flatnonzero(counts)
        new_row = np.full(len(counts), -1, np.int64)
        new_row[kept] = np.arange(len(kept))
        for word, rows in list(self._rows_with.items()):
            still = new_row[np.frombuffer(rows, np.uint32)]
            still = still[still >= 0]
            if len(still):
                self._rows_with[word] = array("I", still.astype(np.uint32).tobytes())
            else:
                del self._rows_with[word]
        self._ids = [self._ids[row] for row in kept.tolist()]
        self._row_of = {note_id: row for row, note_id in enumerate(self._ids)}
        self._counts = array("H", counts[kept].tobytes())


def words_of(note: Note) -> frozenset[int]:
    """Hashes (32 bits) of the words of title, content and hashtags, whatever their case; 65,535 at most."""
    text = unicodedata.normalize("NFKC", replace_lone_surrogates(" ".join((note.title, note.content, *note.hashtags))))
    words = {word for run in WORD.findall(text.casefold()) for word in _words(run)}
    return frozenset(sorted(zlib.crc32(word.encode()) for word in words)[:65_535])


def _words(run: str) -> Iterator[str]:
    if max(run) < FIRST_EAST_ASIAN:
        yield run
    else:
        yield from (run[at : at + 2] for at in range(max(1, len(run) - 1)))
