"""CoOccurrence: which notes readers read after which other notes, updated read by read (paper, section 3).

s(A->B) is the sum of 1 / N over the readers who read note A and later note B, where N counts the distinct notes that
the reader read: the score that `notellm pairs` computes from the same reads.

Only the histories of readers are kept, no scores: those of a note are summed over its readers on demand. A read
therefore changes one history, although it changes the 1 / N of every pair of its reader; and nothing of a removed note
or reader is left in any sum.
"""

from __future__ import annotations

import math
import time
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.ties import tie, tie_key

MAX_HISTORY = 500
"""Bound on the reads that are kept of one reader, the most recent ones: the number of pairs grows with their square."""
MAX_READERS = 2000
"""Bound on the readers over whom the scores of one note are summed, the most recent ones: about two milliseconds."""
MAX_READERS_READS = 200_000
"""Bound on all reads of the readers over whom one note's scores are summed; with 500 reads each, only the last 400
readers count."""
LONG_HISTORY = 20
"""Number of reads that take about as long to check as a history without reads."""
MAX_READERS_FILTERED = 500_000
"""Bound on the total length of the lists of readers that `expire` rewrites in one call, not counting the last list:
about five milliseconds."""
MAX_COMPARED_ONE_BY_ONE = 1000
"""Bound on the comparisons with which readers are removed from a list one by one; beyond it NumPy is faster."""
NEVER_CUT = 2**32 - 1
"""Arrival of a read that does not come from a stream, and so is not dropped when the stream is trimmed."""
SCORE_DIGITS = 9
"""Decimal places that scores are rounded to, as in `notellm pairs`: the order of summation must not decide a tie."""
READ_BYTES, READER_BYTES, NOTE_BYTES = 36, 720, 380
"""Approximate memory of a read, a reader and a note (tests/service/behaviour/test_co_occurrence.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoOccurrenceOptions:
    """Options of the scores. `window`: maximum number of steps between the two reads of a pair, in the reader's order
    of distinct notes; None: any number. `lower`, `upper`: pairs with a score outside these bounds do not count.
    `min_readers`: minimum number of readers of a pair. `top`: maximum number of related notes of one note. `half_life`:
    seconds after which a pair counts half; None: it always counts whole. `max_reads`: maximum number of reads that are
    kept; beyond it, those of the readers who were idle longest are dropped."""

    window: int | None = None
    lower: float = 0.01
    upper: float = math.inf
    min_readers: int = 1
    top: int = 100
    half_life: float | None = None
    max_reads: int = 2_000_000


class Read(NamedTuple):
    """The first read of a note by a reader."""

    reader: str
    note_id: str
    at: float
    weight: float


class Successor(NamedTuple):
    """A note that was read after another one. `numbers` (R,): numbers of the readers who did so; `decays` (R,): weight
    of each, 1 or less, falling with the age of the read."""

    id: str
    score: float
    numbers: npt.NDArray[np.uint32]
    decays: npt.NDArray[np.float64]

    @property
    def readers(self) -> float:
        """Number of readers who read the note after the other one, each decayed with the age of the read."""
        return float(self.decays.sum())


class Related(NamedTuple):
    """A note that was read after any of several. `readers`: number of readers who did so, each counted once and decayed
    with the age of the read."""

    id: str
    score: float
    readers: float


@dataclass(slots=True)
class History:
    """The distinct notes that a reader read, by their numbers, ordered by `times`: the time of the first event of each
    read. `last_times`: time of its last event; `arrivals`: last second in which one of its events was written."""

    reader: str
    number: int
    notes: array[int] = field(default_factory=lambda: array("I"))
    times: array[float] = field(default_factory=lambda: array("d"))
    last_times: array[float] = field(default_factory=lambda: array("d"))
    weights: array[float] = field(default_factory=lambda: array("d"))
    arrivals: array[int] = field(default_factory=lambda: array("I"))

    def insert(self, note: int, at: float, last_at: float, weight: float, arrival: int) -> None:
        """Insert a read by the time of its first event, after those of the same time."""
        place = bisect_right(self.times, at)
        self.notes.insert(place, note)
        self.times.insert(place, at)
        self.last_times.insert(place, last_at)
        self.weights.insert(place, weight)
        self.arrivals.insert(place, arrival)

    def expired(self, before: float, first_arrival: int) -> list[int]:
        """Return the places of the reads whose events are all before a time, or were all written before
        `first_arrival`."""
        if not self.times or (min(self.last_times) >= before and min(self.arrivals) >= first_arrival):
            return []
        reads = zip(self.last_times, self.arrivals, strict=True)
        return [place for place, (at, arrival) in enumerate(reads) if at < before or arrival < first_arrival]

    def remove(self, place: int) -> None:
        for values in (self.notes, self.times, self.last_times, self.weights, self.arrivals):
            del values[place]


def summed(lists: Iterable[Sequence[Successor]], without: Collection[str]) -> list[Related]:
    """Merge the successors of several notes, except the ids in `without`; return them by summed score, best first.
    Each reader counts once for a note, however many of the several notes they read before it."""
    by_id: dict[str, list[Successor]] = {}
    for successors in lists:
        for one in successors:
            by_id.setdefault(one.id, []).append(one)
    for note_id in without:
        by_id.pop(note_id, None)
    scores = {note_id: sum(one.score for one in successors) for note_id, successors in by_id.items()}
    ranked = sorted(scores, key=lambda note_id: (-scores[note_id], tie_key(note_id), note_id))
    return [Related(note_id, scores[note_id], _readers(by_id[note_id])) for note_id in ranked]


def _readers(successors: Sequence[Successor]) -> float:
    """Return how many readers read a note after any of several, each decayed with the age of its read of that note."""
    if len(successors) == 1:
        return successors[0].readers
    _, first = np.unique(np.concatenate([one.numbers for one in successors]), return_index=True)
    return float(np.concatenate([one.decays for one in successors])[first].sum())


class CoOccurrence:
    """Histories of readers, and the related notes that are computed from them. Not thread-safe."""

    def __init__(self, options: CoOccurrenceOptions = CoOccurrenceOptions()) -> None:
        self._options = options
        self._histories: dict[str, History] = {}
        """Histories by reader, the least recently active reader first."""
        self._by_number: list[History | None] = []
        self._free_numbers: list[int] = []
        self._notes: dict[str, int] = {}
        """Numbers of the notes, by their ids."""
        self._ids: list[str] = []
        """Ids of the notes, by their numbers; "" for a number that is free."""
        self._free_notes: list[int] = []
        self._readers_of: list[array[int]] = []
        """Numbers of the histories that have a note, by the note's number, in the order in which they got it."""
        self._swept = 0
        self.reads = 0

    @property
    def readers(self) -> int:
        """Readers that have a history."""
        return len(self._histories)

    @property
    def notes(self) -> int:
        """Notes that are in a history."""
        return len(self._notes)

    @property
    def bytes(self) -> int:
        """Approximate memory of histories and numbers."""
        return READ_BYTES * self.reads + READER_BYTES * len(self._by_number) + NOTE_BYTES * len(self._ids)

    def add(self, reader: str, note_id: str, at: float, weight: float = 1.0, arrival: int = NEVER_CUT) -> None:
        """Add a read. Of several reads of one note by one reader the first counts, with the greatest of their weights.
        `arrival`: second in which its event was written."""
        history = self._histories.pop(reader, None) or self._open(reader)
        self._histories[reader] = history
        note, last_at = self._number(note_id), at
        if note in history.notes:
            place = history.notes.index(note)
            at, last_at = min(at, history.times[place]), max(last_at, history.last_times[place])
            weight, arrival = max(weight, history.weights[place]), max(arrival, history.arrivals[place])
            if at == history.times[place]:  # it keeps its place among the reads of the same time
                history.last_times[place], history.weights[place], history.arrivals[place] = last_at, weight, arrival
                return
            history.remove(place)
        else:
            self._readers_of[note].append(history.number)
            self.reads += 1
        history.insert(note, at, last_at, weight, arrival)
        if len(history.notes) > MAX_HISTORY:
            self._drop(history, 0)
        while self.reads > self._options.max_reads and len(self._histories) > 1:
            self.forget(next(iter(self._histories)))

    def remove(self, reader: str, note_id: str, at: float) -> None:
        """Remove the read of one note by one reader, if there is one that is not later than `at`."""
        history, note = self._histories.get(reader), self._notes.get(note_id)
        if history and note is not None and note in history.notes:
            place = history.notes.index(note)
            if history.times[place] <= at:
                self._drop(history, place)

    def remove_note(self, note_id: str, seconds: float = math.inf) -> bool:
        """Remove all reads of a note, or as many as `seconds` allow, at least one. Return whether some are left for
        another call."""
        note = self._notes.get(note_id)
        if note is None:
            return False
        ends, numbers = time.perf_counter() + seconds, self._readers_of[note]
        while numbers:
            history = self._by_number[numbers.pop()]
            assert history is not None
            history.remove(history.notes.index(note))
            self.reads -= 1
            self._close_if_empty(history)
            if numbers and time.perf_counter() >= ends:
                return True
        self._free_note(note)
        return False

    def forget(self, reader: str) -> None:
        """Remove all reads of a reader."""
        if history := self._histories.get(reader):
            for place in reversed(range(len(history.notes))):
                self._drop(history, place)

    def expire(self, before: float, count: int, first_arrival: int = 0, seconds: float = math.inf) -> int:
        """Remove the reads whose events are all before a time, or were all written before `first_arrival`, from the
        next `count` histories, or from fewer if they are long; successive calls go through all of them in turn. A call
        ends after about `seconds`, or earlier if the removed reads are of notes with many readers
        (MAX_READERS_FILTERED), but checks at least one history. Return how many of `count` are left for another
        call."""
        ends, filtered = time.perf_counter() + seconds, 0
        left = min(count, len(self._by_number))
        numbers_of: dict[int, list[int]] = defaultdict(list)
        while left > 0:
            self._swept = (self._swept + 1) % len(self._by_number)
            left -= 1
            if history := self._by_number[self._swept]:
                for place in reversed(history.expired(before, first_arrival)):
                    note = history.notes[place]
                    filtered += 0 if note in numbers_of else len(self._readers_of[note])
                    numbers_of[note].append(history.number)
                    history.remove(place)
                left -= len(history.notes) // LONG_HISTORY
                self._close_if_empty(history)
            if filtered >= MAX_READERS_FILTERED or time.perf_counter() >= ends:
                break
        for note, numbers in numbers_of.items():
            self._remove_readers(note, numbers)
        return max(0, left)

    def all_reads(self) -> Iterator[list[Read]]:
        """Yield the reads of each reader, one reader at a time, in their order. Reads may be added and removed
        meanwhile."""
        for history in list(self._histories.values()):
            rows = zip(history.notes, history.times, history.weights, strict=True)
            yield [Read(history.reader, self._ids[note], at, weight) for note, at, weight in rows]

    def related(self, note_id: str, now: float = 0.0) -> list[Successor]:
        """Return the notes related to one, best first; of equal scores those that `notellm pairs` keeps."""
        note = self._notes.get(note_id)
        if note is None:
            return []
        later, values, decays, readers = self._later_reads(note, now)
        if not later.size:
            return []
        numbers, places = np.unique(later, return_inverse=True)
        scores = np.round(np.bincount(places, values), SCORE_DIGITS)
        counts = np.bincount(places)  # a reader has read a note once
        enough = counts >= self._options.min_readers
        kept = np.flatnonzero((scores >= self._options.lower) & (scores <= self._options.upper) & enough)
        if kept.size > self._options.top:
            least = np.partition(scores[kept], -self._options.top)[-self._options.top]
            kept = kept[scores[kept] >= least]
        by_note = np.argsort(places, kind="stable")
        ends = np.cumsum(counts)
        rows = {i: by_note[ends[i - 1] if i else 0 : ends[i]] for i in kept.tolist()}
        related = [
            Successor(self._ids[numbers[i]], float(scores[i]), readers[own], decays[own]) for i, own in rows.items()
        ]
        key = tie_key(note_id)
        related.sort(key=lambda one: (-one.score, tie(key, tie_key(one.id)), one.id))
        return related[: self._options.top]

    def _later_reads(
        self, note: int, now: float
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.uint32]]:
        """Return the reads that came after a note in the histories that have it: numbers of the notes, what each adds
        to the score, its decay with age, and numbers of the readers."""
        window, half_life = self._options.window, self._options.half_life
        notes, times, weights = array("I"), array("d"), array("d")
        shares: list[float] = []
        counts: list[int] = []
        readers = self._latest_readers(note)
        for number in readers:
            history = self._by_number[number]
            assert history is not None
            begin = history.notes.index(note) + 1
            end = len(history.notes) if window is None else begin + window
            later = history.notes[begin:end]
            notes.extend(later)
            weights.extend(history.weights[begin:end])
            if half_life:
                times.extend(history.times[begin:end])
            shares.append(1 / len(history.notes))
            counts.append(len(later))
        decays = np.ones(len(notes))
        if half_life:
            decays = 0.5 ** (np.maximum(0.0, now - np.frombuffer(times, np.float64)) / half_life) if times else decays
        values = np.repeat(shares, counts) * np.array(weights) * decays
        return np.array(notes, np.uint32), values, decays, np.repeat(np.array(readers, np.uint32), counts)

    def _latest_readers(self, note: int) -> array[int]:
        """Return the numbers of the readers of a note that count (MAX_READERS, MAX_READERS_READS), in the order in
        which they came to it."""
        readers = self._readers_of[note][-MAX_READERS:]
        reads = 0
        for count, number in enumerate(reversed(readers), 1):
            history = self._by_number[number]
            assert history is not None
            reads += len(history.notes)
            if reads >= MAX_READERS_READS:
                return readers[-count:]
        return readers

    def _open(self, reader: str) -> History:
        """Add an empty history for a new reader, and return it."""
        if self._free_numbers:
            history = History(reader, self._free_numbers.pop())
            self._by_number[history.number] = history
        else:
            history = History(reader, len(self._by_number))
            self._by_number.append(history)
        return history

    def _number(self, note_id: str) -> int:
        """Return the number of a note; assign a new one if it has none."""
        number = self._notes.get(note_id)
        if number is None:
            if self._free_notes:
                number = self._free_notes.pop()
                self._ids[number] = note_id
            else:
                number = len(self._ids)
                self._ids.append(note_id)
                self._readers_of.append(array("I"))
            self._notes[note_id] = number
        return number

    def _drop(self, history: History, place: int) -> None:
        """Remove a read; remove its reader or its note too if it was their last one."""
        note = history.notes[place]
        history.remove(place)
        self._remove_readers(note, [history.number])
        self._close_if_empty(history)

    def _remove_readers(self, note: int, numbers: Sequence[int]) -> None:
        """Remove histories that no longer have a note from the note's readers; free its number if none is left."""
        readers = self._readers_of[note]
        if len(readers) * len(numbers) <= MAX_COMPARED_ONE_BY_ONE:
            for number in numbers:
                readers.remove(number)
        else:
            every = np.frombuffer(readers, np.uint32)
            self._readers_of[note] = array("I", every[~np.isin(every, numbers)].tobytes())
        self.reads -= len(numbers)
        if not self._readers_of[note]:
            self._free_note(note)

    def _free_note(self, note: int) -> None:
        """Free the number of a note without reads."""
        del self._notes[self._ids[note]]
        self._ids[note] = ""
        self._free_notes.append(note)

    def _close_if_empty(self, history: History) -> None:
        """Remove the history of a reader without reads, and free its number."""
        if not history.notes:
            del self._histories[history.reader]
            self._by_number[history.number] = None
            self._free_numbers.append(history.number)
