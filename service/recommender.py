"""The use-cases: add, change, remove, similar, generate. Knows the ports of interfaces.py; not HTTP, Redis or FAISS."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from ulid import ULID

from model.generation import (
    MAX_CATEGORY_TOKENS,
    CategoriesTooLong,
    GenerationOutput,
    GenerationRequest,
    Hashtag,
    HashtagPolicy,
    Usage,
)
from model.note import Note, hashtag_key
from service.batcher import Admission, Batcher, Lane
from service.errors import (
    LimitExceeded,
    NoteNotFound,
    OtherSpace,
    PreconditionFailed,
    StoredNoteUnreadable,
    StoreUnavailable,
)
from service.filters import Filter
from service.interfaces import Clock, Engine, NoteIndex, NoteStore
from service.records import Generated, StoredNote, Unreadable, Vector, Write, position_key
from service.telemetry import Telemetry

WAIT_SECONDS = 10.0
"""How long a write waits for the index to show it; the log is normally milliseconds behind."""
CHANGE_ATTEMPTS = 5
CHECK_SECONDS = 1.0
"""How long the store may take to say what related notes are."""
STORE_BATCH_SIZE = 32
"""Most notes between two writes to the store: what a deadline or a failure in a long list can cost."""


@dataclass(frozen=True, slots=True)
class Generate:
    """What to fill in where the author left it out: how many hashtags (0: none), and the category."""

    hashtags: int = 0
    category: bool = False


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a deployment decides of generation: the closed set (() for the model's own), the policy where a request does
    not say, and hashtags that are never told."""

    categories: tuple[str, ...] = ()
    hashtag_policy: HashtagPolicy = "grounded"
    blocked_hashtags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Added:
    """`status`: created, updated, or unchanged (nothing was written). `usage` is zero when no model was needed."""

    stored: StoredNote
    status: str
    usage: Usage
    hashtags_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Similar:
    """`complete`: there are min(k, matches) items. `degraded`: the store could not be asked, so that of each note only
    its id is known, and one that was removed on another replica since then may be among them."""

    items: list[tuple[StoredNote, float]]
    complete: bool
    log_position: str
    degraded: bool = False


