"""Ports: the engine, the store and the index as the use-cases see them. The components of the index have their own
ports in index/backend.py.

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
from service.events import Event, EventEntry, EventOutcome, EventStreamEnd
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
    """A note and its generation request, tokenised for the engine."""

    @property
    def tokens(self) -> int:
        """Prompt tokens, which determine the cost of prefill."""


class Engine(Protocol):
    """One model. `tokenize` may be called in any thread, `usage` in any thread between two steps, everything else in
    one thread only.

    `space` names the model's vector space, `dimension` its size; `categories` are those that the model was trained on.
    `read_tokens`: how many tokens of a note it reads. `languages`: ISO 639 codes of the languages in which it writes
    hashtags; () if they are not known.
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
        """Return whether memory is left for one more request besides the running ones."""

    def add_request(self, tokenized: Any) -> Any:
        """Start a request, and return its handle. After an error no request is running; one of this request alone is
        not raised here (`take_failed`)."""

    def step(self) -> list[tuple[Any, GenerationOutput]]:
        """Advance all running requests, and return the handles and outputs of those that ended. After an error no
        request is running; one of a single request is not raised here (`take_failed`)."""

    def take_failed(self) -> list[tuple[Any, Exception]]:
        """Return and forget the handles of requests that have failed on their own, with their errors."""

    def usage(self, handle: Any) -> Usage:
        """Return about how many tokens a running request has used so far."""

    def abort(self, handle: Any) -> None:
        """Stop a running request whose caller has left."""


# The store

MAX_READ_BYTES = 8 * 2**20
"""Bound on the bytes of the notes read from the store at a time; a single note may be larger. Published at GET
/limits."""


class NoteStore(Protocol):
    """Notes, vectors and the change log: the source of truth, from which everything else is derived.

    Every method raises StoreUnavailable when the store is unavailable. A note that cannot be decoded is not an error:
    it is returned as Unreadable, until a write or a removal of its id repairs it.
    """

    @property
    def unreadable(self) -> Collection[str]:
        """Ids of notes that were returned as Unreadable and, as far as this process knows, still would be."""

    async def get(
        self, ids: Sequence[str], *, with_vectors: bool = False, max_bytes: int | None = None
    ) -> list[StoredNote | Unreadable | None]:
        """Return notes in the order of `ids`; None for one that does not exist or has expired. They are read
        MAX_READ_BYTES at a time. Whether a note is Unreadable does not depend on `with_vectors`. With `max_bytes`,
        return only the first notes: as many as take at most this many bytes in the store, at least one."""

    def get_in_parts(
        self, ids: Sequence[str], *, with_vectors: bool = False
    ) -> AsyncIterator[list[StoredNote | Unreadable | None]]:
        """Yield what `get` returns, in parts of at most MAX_READ_BYTES and at least one note."""

    async def put(self, writes: Sequence[Write]) -> list[Written | None]:
        """Write each note durably, with its vector, its log entry and its `remembered` answer in one atomic step.
        Return None for a note whose condition does not hold. Raises KeyInUse for a claim that has ended, and, as every
        write does, TenantRemoved."""

    async def delete(
        self, note_id: str, condition: Condition | None = None, remembered: Remembered | None = None
    ) -> str | None:
        """Remove a note durably, and return the removal's log position, or None if there is no such note.

        Raises PreconditionFailed when `condition` does not hold, and KeyInUse.
        """

    async def delete_all(self, removals: Sequence[tuple[str, Condition | None]]) -> list[str | None]:
        """Remove notes durably, each in one atomic step. Return the log positions; None for a note that was not
        removed."""

    async def claim(self, attempts: Sequence[Attempt], token: str, lease_seconds: float, seconds: float) -> list[Claim]:
        """Claim writes for `lease_seconds`, all or none, under a `token` that no other call has. The claim of a
        write that was made earlier has it as `earlier`; that write is durable. A write that is made under its claim is
        remembered for `seconds`. Raises KeyInUse, KeyReused."""

    async def record_answers(self, written: Sequence[tuple[StoredNote, Remembered]]) -> None:
        """Record durably the answers of writes that left these notes unchanged. Raises KeyInUse."""

    async def record_final_answer(self, remembered: Remembered, position: str) -> None:
        """Record durably the answer of a series of writes, and the position of the last one. Raises KeyInUse."""

    async def release(self, claims: Sequence[Claim]) -> None:
        """Release the claims of one call of `claim`; a write that was made meanwhile stays remembered."""

    def scan(self) -> AsyncIterator[list[StoredNote | Unreadable]]:
        """Yield every note with its vector, in no particular order, MAX_READ_BYTES at a time; a note that is written
        meanwhile may be missing."""

    async def size(self) -> int:
        """Return the approximate number of notes."""

    async def identity(self) -> str:
        """Return the identity of these notes and their log; it changes when they are deleted or replaced as a whole.
        Raises TenantRemoved if it is not the identity that the store must have."""

    async def durability(self) -> Durability:
        """Return whether acknowledged writes survive a crash of the store."""

    async def wait_for_disk(self) -> None:
        """Wait until everything read from the store is durable, including what other callers have just written. Call it
        before acknowledging a write that changed nothing; all other writes wait by themselves."""

    async def read_log(self, after: str, count: int, block_seconds: float) -> tuple[list[LogEntry], LogBounds]:
        """Return up to `count` entries after the position `after`, oldest first, and the log's bounds as of then,
        queried for the entry at `after`. Waits up to `block_seconds` for a first entry."""

    async def get_logged(self, entries: Sequence[LogEntry]) -> dict[str, StoredNote | Unreadable | None]:
        """Return the notes that log entries name, by id and with vectors, each as of the last of the entries or later;
        None for one that does not exist."""

    def drop_own_writes(self) -> None:
        """Make the next `get_logged` read all notes from the store rather than from this process's memory of its own
        writes."""

    @property
    def known_position(self) -> str | None:
        """Log position after which no caller has seen a change, as far as known without asking the store; None if
        unknown."""

    def invalidate_known_position(self) -> None:
        """Make the known position unknown until there is a later change: the log was replaced, or has lost its end."""

    async def log_tail(self, after: str, count: int) -> LogTail | None:
        """Return the log after the position `after`; None if the log has more than `count` entries there, or lacks the
        entry at `after` itself, so that later ones may be missing too."""

    async def log_bounds(self, entry: str = ORIGIN) -> LogBounds:
        """Return the bounds of the log, and whether it has the entry at a position."""

    async def keep_log(self, replica: str, position: str) -> None:
        """Record that `replica` has a snapshot at `position`. Entries before the snapshots of all replicas may be
        trimmed."""

    async def begin_samples(self, ids: Sequence[str]) -> bool:
        """Begin to add the sample notes with these ids. Return False if none are to be added: something was written
        here before, or all were added once. An addition that was interrupted before `mark_samples_loaded` is resumed,
        unless another note was written, any was removed, or the log was purged or trimmed, meanwhile."""

    async def mark_samples_loaded(self) -> None:
        """Record that all sample notes were added."""


