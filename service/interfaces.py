"""Ports: how the use-cases see the engine, the store and the index. What the index is made of has its own ports
(index/backend.py).

Scores are cosines: all vectors have unit length; 1 is the same direction, higher is closer. Vectors of two spaces are
never compared. A log position is the id of an entry of the change log; positions order all writes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from model.generation import GenerationOutput, GenerationRequest, Neighbours, ReadTokens, Usage, Vocabulary
from model.note import Note
from service.events import Event, EventEntry, EventOutcome
from service.filters import Filter
from service.records import (
    ORIGIN,
    Attempt,
    Centre,
    ChangedNotes,
    Claim,
    Condition,
    Durability,
    Hit,
    IndexRows,
    IndexStatus,
    LogBounds,
    LogEntry,
    LogTail,
    RankedList,
    Remembered,
    StoredNote,
    Unreadable,
    Vector,
    Write,
    Written,
    WrittenRows,
)


@dataclass(slots=True)
class Clock:
    """The current time in seconds since the epoch; a test sets `offset` to move it."""

    offset: float = field(default=0.0)

    def __call__(self) -> float:
        return time.time() + self.offset


# The engine


class TokenizedRequest(Protocol):
    """A note and what is requested of it, ready for the engine."""

    @property
    def tokens(self) -> int:
        """Prompt tokens: the cost of its prefill."""


class Engine(Protocol):
    """One model. `tokenize` may be called in any thread, `usage` in any between two steps, everything else in one.

    `space` names the model's vector space, `dimension` its size; `categories` are those that the model was trained on.
    `read_tokens`: how much of a note it reads. `languages`: ISO 639 codes of those that it writes hashtags in; () where
    nobody has said it.
    """

    name: str
    space: str
    dimension: int
    categories: tuple[str, ...]
    read_tokens: ReadTokens
    languages: tuple[str, ...]

    def tokenize(self, note: Note, request: GenerationRequest) -> TokenizedRequest:
        """Tokenise a request. Raises CategoriesTooLong."""

    def vocabulary(self) -> Vocabulary:
        """Return an empty vocabulary that spells hashtags in this engine's tokens."""

    def can_add(self, tokenized: Any) -> bool:
        """Return whether memory is left for one more request beside those that are running."""

    def add_request(self, tokenized: Any) -> Any:
        """Begin a request, and return its handle. After an error no request is running."""

    def step(self) -> list[tuple[Any, GenerationOutput]]:
        """Advance all running requests, and return the handles and outputs of those that ended. After an error no
        request is running."""

    def usage(self, handle: Any) -> Usage:
        """Return the tokens that a running request has used so far, about."""

    def abort(self, handle: Any) -> None:
        """Stop a running request: nobody waits for it any more."""


# The store

MAX_READ_BYTES = 8 * 2**20
"""Bound on the bytes of the notes that are read from the store at a time, but for a single one; published at GET
/limits."""