class Recommender:
    """One for each process. `categories`: what a note's is chosen from."""

    def __init__(
        self,
        engine: Engine,
        batcher: Batcher,
        store: NoteStore,
        index: NoteIndex,
        telemetry: Telemetry,
        clock: Clock,
        house: GenerationDefaults = GenerationDefaults(),
    ) -> None:
        self.engine = engine
        self.categories = house.categories or engine.categories
        self.house = house
        self._batcher = batcher
        self._store = store
        self.index = index
        self._telemetry = telemetry
        self._clock = clock
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def add(self, notes: Sequence[Note], generate: Generate, lane: Lane) -> list[Added]:
        """Upsert by id; a note without one gets a ULID. On return all are durable and searchable here.

        Several notes of one id are applied in their order. A long list is stored part by part. Raises QueueFull (then
        nothing was stored), EngineFailed, StoreUnavailable, IndexBehind; what was stored before a failure stays, and
        repeating the call is safe and costs no tokens for it.
        """
        named = [note if note.id else replace(note, id=str(ULID())) for note in notes]
        added: dict[int, Added] = {}
        with self._batcher.admit(len(named)) as admission:
            for turn in batches_with_unique_ids(named):
                results = await self._add_distinct([named[i] for i in turn], generate, lane, admission)
                added.update(zip(turn, results, strict=True))
        return [added[i] for i in range(len(named))]

    async def _add_distinct(
        self,
        notes: Sequence[Note],
        generate: Generate,
        lane: Lane,
        admission: Admission | None = None,
        expected: str | None = None,
        known: Sequence[StoredNote | Unreadable | None] | None = None,
    ) -> list[Added]:
        """Notes of distinct ids. `expected`: see Write; PreconditionFailed when it does not hold. `known`: what the
        store has of them, where it was read already; what is unreadable is written over."""
        accepted = time.perf_counter()
        if known is None:
            known = await self._store.get([note.id for note in notes], with_vectors=True)
        if expected is not None and known[0] is None:
            raise PreconditionFailed(notes[0].id)
        now = self._clock()
        plans = [self._plan(note, old, generate, now) for note, old in zip(notes, known, strict=True)]
        to_read = [(plan.note, plan.wanted) for plan in plans if plan.wanted is not None]
        readings = iter(await self._batcher.generate_all(to_read, lane, admission))
        finished = [plan.finish(None if plan.wanted is None else next(readings), self.engine.space) for plan in plans]
        # From here on a caller that leaves changes nothing: what reaches the store also reaches the index.
        return await asyncio.shield(self._commit(plans, finished, expected, accepted))

    def _plan(self, note: Note, known: StoredNote | Unreadable | None, generate: Generate, now: float) -> Plan:
        old = known if isinstance(known, StoredNote) else None
        if note.created_at is None:
            note = replace(note, created_at=old.note.created_at if old else now)
        same = old is not None and old.space == self.engine.space and old.note.prompt_text == note.prompt_text
        kept = old if same else None
        done = kept.generated if kept else Generated()
        want_hashtags = generate.hashtags if not note.hashtags and done.hashtags is None else 0
        want_category = generate.category and note.category is None and done.category is None
        wanted = self.generation_request(want_hashtags, self.categories if want_category else ())
        needs_model = kept is None or wanted != GenerationRequest()
        return Plan(note, old, done, wanted if needs_model else None)

    async def _commit(
        self, plans: Sequence[Plan], finished: Sequence[Added], expected: str | None, accepted: float
    ) -> list[Added]:
        changed = [i for i, (plan, added) in enumerate(zip(plans, finished, strict=True)) if plan.changes(added)]
        written = await self._store.put([Write(finished[i].stored, expected) for i in changed])
        results = [replace(added, status="unchanged") for added in finished]
        for i, write in zip(changed, written, strict=True):
            if write is None:
                raise PreconditionFailed(plans[i].note.id)
            stored = replace(finished[i].stored, revision=write.revision, position=write.position)
            results[i] = replace(finished[i], stored=stored, status="created" if write.revision == 1 else "updated")
        if written:
            await self.index.wait_for(results[changed[-1]].stored.position, WAIT_SECONDS)
            self._telemetry.searchable.observe(time.perf_counter() - accepted)
        elif results:
            position = max((added.stored.position for added in results), key=position_key)
            await self.index.wait_for(position, WAIT_SECONDS)
        return results

    async def get(self, note_id: str) -> StoredNote:
        """Raises NoteNotFound, StoredNoteUnreadable."""
        (stored,) = await self._store.get([note_id])
        return readable(note_id, stored)

    async def put(self, note: Note, generate: Generate, expected: str | None = None) -> Added:
        """Create or replace one note; PreconditionFailed when it is not at log position `expected`."""
        return (await self._add_distinct([note], generate, Lane.INTERACTIVE, expected=expected))[0]

    async def change(self, note_id: str, edit: Callable[[Note], Note], expected: str | None = None) -> Added:
        """Apply `edit` to the note as it is now. Raises NoteNotFound, StoredNoteUnreadable, PreconditionFailed.

        Without `expected` a change that meets another one is tried again on the newer note: none is lost.
        """
        async with self._changing.setdefault(note_id, asyncio.Lock()):
            for attempt in range(CHANGE_ATTEMPTS):
                (known,) = await self._store.get([note_id], with_vectors=True)
                old = readable(note_id, known)
                if expected is not None and old.position != expected:
                    raise PreconditionFailed(note_id)
                try:
                    at = old.position
                    (added,) = await self._add_distinct([edit(old.note)], Generate(), Lane.INTERACTIVE, None, at, [old])
                    return added
                except PreconditionFailed:
                    if expected is not None or attempt == CHANGE_ATTEMPTS - 1:
                        raise
            raise AssertionError("unreachable")

    async def remove(self, note_id: str, expected: str | None = None) -> None:
        """On return the note is gone, durably, and is not found here. Raises NoteNotFound, PreconditionFailed."""
        position = await self._store.delete(note_id, expected)
        if position is None:
            raise NoteNotFound(note_id)
        await self.index.wait_for(position, WAIT_SECONDS)

    async def similar(self, note_id: str, k: int, where: Filter, min_score: float | None) -> Similar:
        """Notes related to a stored one, from its stored vector: no model call. Raises NoteNotFound, OtherSpace,
        StoredNoteUnreadable."""
        vector = await self.index.vector(note_id)
        if vector is None:  # this replica may be behind the store
            (known,) = await self._store.get([note_id], with_vectors=True)
            stored = readable(note_id, known)
            if stored.vector is None:
                raise NoteNotFound(note_id)
            if stored.space != self.engine.space:
                raise OtherSpace(note_id)
            vector = stored.vector
        where = replace(where, exclude=where.exclude | {note_id})
        return await self._nearest(vector, k, where, min_score, of=note_id)

    async def similar_to_text(self, note: Note, k: int, where: Filter, min_score: float | None) -> Similar:
        """Notes related to a text that is not stored."""
        reading = await self._batcher.generate(note)
        return await self._nearest(reading.vector, k, where, min_score)

    def generation_request(
        self,
        hashtags: int = 0,
        categories: tuple[str, ...] = (),
        policy: HashtagPolicy | None = None,
        blocked: Sequence[str] = (),
    ) -> GenerationRequest:
        """What to read from a note, by the house's rules and a request's. `blocked`: beside those of the house."""
        if not hashtags:
            return GenerationRequest(categories=categories)
        policy = policy or self.house.hashtag_policy
        return GenerationRequest(
            hashtags,
            categories,
            frozenset(map(hashtag_key, (*self.house.blocked_hashtags, *blocked))),
            self.index.vocabulary if policy == "known" else None,
            self.index.find_neighbours if policy == "grounded" else None,
        )

    async def generate(self, note: Note, wanted: GenerationRequest) -> GenerationOutput:
        """Vector and generations of a text that is not stored, from one prefill. Raises LimitExceeded."""
        try:
            reading = await self._batcher.generate(note, wanted)
        except CategoriesTooLong as error:
            raise LimitExceeded("max_category_tokens", MAX_CATEGORY_TOKENS) from error
        return replace(reading, hashtags=reading.hashtags and await self._drop_missing_notes(reading.hashtags))

    async def _drop_missing_notes(self, hashtags: Sequence[Hashtag]) -> tuple[Hashtag, ...]:
        """Naming only notes that the store has and can read; none where it is away."""
        ids = sorted({note_id for hashtag in hashtags for note_id in hashtag.notes})
        there: set[str] = set()
        if ids:
            with contextlib.suppress(StoreUnavailable):
                known = await self._store.get(ids)
                there = {stored.note.id for stored in known if isinstance(stored, StoredNote)}
        return tuple(replace(hashtag, notes=tuple(i for i in hashtag.notes if i in there)) for hashtag in hashtags)

    async def stream_hashtags(
        self, note: Note, wanted: GenerationRequest
    ) -> AsyncGenerator[Hashtag | GenerationOutput]:
        """Each hashtag once nothing better can come, and then the whole reading. Closed early, it ends the work."""
        loop, settled = asyncio.get_running_loop(), asyncio.Queue[Hashtag | None]()

        def tell(hashtag: Hashtag) -> None:
            loop.call_soon_threadsafe(settled.put_nowait, hashtag)

        reading = asyncio.create_task(self.generate(note, replace(wanted, on_hashtag=tell)))
        reading.add_done_callback(lambda _: settled.put_nowait(None))
        try:
            while hashtag := await settled.get():
                (checked,) = await self._drop_missing_notes([hashtag])
                yield checked
            yield await reading
        finally:
            reading.cancel()

    async def _nearest(
        self, vector: Vector, k: int, where: Filter, min_score: float | None, of: str | None = None
    ) -> Similar:
        """Every candidate is checked against the store, and the answer filled up again to k; where the store is away,
        it is what the index has.

        `of`: the note whose vector it is, checked in the same round trip: NoteNotFound when it is gone, or
        StoredNoteUnreadable.
        """
        position = self.index.position
        wanted, gone = k, set[str]()
        while True:
            found = await self.index.search(vector, wanted, where)
            hits = [hit for hit in found if min_score is None or hit.score >= min_score]
            asked = [] if of is None else [of]
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    notes = await self._store.get([hit.id for hit in hits] + asked)
            except (StoreUnavailable, TimeoutError):
                left = [(StoredNote(Note(id=h.id), self.engine.space), h.score) for h in hits if h.id not in gone]
                return Similar(left[:k], True, position, degraded=True)
            if of is not None:
                readable(of, notes.pop())
            items = [
                (note, hit.score)
                for note, hit in zip(notes, hits, strict=True)
                if isinstance(note, StoredNote) and where.accepts(note)
            ]
            gone = {hit.id for hit in hits} - {stored.note.id for stored, _ in items}
            seen_all = len(hits) < wanted
            if len(items) >= k or seen_all:
                return Similar(items[:k], len(items) >= k or seen_all, position)
            wanted *= 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What adding one note takes. `wanted` None: no model; else the vector, and these generations.

    `reused`: what was generated for the same text before, and is kept.
    """

    note: Note
    old: StoredNote | None
    reused: Generated
    wanted: GenerationRequest | None

    def finish(self, reading: GenerationOutput | None, space: str) -> Added:
        """The note as it is to be stored; its status comes with the write."""
        if reading is None:
            assert self.old is not None
            return Added(replace(self.old, note=self.note, generated=self.reused), "", Usage())
        # Which notes carry a hashtag is true only now, and so is that none is known.
        told = reading.hashtags and tuple(replace(hashtag, notes=()) for hashtag in reading.hashtags)
        if not told and self.wanted and self.wanted.vocabulary is not None:
            told = None
        generated = Generated(
            self.reused.hashtags if told is None else told,
            self.reused.category if reading.categories is None else reading.categories[0],
        )
        stored = StoredNote(self.note, space, reading.vector, generated)
        return Added(stored, "", reading.usage, reading.hashtags_reason)

    def changes(self, added: Added) -> bool:
        """Whether anything is to be written."""
        old = self.old
        return old is None or (old.note, old.space, old.generated) != (
            added.stored.note,
            added.stored.space,
            added.stored.generated,
        )


def readable(note_id: str, known: StoredNote | Unreadable | None) -> StoredNote:
    """Note that the store gave. Raises NoteNotFound, StoredNoteUnreadable."""
    if known is None:
        raise NoteNotFound(note_id)
    if isinstance(known, Unreadable):
        raise StoredNoteUnreadable(note_id, known.reason)
    return known


def batches_with_unique_ids(notes: Sequence[Note]) -> Iterator[list[int]]:
    """Positions in `notes`, parted so that no part has an id twice or is long; each id's notes keep their order."""
    left = list(range(len(notes)))
    while left:
        seen: set[str] = set()
        turn: list[int] = []
        later: list[int] = []
        for i in left:
            (later if notes[i].id in seen or len(turn) == STORE_BATCH_SIZE else turn).append(i)
            seen.add(notes[i].id)
        yield turn
        left = later
