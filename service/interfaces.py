"""What the use-cases need from the engine, the store and the index, and the records that pass between them.

A score is a cosine: both vectors have unit length, 1 is the same direction, higher is closer. Vectors of two spaces are
never compared. A log position is the id of an entry of the change log; positions order all writes.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from model.note import Attribute, CategoryProbability, Hashtag, Note, Reading, Vocabulary, Wanted, hashtag_key

Vector = npt.NDArray[np.float32]
ORIGIN = "0-0"
"""The log position before every write."""


def position_key(position: str) -> tuple[int, int]:
    """Log positions in their order."""
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds), int(sequence or 0)


@dataclass(frozen=True, slots=True)
class Generated:
    """What the model wrote for a note whose author left it out; None: it was not asked to."""

    hashtags: tuple[Hashtag, ...] | None = None
    category: CategoryProbability | None = None


@dataclass(frozen=True, slots=True)
class StoredNote:
    """A note with what was made of it. `vector` is None when it was not asked for."""

    note: Note
    space: str
    vector: Vector | None = None
    generated: Generated = Generated()
    revision: int = 0
    position: str = ORIGIN

    @property
    def hashtags(self) -> tuple[str, ...]:
        """The author's, or else the generated ones."""
        return self.note.hashtags or tuple(h.text for h in self.generated.hashtags or ())

    @property
    def category(self) -> str | None:
        """The author's, or else the generated one."""
        return self.note.category or (self.generated.category.name if self.generated.category else None)

    def expired(self, now: float) -> bool:
        return self.note.expires_at is not None and self.note.expires_at <= now


@dataclass(frozen=True, slots=True)
class Write:
    """Put `stored` under its id; `expected` is the position that the note must be at (None: any, or none yet)."""

    stored: StoredNote
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """`revision` 1 means created. `position` is the write's own in the log."""

    revision: int
    position: str


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One change: the note `id` was written or removed at `position`. `by`: for the store, which write it was."""

    position: str
    id: str
    removed: bool
    by: str = ""


@dataclass(frozen=True, slots=True)
class LogBounds:
    """First entry kept (None: none is), last entry ever written (ORIGIN: none was), and whether any was cut off.
    `entry`: the one that was asked for, None where it is not kept."""

    first: str | None
    last: str
    cut: bool
    entry: str | None = None

    def reach(self, position: str) -> bool:
        """Whether the log, asked for the entry of `position`, still holds all that came after it, and has got that far
        itself."""
        at, last = position_key(position), position_key(self.last)
        # A position that the log does not hold was cut off, lost in a failover, or belongs to another log.
        held = not self.cut if at == (0, 0) else self.entry == position
        return last == at or (last > at and held)


@dataclass(frozen=True, slots=True)
class Durability:
    """Whether an acknowledged write survives the death of the store, and why we think so."""

    durable: bool
    detail: str


FEW_EXCLUDED = 16
"""Ids that are left out at no cost worth naming."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which notes may be found. `hashtags`: any of them; `all_hashtags`: each of them; `created_after` and
    `created_before`: seconds since the epoch, exclusive.
    `attributes`: each name has that value, as `attribute_text` says it.
    `exact`: all of them are compared, not only those that an index leads to."""

    category: str | None = None
    hashtags: tuple[str, ...] = ()
    author: str | None = None
    created_after: float | None = None
    created_before: float | None = None
    all_hashtags: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    exclude: frozenset[str] = frozenset()
    exact: bool = False

    @property
    def narrows(self) -> bool:
        """Whether it asks more of a note than that its id is not left out."""
        times = self.created_after is not None or self.created_before is not None
        texts = self.category is not None or self.author is not None
        return times or texts or bool(self.hashtags or self.all_hashtags or self.attributes)

    @property
    def plain(self) -> bool:
        """Whether it leaves out no more than a few ids."""
        return not self.narrows and not self.exact and len(self.exclude) <= FEW_EXCLUDED

    def accepts(self, stored: StoredNote) -> bool:
        """The same rule on a note as the index applies to its rows."""
        note = stored.note
        return (
            note.id not in self.exclude
            and (self.category is None or stored.category == self.category)
            and (self.author is None or note.author == self.author)
            and (self.created_after is None or (note.created_at or 0.0) > self.created_after)
            and (self.created_before is None or (note.created_at or 0.0) < self.created_before)
            and (not (self.hashtags or self.all_hashtags) or self._accepts_hashtags(stored))
            and (not self.attributes or self._accepts_attributes(note))
        )

    def _accepts_hashtags(self, stored: StoredNote) -> bool:
        wanted, every, carried = (
            set(map(hashtag_key, of)) for of in (self.hashtags, self.all_hashtags, stored.hashtags)
        )
        return (not wanted or not wanted.isdisjoint(carried)) and carried.issuperset(every)

    def _accepts_attributes(self, note: Note) -> bool:
        return all(attribute_text(note.attributes.get(name)) == value for name, value in self.attributes)


def attribute_text(value: Attribute | None) -> str | None:
    """How a filter names an attribute's value: a text as it is, else as JSON says it. None where there is none."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True, slots=True)
class Hit:
    id: str
    score: float