class NoteStore(Protocol):
    """Notes, vectors and the change log: the truth, from which everything else is derived.

    Every method raises StoreUnavailable when the store is away. A note that cannot be decoded is no error: it is
    returned as Unreadable, and a write or a removal of its id heals it.
    """

    @property
    def unreadable(self) -> Collection[str]:
        """Ids of notes that were returned as Unreadable and, as far as this process knows, still would be."""

    async def get(
        self, ids: Sequence[str], *, with_vectors: bool = False, max_bytes: int | None = None
    ) -> list[StoredNote | Unreadable | None]:
        """Return notes in the order of `ids`; None for one that does not exist or has expired. They are read
        MAX_READ_BYTES at a time. Whether a note is Unreadable does not depend on `with_vectors`. With `max_bytes` only
        the first notes are returned, one at the least, as many as have no more bytes together in the store."""

    def get_in_parts(
        self, ids: Sequence[str], *, with_vectors: bool = False
    ) -> AsyncIterator[list[StoredNote | Unreadable | None]]:
        """Yield what `get` returns, as many notes at a time as have MAX_READ_BYTES together, one at the least."""

    async def put(self, writes: Sequence[Write]) -> list[Written | None]:
        """Write each note with its vector, its log entry and what is `remembered` of it in one atomic step, durably.
        None stands for a note for which its condition does not hold. Raises KeyInUse for a claim that has ended, and,
        as every write, TenantRemoved."""

    async def delete(
        self, note_id: str, condition: Condition | None = None, remembered: Remembered | None = None
    ) -> str | None:
        """Remove a note durably, and return the removal's log position, or None where there is no such note.

        Raises PreconditionFailed when `condition` does not hold, and KeyInUse.
        """

    async def delete_all(self, removals: Sequence[tuple[str, Condition | None]]) -> list[str | None]:
        """Remove notes durably, each in one atomic step. Return the log positions, None for what was not removed."""

    async def claim(self, attempts: Sequence[Attempt], lease_seconds: float, seconds: float) -> list[Claim]:
        """Claim writes, all or none, for `lease_seconds`; those that were made earlier say so, and are durable. A write
        that is made under its claim is remembered for `seconds`. Raises KeyInUse, KeyReused."""

    async def remember(self, written: Sequence[tuple[StoredNote, Remembered]]) -> None:
        """Remember, durably, writes that left these notes as they were. Raises KeyInUse."""

    async def remember_end(self, remembered: Remembered, position: str) -> None:
        """Remember, durably, the end of several writes, and the position of the last one. Raises KeyInUse."""

    async def release(self, claims: Sequence[Claim]) -> None:
        """Give up claims of one call of `claim`; those of writes that were made meanwhile have no effect."""

    def scan(self) -> AsyncIterator[list[StoredNote | Unreadable]]:
        """Yield every note with its vector, in no order, MAX_READ_BYTES at a time; a note that is written meanwhile may
        be missing."""

    async def size(self) -> int:
        """Return about how many notes there are."""

    async def identity(self) -> str:
        """Return the name of these notes and their log; it changes when they are thrown away or exchanged. Raises
        TenantRemoved where it is not the one that the store must have."""

    async def durability(self) -> Durability:
        """Return whether acknowledged writes survive the death of the store."""

    async def wait_for_disk(self) -> None:
        """Return once everything that was read from the store is durable, also what other callers have just written. To
        be called before acknowledging a write that found nothing to change; all other writes wait by themselves."""

    async def read_log(self, after: str, count: int, block_seconds: float) -> tuple[list[LogEntry], LogBounds]:
        """Return up to `count` entries after the position `after`, the oldest first, and the bounds of the log after
        that, with the entry at `after`. Waits up to `block_seconds` for a first entry."""

    async def get_logged(self, entries: Sequence[LogEntry]) -> dict[str, StoredNote | Unreadable | None]:
        """Return by id the notes that log entries name, with vectors, each as it was after the last of the entries or
        is by now; None for one that does not exist."""

    def forget_written(self) -> None:
        """Have the next `get_logged` read all notes from the store, not from this process's memory of its writes."""

    @property
    def known_position(self) -> str | None:
        """The log position after which nobody was told of a change, as known without asking the store; None where it
        is not known."""

    async def log_tail(self, after: str, count: int) -> LogTail | None:
        """Return the log after the position `after`; None where the log has more than `count` entries there, or does
        not have the one at `after` itself, so that later ones may be missing too."""

    async def log_bounds(self, entry: str = ORIGIN) -> LogBounds:
        """Return the bounds of the log, and whether it has the entry at a position."""

    async def keep_log(self, replica: str, position: str) -> None:
        """Record that `replica` has a snapshot at `position`. Entries before those of all replicas may be cut off."""

    async def begin_samples(self) -> bool:
        """Begin to add sample notes. False where none are to be added: something was written here before, or all were
        added once. An addition that began and was not marked as loaded goes on."""

    async def mark_samples_loaded(self) -> None:
        """Record that all sample notes were added."""


class ListStore(Protocol):
    """Ranked lists of one tenant that are kept for a time, so that any replica gives their next pages. Every method
    raises StoreUnavailable when the store is away."""

    async def save(self, ranked: RankedList) -> RankedList:
        """Save a list under its id, in place of the oldest one where there are too many. Return what is kept of it: a
        list that is too large is cut. Raises TenantRemoved."""

    async def read(self, list_id: str, start: int, count: int) -> RankedList | None:
        """Return a list with `count` of its notes, from the place `start` on; None where it is not kept any more."""


class TenantDirectory(Protocol):
    """The tenants that have a store beside the default one. Every method raises StoreUnavailable."""

    async def known(self) -> Mapping[str, str | None]:
        """Return the identity of each tenant's store by the tenant's name; None while the tenant is being removed."""

    async def open(self, name: str) -> str:
        """Return the identity of a tenant's store, durably made where there is none. Raises TooManyTenants, and
        TenantRemoved while the tenant is being removed."""

    async def was_removed(self, name: str) -> bool:
        """Return whether a tenant that is not known any more was removed in the last day. If not, the store has lost
        it."""

    async def remove(self, name: str) -> None:
        """Remove everything that a tenant's store holds, and go on with a removal that was broken off. From its begin
        on nothing is written to the store. Raises TenantNotFound."""

    async def finish_removal(self, name: str) -> None:
        """Go on with the removal of a tenant; do nothing where none is under way."""


# Events


