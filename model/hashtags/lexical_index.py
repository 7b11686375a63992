"""WordIndex: notes that come and go, found by the words that they share, as an inverted file.

Beside the vectors, which bring together what the same people read: notes with the same words have the same hashtags.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
import zlib
from array import array
from collections.abc import Mapping, Sequence
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from model.note import Note, replace_lone_surrogates

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\U0003ffff"
"""Scripts that put no spaces between words, from Thai to Chinese: there two characters at a time stand for one."""
RUN = re.compile(rf"([^\W_{UNSPACED}]+)|((?:(?=[^\W_])[{UNSPACED}])+)")
"""Of letters and digits: a word, or what has no spaces."""
MAX_CHARS = 2000
"""Of a note's title and of its content; the prompt holds less."""
COMMON_SHARE, COMMON_NOTES = 0.1, 1000
"""A word that more of the notes have, and more than so many, tells nothing and costs the most: it is left out."""
MAX_ROWS = 200_000
"""That are looked at for one note, those of its rarest words first: 10 ms."""
NO_ROWS = array("I")
DEAD_SHARE = 0.5
"""With more rows of removed notes than that, all is written anew without them."""


class InvertedLexicalIndex:
    """See note.Words. Words are kept as hashes, with 4 bytes for each note that has one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._row_of: dict[str, int] = {}
        self._ids: list[str] = []
        self._counts = array("I")
        """Words of each row; 0 where the note is gone."""
        self._texts = array("Q")
        """A hash of each row's text: a note whose text did not change keeps its row."""
        self._rows_with: dict[int, array[int]] = {}

    def __len__(self) -> int:
        return len(self._row_of)

    def add(self, note: Note) -> None:
        """See Words. A note without words is never found."""
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
            self._texts.append(text)
            for word in words:
                self._rows_with.setdefault(word, array("I")).append(row)

    def remove(self, note_id: str) -> None:
        """See Words."""
        with self._lock:
            self._remove(note_id)

    def nearest(self, note: Note, count: int) -> list[tuple[str, float]]:
        """See Words.

        score = sum of idf(w)^2 over shared words w / sqrt(m n max(m n', the sum)); m: the mean of idf^2 over the n
        words of `note`; n': how many the other one has; idf(w) = log(1 + notes / notes with w). It is the cosine of
        TF-IDF (Salton and Buckley 1988), words counted once, those of a stored note taken to be as rare as those of
        `note`, or as those that it shares: so nothing need be kept of it but how many it has.
        """
        words = word_hashes(note)
        with self._lock:
            rows, sums, mean = self._sharing(words, self._row_of.get(note.id))
            counts = np.array(self._counts, np.float64)[rows]
            scores = sums / np.sqrt(mean * len(words) * np.maximum(mean * counts, sums))
            least = np.partition(scores, -count)[-count] if count < len(scores) else 0.0
            best = np.flatnonzero(scores >= least)
            found = [(self._ids[rows[at]], float(scores[at])) for at in best]
        return sorted(found, key=lambda hit: (-hit[1], hit[0]))[:count]

    def snapshot_parts(self) -> tuple[list[str], Mapping[str, npt.NDArray[Any]]]:
        """See Words. All others wait meanwhile."""
        with self._lock:
            words = np.fromiter(self._rows_with, np.uint32, len(self._rows_with))
            ends = np.cumsum([0, *map(len, self._rows_with.values())], dtype=np.int64)
            rows = np.frombuffer(b"".join(having.tobytes() for having in self._rows_with.values()), np.uint32)
            counts, texts = np.array(self._counts, np.uint32), np.array(self._texts, np.uint64)
            return list(self._ids), {"words": words, "ends": ends, "rows": rows, "counts": counts, "texts": texts}

    def restore(self, ids: Sequence[str], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """See Words."""
        places, rows = arrays["ends"].tolist(), arrays["rows"]
        spans = zip(arrays["words"].tolist(), pairwise(places), strict=True)
        with self._lock:
            self._ids = list(ids)
            self._counts = array("I", arrays["counts"].tobytes())
            self._texts = array("Q", arrays["texts"].tobytes())
            self._row_of = {self._ids[row]: row for row in np.flatnonzero(arrays["counts"]).tolist()}
            self._rows_with = {word: array("I", rows[begin:end].tobytes()) for word, (begin, end) in spans}

    def _sharing(
        self, words: frozenset[int], own: int | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], float]:
        """The rows (R,) of notes that share something, but for `own`; of each the sum of idf^2 of what it shares; and
        the mean of idf^2 over `words`, where what no note has is the rarest, and what is too common counts nothing."""
        alive = np.array(self._counts, np.uint32) > 0
        parts, squares, left = [], [], MAX_ROWS
        for having in sorted((self._rows_with.get(word, NO_ROWS) for word in words), key=len):
            left -= len(having)
            rows = np.array(having, np.int64) if left >= 0 else np.zeros(0, np.int64)
            rows = rows[alive[rows]]
            if left >= 0 and len(rows) <= max(COMMON_NOTES, COMMON_SHARE * len(self)):
                parts.append(rows)
                squares.append(math.log1p(len(self) / max(1, len(rows))) ** 2)
        every = np.concatenate([np.zeros(0, np.int64), *parts])
        sums = np.bincount(every, np.repeat(squares, [len(part) for part in parts]), len(alive))
        if own is not None:
            sums[own] = 0
        sharing: npt.NDArray[np.int64] = np.flatnonzero(sums).astype(np.int64)
        return sharing, sums[sharing].astype(np.float64), sum(squares) / max(1, len(words))

    def _remove(self, note_id: str) -> None:
        row = self._row_of.pop(note_id, None)
        if row is None:
            return
        self._counts[row] = 0
        if len(self._ids) - len(self) > DEAD_SHARE * len(self._ids):
            self._forget_removed()

    def _forget_removed(self) -> None:
        counts = np.frombuffer(self._counts, np.uint32)
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
        self._counts = array("I", counts[kept].tobytes())
        self._texts = array("Q", np.frombuffer(self._texts, np.uint64)[kept].tobytes())


def word_hashes(note: Note) -> frozenset[int]:
    """Hashes (32 bits) of the words of title, content and hashtags, whatever their case: runs of letters and digits,
    without marks that no letter holds, such as vowel signs."""
    text = " ".join((note.title[:MAX_CHARS], note.content[:MAX_CHARS], *note.hashtags))
    text = unicodedata.normalize("NFKC", replace_lone_surrogates(text)).casefold()
    if not text.isascii():
        text = "".join(char for char in text if not unicodedata.category(char).startswith("M"))
    words = {word for run, unspaced in RUN.findall(text) for word in ([run] if run else _pairs(unspaced))}
    return frozenset(zlib.crc32(word.encode()) for word in words)


def _pairs(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(max(1, len(run) - 1))]


def _digest(of: object) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(of).encode(), digest_size=8).digest())