class Prepared(Protocol):
    """A note as the engine wants it."""

    @property
    def wanted(self) -> Wanted: ...
    @property
    def tokens(self) -> int:
        """Of its prompts: what it costs to begin."""


class Engine(Protocol):
    """One model. `prepare` in any thread; the rest in one."""

    name: str
    space: str
    dimension: int
    categories: tuple[str, ...]

    def prepare(self, note: Note, wanted: Wanted) -> Prepared:
        """Tokenise. Raises CategoriesTooLong."""

    def vocabulary(self) -> Vocabulary:
        """An empty one, in its tokens."""

    def fits(self, prepared: Any) -> bool:
        """Whether there is room for one more reading beside those that have begun."""

    def begin(self, prepared: Any) -> Any:
        """Take a reading up; what it is called from now on. After an error none is left."""

    def step(self) -> list[tuple[Any, Reading]]:
        """Go on with all that have begun; those that ended with it. After an error none is left."""

    def drop(self, work: Any) -> None:
        """Nobody waits for it any more."""


class NoteStore(Protocol):
    """Notes, vectors and the change log: the truth. Every method raises StoreUnavailable when the store is away."""

    async def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[StoredNote | None]:
        """In the order of `ids`; None for a note that is not there or has expired."""

    async def put(self, writes: Sequence[Write]) -> list[Written | None]:
        """Each note, its vector and its log entry in one atomic step, durable on return; None: not at `expected`."""

    async def delete(self, note_id: str, expected: str | None = None) -> str | None:
        """Durable on return. The removal's position, or None where there is no such note.

        Raises PreconditionFailed when the note is not at `expected`.
        """

    async def read_log(self, after: str, count: int, block_seconds: float) -> tuple[list[LogEntry], LogBounds]:
        """Entries behind `after`, oldest first; waits up to `block_seconds` for the first one. And the bounds, asked
        for the entry of `after`, as they are after that."""

    async def get_logged(self, entries: Sequence[LogEntry]) -> dict[str, StoredNote | None]:
        """The notes that entries of the log tell of, with vectors, by id: each as it was after the last of these
        entries, or is by now; None: it is not there."""

    def forget_written(self) -> None:
        """Have the next `get_logged` read all notes as they are by then."""

    async def log_bounds(self, entry: str = ORIGIN) -> LogBounds: ...
    def scan(self) -> AsyncIterator[list[StoredNote]]:
        """Every note with its vector, in no order; notes written meanwhile may or may not be among them."""

    async def identity(self) -> str:
        """Of these notes and their log: another one after they were thrown away or exchanged for others."""

    async def keep_log(self, replica: str, position: str) -> None:
        """`replica` has a snapshot of `position`: what comes before those of all replicas may be cut off the log."""

    async def size(self) -> int:
        """About how many notes there are."""

    async def durability(self) -> Durability: ...
    async def samples_loaded(self) -> bool:
        """Whether `mark_samples_loaded` was ever called."""

    async def mark_samples_loaded(self) -> None: ...


Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a snapshot. `make` gives its arrays as they were when it was frozen, in any thread. `lasting`: what
    has its name is the same for ever."""

    name: str
    make: Callable[[], Arrays]
    lasting: bool = False


ReadPart = Callable[[str], Arrays]
"""The arrays of a part, by its name."""


class IndexJob(Protocol):
    """Work that makes an index smaller or faster. `rows`: how many it moves."""

    @property
    def rows(self) -> int: ...

    def run(self) -> None:
        """In any thread, while others write and search."""


class VectorIndex(Protocol):
    """Rows of one space, searched by inner product. One thread writes, plans and finishes; any number search."""

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        """Add or replace rows; every note has a vector of the index's dimension."""

    def remove(self, ids: Sequence[str]) -> None:
        """Unknown ids are ignored."""

    def expire(self, now: float) -> list[str]:
        """Remove the rows that have expired; their ids."""

    def search(self, vector: Vector, k: int, where: Filter, now: float) -> list[Hit]:
        """The `k` rows nearest to `vector` among those that `where` accepts and that have not expired at `now`, best
        first, ties by id; nearly all of the nearest, unless it asks for exactness, but never fewer than there are."""

    def vector(self, note_id: str) -> Vector | None: ...
    def ids(self) -> list[str]:
        """Of all rows that can be found, in no order."""

    def freeze(self) -> list[Part]:
        """All of it as it is now, of which a snapshot can be made while others write and search."""

    def thaw(self, read: ReadPart) -> None:
        """Become, from being empty, what was frozen."""

    def plan(self) -> IndexJob | None:
        """What is to be run and then finished, one job at a time; None when all is well."""

    def finish(self, job: Any) -> None:
        """Take in what a planned job made."""

    def give_up(self, job: Any) -> None:
        """It failed: plan whatever else is to be done before it is tried again."""

    def __len__(self) -> int:
        """Rows that can be found."""

    @property
    def tombstones(self) -> int:
        """Rows that are kept but can never be found."""

    @property
    def segments(self) -> int:
        """Parts that a search goes through."""

    @property
    def shared(self) -> bool:
        """Whether a search may have to wait for others."""


@dataclass(slots=True)
class Clock:
    """Now, in seconds since the epoch; a test sets `offset` to move it."""

    offset: float = field(default=0.0)

    def __call__(self) -> float:
        return time.time() + self.offset
