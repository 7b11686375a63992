"""What the use-cases need from the engine, the store and the index, and the records that pass between them.

A score is a cosine: both vectors have unit length, 1 is the same direction, higher is closer. Vectors of two spaces are
never compared. A log position is the id of an entry of the change log; positions order all writes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

from model.generation import GenerationOutput, GenerationRequest, Vocabulary
from model.note import Note
from service.filters import Filter
from service.records import ORIGIN, Durability, Hit, LogBounds, LogEntry, StoredNote, Vector, Write, Written


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Note that is in the store and cannot be decoded. `reason`: why, without any of its text."""

    id: str
    reason: str


class TokenizedRequest(Protocol):
    """A note as the engine wants it."""

    @property
    def wanted(self) -> GenerationRequest: ...
    @property
    def tokens(self) -> int:
        """Of its prompts: what it costs to begin."""


class Engine(Protocol):
    """One model. `prepare` in any thread; the rest in one."""

    name: str
    space: str
    dimension: int
    categories: tuple[str, ...]

    def tokenize(self, note: Note, wanted: GenerationRequest) -> TokenizedRequest:
        """Tokenise. Raises CategoriesTooLong."""

    def vocabulary(self) -> Vocabulary:
        """An empty one, in its tokens."""

    def can_add(self, prepared: Any) -> bool:
        """Whether there is room for one more reading beside those that have begun."""

    def add_request(self, prepared: Any) -> Any:
        """Take a reading up; what it is called from now on. After an error none is left."""

    def step(self) -> list[tuple[Any, GenerationOutput]]:
        """Go on with all that have begun; those that ended with it. After an error none is left."""

    def abort(self, work: Any) -> None:
        """Nobody waits for it any more."""


class NoteStore(Protocol):
    """Notes, vectors and the change log: the truth. Every method raises StoreUnavailable when the store is away. A note
    that cannot be decoded is no error: it comes as Unreadable, and a write or a removal of its id heals it."""

    async def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[StoredNote | Unreadable | None]:
        """In the order of `ids`; None for a note that is not there or has expired. Whether one is Unreadable does not
        depend on `with_vectors`."""

    @property
    def unreadable(self) -> Collection[str]:
        """Ids of notes that came as Unreadable and, as far as this process knows, still would."""

    async def put(self, writes: Sequence[Write]) -> list[Written | None]:
        """Each note, its vector and its log entry in one atomic step, durable on return; None: not at `expected`."""

    async def delete(self, note_id: str, expected: str | None = None) -> str | None:
        """Durable on return. The removal's position, or None where there is no such note.

        Raises PreconditionFailed when the note is not at `expected`.
        """

    async def read_log(self, after: str, count: int, block_seconds: float) -> tuple[list[LogEntry], LogBounds]:
        """Entries behind `after`, oldest first; waits up to `block_seconds` for the first one. And the bounds, asked
        for the entry of `after`, as they are after that."""

    async def get_logged(self, entries: Sequence[LogEntry]) -> dict[str, StoredNote | Unreadable | None]:
        """The notes that entries of the log tell of, with vectors, by id: each as it was after the last of these
        entries, or is by now; None: it is not there."""

    def forget_written(self) -> None:
        """Have the next `get_logged` read all notes as they are by then."""

    async def log_bounds(self, entry: str = ORIGIN) -> LogBounds: ...
    def scan(self) -> AsyncIterator[list[StoredNote | Unreadable]]:
        """Every note with its vector, in no order; notes written meanwhile may or may not be among them."""

    async def identity(self) -> str:
        """Of these notes and their log: another one after they were thrown away or exchanged for others."""

    async def keep_log(self, replica: str, position: str) -> None:
        """`replica` has a snapshot of `position`: what comes before those of all replicas may be cut off the log."""

    async def size(self) -> int:
        """About how many notes there are."""

    async def durability(self) -> Durability: ...
    async def begin_samples(self) -> bool:
        """Begin to add sample notes. False: they are not to be, because something was written here before, or all were
        added once; what was begun and not marked as ended goes on."""

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


class MaintenanceJob(Protocol):
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

    def snapshot_parts(self) -> list[Part]:
        """All of it as it is now, of which a snapshot can be made while others write and search."""

    def restore(self, read: ReadPart) -> None:
        """Become, from being empty, what was frozen."""

    def plan(self) -> MaintenanceJob | None:
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


class LexicalIndex(Protocol):
    """Notes that come and go, found by the words that they share. Thread-safe."""

    def add(self, note: Note) -> None:
        """Or replace the one of the same id."""

    def remove(self, note_id: str) -> None:
        """An unknown id is ignored."""

    def nearest(self, note: Note, count: int) -> list[tuple[str, float]]:
        """Ids and scores of the `count` notes that share the most words with `note`, best first, ties by id; never the
        one of its own id. A score is above 0, and 1 where the words are the same."""

    def snapshot_parts(self) -> tuple[list[str], Mapping[str, Any]]:
        """Ids, and arrays: all of it as it is now."""

    def restore(self, ids: Sequence[str], arrays: Mapping[str, Any]) -> None:
        """Become, from being empty, what was frozen."""
