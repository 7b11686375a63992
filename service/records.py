"""Records that pass between the use-cases, the store and the index.

A log position is the id of an entry of the change log; positions order all writes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from model.centre import query_vectors
from model.generation import CategoryProbability, Hashtag
from model.note import Note

Vector = npt.NDArray[np.float32]
"""(D,), unit length."""
Vectors = npt.NDArray[np.float32]
"""(N, D)"""
ORIGIN = "0-0"
"""Log position before every write."""


PositionKey = tuple[int, int]
"""Milliseconds since the epoch and sequence number of a log position: a key that sorts positions."""


def position_key(position: str) -> PositionKey:
    """Return the key of a log position."""
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds), int(sequence or 0)


def position_seconds(position: str) -> float:
    """Return the time of a log position, in seconds since the epoch by the store's clock."""
    return position_key(position)[0] / 1000


GeneratedField = Literal["hashtags", "category"]


@dataclass(frozen=True, slots=True)
class Generated:
    """Fields that the model generated because the author left them out. None: not requested, or dropped by the
    author."""

    hashtags: tuple[Hashtag, ...] | None = None
    category: CategoryProbability | None = None

    def without(self, fields: Collection[GeneratedField]) -> Generated:
        """Return a copy without some fields."""
        return replace(self, **dict.fromkeys(fields))


@dataclass(frozen=True, slots=True)
class StoredNote:
    """A note with its vector in the space `space` and its generated fields. `vector` is None if it was not read.

    `revision` counts the writes to its id, starting at 1; `position` is the log position of the last one.
    """

    note: Note
    space: str
    vector: Vector | None = None
    generated: Generated = Generated()
    revision: int = 0
    position: str = ORIGIN

    @property
    def hashtags(self) -> tuple[str, ...]:
        """The author's hashtags, or else the generated ones."""
        return self.note.hashtags or tuple(hashtag.text for hashtag in self.generated.hashtags or ())

    @property
    def category(self) -> str | None:
        """The author's category, or else the generated one."""
        return self.note.category or (self.generated.category.name if self.generated.category else None)

    def expired(self, now: float) -> bool:
        """Return whether the note has expired at `now`."""
        return self.note.expired(now)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A note that is in the store and cannot be decoded. `reason` says why, without any of the note's text."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Condition:
    """Condition of a write: the stored note is at one of `positions`, or, if these are empty, it exists. `negated`: the
    opposite."""

    positions: tuple[str, ...] = ()
    negated: bool = False

    def holds(self, exists: bool, position: str = "") -> bool:
        """Return whether the condition holds for the stored note, which is at `position` if it `exists`."""
        return (exists and (not self.positions or position in self.positions)) != self.negated

    @property
    def failure(self) -> str:
        """End of the sentence "note X ..." that tells a caller why the condition does not hold."""
        if self.negated:
            return "has the version of If-None-Match" if self.positions else "exists already"
        return "has another version than that of If-Match, or does not exist" if self.positions else "does not exist"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at an idempotent write, which is made once, however often it is attempted. `key`: name of
    the write, unique in the store, made from the Idempotency-Key and the write's place in the request; `fingerprint`:
    equal only for attempts at the same write."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class EarlierWrite:
    """A write that an earlier attempt made. `answer`: what was recorded as its answer; `revision`: as in Written."""

    answer: bytes
    revision: int
    position: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The exclusive right to make the write of an attempt, until it is made or released. `earlier`: the write, if it
    was made before.

    `seconds`: how long the write is remembered once it is made.
    """

    key: str
    token: str
    seconds: float
    earlier: EarlierWrite | None = None


@dataclass(frozen=True, slots=True)
class Remembered:
    """The claim on a write, and the answer to record with it."""

    claim: Claim
    answer: bytes


@dataclass(frozen=True, slots=True)
class Write:
    """A note to be written under its id, if `condition` holds. `remembered`: the claim that the write fulfils."""

    stored: StoredNote
    condition: Condition | None = None
    remembered: Remembered | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """Result of a write. `position`: its log position. `revision`: 1 if the note was created."""

    revision: int
    position: str


@dataclass(frozen=True, slots=True)
class Removed:
    """Result of a removal. `position`: its log position. `replayed`: an earlier attempt made it."""

    position: str
    replayed: bool = False

    @property
    def time(self) -> float:
        """Time of the removal, as `position_seconds` returns it."""
        return position_seconds(self.position)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of the log: the note `id` was written or removed at `position`. `id` is empty if the entry lacks it, or
    is not a change. `by`: name by which the store object that made a write recognises it. `purges`: the entry is a
    purge, after which no index may keep anything of removed notes."""

    position: str
    id: str
    removed: bool
    by: str = ""
    purges: bool = False