class EventStore(Protocol):
    """The stream of events of one tenant. Every method raises StoreUnavailable, and TenantRemoved."""

    async def add(self, events: Sequence[Event]) -> list[EventOutcome]:
        """Append durably the events whose ids are not known yet and whose notes exist: part by part, each of which is
        one atomic step."""

    async def read(self, after: str, count: int, block_seconds: float) -> tuple[list[EventEntry], str]:
        """Return up to `count` entries after the position `after`, the oldest first, and the identity of the store;
        wait up to `block_seconds` for a first entry."""

    async def last(self) -> str:
        """Return the position of the last entry ever written, ORIGIN before the first."""

    def of_reader(self, reader: str) -> AsyncIterator[list[EventEntry]]:
        """Yield all events of a reader that are kept, in the order in which `add` took them in, part by part."""

    async def forget(self, reader: str) -> int:
        """Remove durably all events of a reader so far; return how many there were."""

    async def trim(self) -> tuple[int, str]:
        """Remove entries that are out of bounds; return the bytes that are left, and the position of the first entry
        that is left, ORIGIN where none is."""


# The index


class NoteIndex(Protocol):
    """The index of a process as the use-cases see it: it follows the change log of the store, and answers searches."""

    @property
    def position(self) -> str:
        """Log position up to which every write is in the index."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Hashtags that authors gave the notes in the index."""

    def status(self) -> IndexStatus: ...

    async def start(self) -> None:
        """Build the index, and from then on follow the log in the background. Raises TenantRemoved. If the store is
        away, the background task tries again until the index is built."""

    async def save_merged(self, seconds: float) -> None:
        """Make a snapshot where anything changed since the last one, once no segments are left to merge, or after so
        many seconds. A failure is logged."""

    async def discard(self) -> None:
        """Remove the snapshots, and make no more of them: the store was removed."""

    def on_change(self, apply: Callable[[ChangedNotes | None], None]) -> None:
        """Have `apply` called with the notes that changed, None for any, before `position` says so."""

    def on_move(self, apply: Callable[[ChangedNotes | None], None]) -> None:
        """Have `apply` called as by `on_change`, but not with notes that could be found before by the same vectors:
        nothing is nearer or farther than it was."""

    async def wait_for(self, position: str, seconds: float) -> None:
        """Return once every write up to `position` can be found. Raises IndexBehind after `seconds`."""

    async def search(self, vector: Vector, k: int, where: Filter, recall_k: int | None = None) -> list[Hit]:
        """Do what VectorIndex.search (index/backend.py) does. Raises IndexBehind before the index was first built."""

    def search_nowait(self, vector: Vector, k: int, where: Filter) -> list[Hit] | None:
        """Do what `search` does where it needs no other thread; None where it does, and before the index was first
        built."""

    async def search_rows(
        self, vector: Vector, k: int, where: Filter, recall_k: int | None = None
    ) -> tuple[list[Hit], IndexRows]:
        """Do what `search` does, and return the rows of these notes in the same order as well."""

    def find_neighbours(self, note: Note, vector: Vector, count: int) -> Neighbours:
        """Return notes with author hashtags: `count` by `vector` and `count` by the words of `note`, never the note of
        its own id. Blocks: for the thread of the engine, not for the event loop."""

    async def search_words(self, note: Note, count: int, where: Filter, ids: Sequence[str] = ()) -> dict[str, float]:
        """Return by id the word scores, above 0 and up to 1, of up to `count` notes that pass a filter and share the
        most words with `note`, and of those of `ids` that share any; never of the note of its own id."""

    async def sampled_ids(self, count: int) -> list[str]:
        """Return the ids of `count` notes or somewhat more, evenly spread over all; of all where there are fewer."""

    async def passing(self, ids: Sequence[str], where: Filter) -> list[str]:
        """Return those of some ids whose notes are in the index and pass a filter, in their order."""

    async def count_excluded(self, where: Filter) -> int:
        """Return how many notes a filter leaves out."""

    async def shared_words(self, note: Note, others: Sequence[Note]) -> list[tuple[str, ...]]:
        """Return the rarest words that each of `others` shares with `note`, the rarest first."""

    @property
    def centre(self) -> Centre:
        """The share of the notes' mean vector that queries leave out. Each estimate of the mean is a new object."""

    def vector(self, note_id: str) -> Vector | None:
        """Return the vector of a note, None where the index does not have it."""

    async def rows(self, note_ids: Sequence[str]) -> IndexRows:
        """Return those of some notes that the index has, in their order."""

    async def written(self, after: str, count: int, where: Filter) -> WrittenRows:
        """Return the first `count` notes after `after` that pass the filter but `exclude`, or are of other spaces."""

    async def ids(self) -> list[str]:
        """Return the ids of all rows; of a healthy index none twice."""

    async def expire(self) -> None:
        """Remove the notes that have expired, which searches leave out already."""

    async def resync(self, note_ids: Sequence[str]) -> None:
        """Replace notes in the index by what the store has. Raises StoreUnavailable."""