class ListStore(Protocol):
    """Store of one tenant's ranked lists, kept for a time so that any replica can serve their next pages. Every method
    raises StoreUnavailable when the store is unavailable."""

    async def save(self, ranked: RankedList) -> RankedList:
        """Save a list under its id, evicting the oldest one if there are too many. Return the list as it is kept: one
        that is too large is truncated. Raises TenantRemoved."""

    async def read(self, list_id: str, start: int, count: int) -> RankedList | None:
        """Return a list with `count` of its notes, from the place `start` on; None if it is no longer kept."""


class TenantDirectory(Protocol):
    """Directory of the tenants other than the default one. Every method raises StoreUnavailable."""

    async def known(self) -> Mapping[str, str | None]:
        """Return the identity of each tenant's store by the tenant's name; None while the tenant is being removed."""

    async def open(self, name: str) -> str:
        """Return the identity of a tenant's store, which is created durably if it does not exist. Raises
        TooManyTenants, and TenantRemoved while the tenant is being removed."""

    async def was_removed(self, name: str) -> bool:
        """Return whether a tenant that no longer exists was removed in the last day. If not, the store has lost it."""

    async def remove(self, name: str) -> str:
        """Remove everything in a tenant's store, or resume an interrupted removal; return the store's identity. Once
        the removal has begun, nothing is written to the store. Raises TenantNotFound."""

    async def finish_removal(self, name: str) -> None:
        """Resume the removal of a tenant; do nothing if none is in progress."""


# Events


class EventStore(Protocol):
    """The stream of events of one tenant. Every method raises StoreUnavailable; all but `last` raise TenantRemoved
    too."""

    async def add(self, events: Sequence[Event]) -> list[EventOutcome]:
        """Append durably the events whose ids are new and whose notes exist, in batches, each of which is atomic."""

    async def read(self, after: str, count: int, block_seconds: float) -> tuple[list[EventEntry], EventStreamEnd]:
        """Return up to `count` entries after the position `after`, oldest first, and the end that the stream had then
        or shortly after. Waits up to `block_seconds` for a first entry."""

    async def last(self) -> str:
        """Return the position of the last entry ever written, ORIGIN before the first."""

    def read_events_of(self, reader: str) -> AsyncIterator[list[EventEntry]]:
        """Yield all events of a reader that are kept, in batches, in the order in which `add` stored them."""

    async def forget(self, reader: str) -> int:
        """Remove durably all events of a reader so far; return their number."""

    async def trim(self) -> tuple[int, str]:
        """Remove entries that exceed the bounds of the stream; return the remaining bytes and the position of the first
        remaining entry, ORIGIN if there is none."""