@dataclass(frozen=True, slots=True)
class LogTail:
    """The end of the log: `ids` of the notes that its entries name, `time` of the store's clock when it was read, in
    seconds since the epoch, and position of the `last` entry."""

    ids: frozenset[str]
    time: float
    last: str


@dataclass(frozen=True, slots=True)
class LogBounds:
    """Bounds of the log. `first`: position of its first change, None if it has none; the entry of a restore is not a
    change. `last`: position of the last entry ever written, ORIGIN for none. `cut`: whether older entries were trimmed.
    `entry`: the queried position, None if the log has no entry there. `store`: identity of the store that has the log,
    "" if it has none yet."""

    first: str | None
    last: str
    cut: bool
    entry: str | None = None
    store: str = ""

    def reach(self, position: str) -> bool:
        """Return whether the log has reached `position`, for which it was queried, and still has every later entry.

        A position that the log does not have was trimmed, lost in a failover, or belongs to another log.
        """
        key, last = position_key(position), position_key(self.last)
        has_entry = not self.cut if key == (0, 0) else self.entry == position
        return last == key or (last > key and has_entry)

    def lost(self, position: str) -> bool:
        """Return whether the log has lost the entry at `position`, for which it was queried, and which it once had. The
        entry was lost, rather than trimmed, if the log ends before `position` or still has a change at least as old."""
        key = position_key(position)
        ends_before = position_key(self.last) < key
        reaches_back = self.first is not None and position_key(self.first) <= key
        return not self.reach(position) and (ends_before or reaches_back)


ChangedNotes = Mapping[str, StoredNote | Unreadable | None]
"""Notes by id after a change; None for a note that no longer exists."""


@dataclass(frozen=True, slots=True)
class Durability:
    """Whether an acknowledged write survives a crash of the store; `detail` says why. `memory_filled`: used share of
    the memory that the store may take; at 1 it refuses writes. None if that has no bound."""

    durable: bool
    detail: str
    memory_filled: float | None = None


@dataclass(frozen=True, slots=True)
class WrittenRow:
    """A note in the index, and the log position of its last write."""

    id: str
    position: str


@dataclass(frozen=True, slots=True)
class WrittenRows:
    """Notes of the index in the order of their last writes, up to `until`, the position up to which the index had every
    write of the store with the identity `store`. If there are fewer rows than requested, no matching note was missed
    because of a rewrite meanwhile. `newest`: last write of any note; it may be later than `until`, since the store
    returns a note's current version even for an older entry of the log."""

    rows: list[WrittenRow]
    store: str
    until: str
    newest: str


@dataclass(frozen=True, slots=True, eq=False)
class Centre:
    """Share of the mean vector of a community's notes, or of its titles, that is subtracted from queries.

    `vector`: this share, (D,); None if nothing is subtracted.
    """

    vector: Vector | None = None

    def query(self, vector: Vector) -> Vector:
        """Return the unit query vector (D,) for notes related to a note or text. `vector`: that of the note or text."""
        return vector if self.vector is None else query_vectors(vector, self.vector)


class Hit(NamedTuple):
    """A note that a search found, and its cosine to the query. A named tuple, since a search creates hundreds, each in
    a third of the time that a dataclass takes."""

    id: str
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class IndexRows:
    """Rows of the index: ids, vectors (N, D), and codes (N,) of categories and authors. `name_of`: names of categories
    and authors by their codes."""

    ids: list[str]
    vectors: Vectors
    category_codes: npt.NDArray[np.int32]
    author_codes: npt.NDArray[np.int32]
    name_of: Mapping[int, str]

    def category(self, place: int) -> str | None:
        """Return the category of the note at a place; None if it has none."""
        return self.name_of.get(self.category_codes.item(place))

    def author(self, place: int) -> str | None:
        """Return the author of the note at a place; None if it has none."""
        return self.name_of.get(self.author_codes.item(place))

    def take(self, places: Sequence[int]) -> IndexRows:
        """Return the rows at `places`, in that order."""
        at = np.array(places, np.int64)
        codes = self.category_codes[at], self.author_codes[at]
        return IndexRows([self.ids[place] for place in places], self.vectors[at], *codes, self.name_of)

    @property
    def vector_by_id(self) -> dict[str, Vector]:
        """Vectors by the notes' ids."""
        return dict(zip(self.ids, self.vectors, strict=True))


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """State of an index. `ready`: it is built and follows the log; `detail` describes this in words. `behind_since`:
    time of the oldest change in the log, as it was last read, that the index does not have; 0 if it has all of them.

    `vectors` counts the rows that can be found, `tombstones` those that cannot, `segments` the parts that a search goes
    through, `other_space` the notes in the store whose vectors are from another model. `saved_at` is the time of the
    last snapshot, 0 before the first; `unsaved_since` that of the first change that is not in it, 0 if there is none.
    `recall_sampled` is the share of true neighbours that the last sampled searches found, NaN before the first. `lost`:
    which acknowledged writes the store has lost; empty for none.
    """

    ready: bool
    detail: str
    position: str
    behind_since: float
    vectors: int
    tombstones: int
    segments: int
    other_space: int
    saved_at: float
    unsaved_since: float
    recall_sampled: float
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Explanation of a note's place: its cosine to each positive and each negative example of the request (None for a
    missing one), what each boost added, and the resulting relevance. `shared_hashtags`: its hashtags that a positive
    example has too. `words`: what the word score added, None if words were not used; `shared_words`: the rarest words
    that it shares with the positive examples. `behaviour`: what reading behaviour added, None if that was not used;
    `co_readers`: number of readers who read it after a positive example."""

    positive: tuple[float | None, ...]
    negative: tuple[float | None, ...]
    boosts: tuple[float, ...]
    relevance: float
    shared_hashtags: tuple[str, ...] = ()
    words: float | None = None
    shared_words: tuple[str, ...] = ()
    behaviour: float | None = None
    co_readers: float | None = None


@dataclass(frozen=True, slots=True)
class RankedNote:
    """A place in a ranked list. `duplicates`: ids of near-duplicates that the note stands for."""

    id: str
    score: float
    duplicates: tuple[str, ...] = ()
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class RankedList:
    """A ranked list of `total` notes, some or all of which are in `notes`. `fingerprint`: that of the request that made
    it. `complete`: no note matches beyond its last one. `missing` and `removed`: as in Similar."""

    id: str
    fingerprint: str
    notes: tuple[RankedNote, ...]
    total: int
    complete: bool
    log_position: str
    missing: tuple[str, ...] = ()
    removed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RelatedNote:
    """A note of an answer. `position`: its place in the ranked list, starting at 1."""

    stored: StoredNote
    score: float
    position: int
    duplicates: tuple[str, ...] = ()
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class Similar:
    """Related notes with their scores, in the order of the request. `id` names the answer; all pages of one list share
    it.

    `complete`: there are min(k, matches) items, and no match after the last page of a list. `degraded`: the store did
    not answer, so only the notes' ids are known, and a note that another replica has removed may be among them.
    `paged`: the request named a cursor; `next_cursor` is None at the end of the list. `missing`: ids of examples that
    were left out (search/request.py, OnMissing). `removed`: how many notes the filter left out, and how many candidates
    caps and collapse left out, by name.
    """

    id: str
    items: list[RelatedNote]
    complete: bool
    log_position: str
    degraded: bool = False
    paged: bool = False
    next_cursor: str | None = None
    missing: tuple[str, ...] = ()
    removed: Mapping[str, int] = field(default_factory=dict)