# The index


class NoteIndex(Protocol):
    """Index of one tenant's notes in a process: it follows the change log of the store, and answers searches."""

    @property
    def position(self) -> str:
        """Log position up to which every write is in the index."""

    @property
    def begun_batches(self) -> int | None:
        """Number of batches of changes whose application has begun; None while one is being applied. A search may then
        find a note in its new state, although `position` and the rendered items do not have the change yet."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Hashtags that authors gave the notes in the index."""

    @property
    def other_space(self) -> int:
        """Number of notes in the store that no search finds, since their vectors are from another model."""

    def status(self) -> IndexStatus: ...

    async def start(self) -> None:
        """Build the index, then follow the log in the background. Raises TenantRemoved. If the store is unavailable,
        the background task tries again until the index is built."""

    async def save_merged(self, seconds: float) -> None:
        """Make a snapshot if anything changed since the last one, once no segments are left to merge, or after
        `seconds`. A failure is logged."""

    async def discard(self) -> None:
        """Remove the snapshots and make no further ones: the store was removed."""

    def on_change(self, apply: Callable[[ChangedNotes | None], None]) -> None:
        """Register `apply`, which is called with the notes that changed, or with None if any may have, before
        `position` includes the change."""

    def on_vector_change(self, apply: Callable[[ChangedNotes | None], None]) -> None:
        """Register `apply`, which is called as by `on_change`, but without notes that could be found before by the same
        vectors: no distance has changed."""

    async def wait_for(self, position: str, seconds: float) -> None:
        """Wait until every write up to `position` can be found. Raises IndexBehind after `seconds`."""

    async def search(self, vector: Vector, k: int, where: Filter, recall_k: int | None = None) -> list[Hit]:
        """Return the `k` notes nearest to `vector` (D,) among those that pass a filter, best first, ties by id; fewer
        only where fewer pass. Unless `where.exact` is set, some of the nearest may be missed. `recall_k`: only the
        nearest `recall_k` notes have the recall of a search for that many; None for all `k`. Raises IndexBehind before
        the index was first built."""

    def search_nowait(self, vector: Vector, k: int, where: Filter) -> list[Hit] | None:
        """Do what `search` does, if that needs no other thread; return None if it does, or before the index was first
        built."""

    async def search_rows(
        self, vector: Vector, k: int, where: Filter, recall_k: int | None = None
    ) -> tuple[list[Hit], IndexRows]:
        """Do what `search` does, and also return the index rows of the hits, in the same order."""

    def find_neighbours(self, note: Note, vector: Vector, count: int) -> Neighbours:
        """Return notes with author hashtags: `count` by `vector` and `count` by the words of `note`, never the note
        itself. Blocks, so call it in the engine's thread and not in the event loop."""

    async def search_words(self, note: Note, count: int, where: Filter, ids: Sequence[str] = ()) -> dict[str, float]:
        """Return word scores, above 0 and up to 1, by id: of up to `count` notes that pass a filter and share the most
        words with `note`, and of those of `ids` that share any. The note itself is left out."""

    async def sampled_ids(self, count: int) -> list[str]:
        """Return the ids of `count` notes, evenly spread over all; all ids if there are fewer."""

    async def passing(self, ids: Sequence[str], where: Filter) -> list[str]:
        """Return, in order, those of `ids` whose notes are in the index and pass a filter."""

    async def count_excluded(self, where: Filter) -> int:
        """Return how many notes a filter leaves out."""

    async def shared_words(self, note: Note, others: Sequence[Note]) -> list[tuple[str, ...]]:
        """Return the rarest words that each of `others` shares with `note`, rarest first."""

    @property
    def centre(self) -> Centre:
        """Share of the notes' mean vector that is subtracted from queries. Each estimate of the mean is a new
        object."""

    def vector(self, note_id: str) -> Vector | None:
        """Return the vector of a note; None if the index does not have it."""

    async def rows(self, note_ids: Sequence[str]) -> IndexRows:
        """Return the rows of those of `note_ids` that are in the index, in their order."""

    async def written(self, after: str, count: int, where: Filter) -> WrittenRows:
        """Return the first `count` notes by their last writes after `after`, of those that pass the filter (without its
        `exclude`) or are of other spaces."""

    async def ids(self) -> list[str]:
        """Return the ids of all rows; a healthy index has no id twice."""

    async def expire(self) -> None:
        """Remove expired notes, which searches leave out already."""

    async def resync(self, note_ids: Sequence[str]) -> None:
        """Replace notes in the index by their versions in the store. Raises StoreUnavailable."""
