"""Use-cases: add, change, remove; those for related notes are in search/, generation for texts is in generator.py.

They use the ports of interfaces.py, and do not depend on HTTP, Redis or FAISS.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from weakref import WeakValueDictionary

from ulid import ULID

from model.dedup_key import blocked_keys
from model.generation import GenerationRequest
from model.note import Note, hashtag_keys
from service.access.principal import DEFAULT_TENANT
from service.adding import (
    GENERATE_NOTHING,
    STORE_BATCH_SIZE,
    Added,
    Generate,
    Plan,
    batches_with_unique_ids,
    expired_error,
)
from service.admission import PATIENT, Admission, Urgency
from service.batcher import Batcher
from service.claims import Claims
from service.errors import NoteContended, NoteNotFound, PreconditionFailed
from service.generator import Generator
from service.interfaces import Clock, NoteIndex, NoteStore
from service.records import (
    Attempt,
    Claim,
    Condition,
    EarlierWrite,
    Generated,
    Remembered,
    Removed,
    StoredNote,
    Unreadable,
    Write,
    position_key,
)
from service.replay import REMOVED, decode_added, encode_added, written_status
from service.stored_notes import check_condition, readable
from service.telemetry import Telemetry

WAIT_SECONDS = 10.0
"""Bound on the wait of a write for the index to show it; normally the index is milliseconds behind the log."""
CHANGE_ATTEMPTS = 5
"""Attempts at one change of a note that other processes change concurrently."""


class Recommender:
    """The use-cases of one tenant in one process. `generator`: decides what the model generates for a stored note.
    `remembered_seconds`: how long a write is remembered under its idempotency key."""

    def __init__(
        self,
        generator: Generator,
        batcher: Batcher,
        store: NoteStore,
        index: NoteIndex,
        telemetry: Telemetry,
        clock: Clock,
        remembered_seconds: float = 3600.0,
        tenant: str = DEFAULT_TENANT,
    ) -> None:
        self.generator = generator
        self._claims = Claims(store, remembered_seconds)
        self._batcher = batcher
        self._tenant = tenant
        self._store = store
        self.index = index
        self._telemetry = telemetry
        self._clock = clock
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def add(
        self,
        notes: Sequence[Note],
        generate: Generate,
        urgency: Urgency,
        attempts: Sequence[Attempt] = (),
    ) -> list[Added | None]:
        """Upsert notes by id; a note without an id gets a ULID. On return all are durable and searchable at this
        replica, except notes that had expired before, for which None is returned.

        Notes with the same id are applied in order. A long list is queued and stored in batches: what was stored before
        a failure stays. With `attempts`, one for each note, repeating the call adds only what is missing; without, it
        adds the notes without an id again. Raises QueueFull (then nothing was stored), EngineFailed, StoreUnavailable,
        IndexBehind, KeyInUse, KeyReused.
        """
        async with self._claims.hold(attempts, urgency) as claims:
            earlier = {i: decode_added(claim.earlier) for i, claim in enumerate(claims) if claim.earlier}
            await self.wait_for([added.stored.position for added in earlier.values()])
            expired = [i for i, note in enumerate(notes) if i not in earlier and note.expired(self._clock())]
            if claims and expired:
                await self._claims.give_up([claims[i] for i in expired])
            added: dict[int, Added | None] = {**earlier, **dict.fromkeys(expired)}
            if new := {i: note for i, note in enumerate(notes) if i not in added}:
                added |= await self._add_new(new, generate, urgency, claims)
            return [added[i] for i in range(len(notes))]

    async def _add_new(
        self, notes: Mapping[int, Note], generate: Generate, urgency: Urgency, claims: Sequence[Claim]
    ) -> dict[int, Added]:
        """Add the notes of a request that were not added before, by their places in it. `claims`: those of the whole
        request, or none."""
        places = list(notes)
        new = [note if note.id else replace(note, id=str(ULID())) for note in notes.values()]
        added: dict[int, Added] = {}
        request = self.generator.request(generate.hashtags, self.generator.categories if generate.category else ())
        with self._batcher.admit(len(new), request, urgency, STORE_BATCH_SIZE, self._tenant) as admission:
            next_size = partial(self._batcher.grow_admission, admission, STORE_BATCH_SIZE)
            for batch in batches_with_unique_ids(new, next_size):
                results = await self._add_distinct(
                    [new[i] for i in batch],
                    generate,
                    urgency,
                    admission,
                    claims=[claims[places[i]] for i in batch] if claims else (),
                )
                added.update(zip([places[i] for i in batch], results, strict=True))
                admission.left = len(new) - len(added)  # not all of the batch may have needed the model
        return added

    async def _replay(self, earlier: EarlierWrite) -> Added:
        """Return the result of an earlier attempt once the index shows it."""
        added = decode_added(earlier)
        await self.wait_for([added.stored.position])
        return added

    async def wait_for(self, positions: Collection[str]) -> None:
        """Wait until the index has all writes at these positions, which the store has with notes. Raises IndexBehind,
        StoreUnavailable."""
        if positions:
            end = (await self._store.log_bounds()).last  # a damaged note names a position that the log never reaches
            await self.index.wait_for(min(max(positions, key=position_key), end, key=position_key), WAIT_SECONDS)

    async def _add_distinct(
        self,
        notes: Sequence[Note],
        generate: Generate,
        urgency: Urgency,
        admission: Admission | None = None,
        condition: Condition | None = None,
        known: Sequence[StoredNote | Unreadable | None] | None = None,
        claims: Sequence[Claim] = (),
    ) -> list[Added]:
        """Add notes with distinct ids. `condition`: on a single note; raises PreconditionFailed if it does not hold.
        `known`: the stored notes, if the caller has read them; an unreadable one is overwritten. `claims`: those on
        these writes."""
        accepted = time.perf_counter()
        if known is None:
            known = await self._store.get([note.id for note in notes], with_vectors=True)
        if condition is not None:  # the write checks it again
            check_condition(condition, notes[0].id, known[0])
        plans = [self._plan(note, old, generate) for note, old in zip(notes, known, strict=True)]
        need_model = [i for i, plan in enumerate(plans) if plan.request is not None]
        requests = [(plan.note, plan.request) for plan in plans if plan.request is not None]
        generated = await self._batcher.generate_all(requests, urgency, admission, self._tenant)
        outputs = dict(zip(need_model, generated, strict=True))
        least = self.generator.defaults.min_category_probability
        finished = [plan.finish(outputs.get(i), self.generator.engine.space, least) for i, plan in enumerate(plans)]
        # Shielded from cancellation by a caller that leaves: the index must reach whatever was written to the store.
        return await asyncio.shield(self._commit(plans, finished, condition, claims, accepted))

    def with_arrival(self, note: Note, known: StoredNote | Unreadable | None) -> Note:
        """Return a note with `created_at`; where it has none, that of the note it replaces, or the current time."""
        if note.created_at is not None:
            return note
        before = known.note.created_at if isinstance(known, StoredNote) else None
        # Rounded to microseconds, as in answers, so that a PATCH that sends the time back does not change it.
        return replace(note, created_at=round(self._clock(), 6) if before is None else before)

    def _plan(self, note: Note, known: StoredNote | Unreadable | None, generate: Generate) -> Plan:
        """Decide which stored generations can be kept and what the model must generate."""
        old = known if isinstance(known, StoredNote) else None
        note = self.with_arrival(note, known)
        same_text = old is not None and old.note.prompt_text == note.prompt_text
        defaults, categories = self.generator.defaults, self.generator.categories
        blocked = blocked_keys(hashtag_keys(defaults.blocked_hashtags))
        reused = generate.kept_of(old.generated, categories, blocked) if old and same_text else Generated()
        read = old is not None and same_text and old.space == self.generator.engine.space  # by this model
        hashtags = generate.hashtags if not note.hashtags and not (read and reused.hashtags is not None) else 0
        needs_category = generate.category and note.category is None and not (read and reused.category is not None)
        min_score = defaults.min_hashtag_score if generate.min_score is None else generate.min_score
        request = self.generator.request(hashtags, categories if needs_category else (), min_score=min_score)
        return Plan(note, old, reused, None if read and request == GenerationRequest() else request)

    async def _commit(
        self,
        plans: Sequence[Plan],
        finished: Sequence[Added],
        condition: Condition | None,
        claims: Sequence[Claim],
        accepted: float,
    ) -> list[Added]:
        """Write the notes that changed, record the answers of claimed writes, and return once the index shows the
        writes."""
        changed = [i for i, (plan, added) in enumerate(zip(plans, finished, strict=True)) if plan.changes(added)]
        unchanged = [i for i in range(len(plans)) if i not in changed]
        results = list(finished)
        for i in unchanged:
            results[i] = replace(finished[i], status="unchanged")
        remembered = {i: Remembered(claim, encode_added(results[i])) for i, claim in enumerate(claims)}
        written = await self._store.put([Write(results[i].stored, condition, remembered.get(i)) for i in changed])
        await self._store.record_answers([(results[i].stored, remembered[i]) for i in unchanged if i in remembered])
        if not (changed or claims):
            await self._store.wait_for_disk()
        for i, write in zip(changed, written, strict=True):
            if write is None:
                assert condition, "only a write with a condition is refused"
                raise PreconditionFailed(plans[i].note.id, condition.failure)
            stored = replace(results[i].stored, revision=write.revision, position=write.position)
            results[i] = replace(results[i], stored=stored, status=written_status(write.revision))
        if written:
            await self.index.wait_for(results[changed[-1]].stored.position, WAIT_SECONDS)
            self._telemetry.searchable.observe(time.perf_counter() - accepted)
        else:
            await self.wait_for([result.stored.position for result in results])
        return results

    async def put(
        self,
        note: Note,
        generate: Generate,
        condition: Condition | None = None,
        urgency: Urgency = PATIENT,
        attempts: Sequence[Attempt] = (),
    ) -> Added:
        """Create or replace one note. Raises InvalidInput if it has expired, PreconditionFailed, KeyInUse, KeyReused,
        and what `add` raises."""
        async with self._claims.hold(attempts, urgency) as claims:
            if claims and claims[0].earlier:
                return await self._replay(claims[0].earlier)
            self._refuse_expired(note)
            return (await self._add_distinct([note], generate, urgency, condition=condition, claims=claims))[0]

    async def put_each(
        self, notes: Sequence[tuple[Note, Generate]], condition: Condition | None, urgency: Urgency
    ) -> list[Added | None]:
        """Create or replace notes with distinct ids, each separately and with its own generations. Return None for a
        note whose condition does not hold. Notes are queued in batches. Raises what `add` raises."""
        added: list[Added | None] = []
        if not notes:
            return added
        hashtags = max(generate.hashtags for _, generate in notes)
        category = any(generate.category for _, generate in notes)
        request = self.generator.request(hashtags, self.generator.categories if category else ())
        with self._batcher.admit(len(notes), request, urgency, STORE_BATCH_SIZE, self._tenant) as admission:
            while len(added) < len(notes):
                size = self._batcher.grow_admission(admission, STORE_BATCH_SIZE)
                part = notes[len(added) : len(added) + size]
                try:
                    async with asyncio.TaskGroup() as group:
                        tasks = [
                            group.create_task(self._put_if(note, generate, condition, urgency, admission))
                            for note, generate in part
                        ]
                except ExceptionGroup as errors:  # the first failure ended the others that were not being written yet
                    raise errors.exceptions[0] from errors
                added += [task.result() for task in tasks]
                admission.left = len(notes) - len(added)
        if None in added:
            await self._store.wait_for_disk()
        return added

    async def _put_if(
        self, note: Note, generate: Generate, condition: Condition | None, urgency: Urgency, admission: Admission
    ) -> Added | None:
        try:
            return (await self._add_distinct([note], generate, urgency, admission, condition))[0]
        except PreconditionFailed:
            return None

    async def change(
        self,
        note_id: str,
        edit: Callable[[Note], Note],
        condition: Condition | None = None,
        urgency: Urgency = PATIENT,
        attempts: Sequence[Attempt] = (),
        generate: Generate = GENERATE_NOTHING,
    ) -> Added:
        """Apply `edit` to the current version of a note. Raises NoteNotFound, StoredNoteUnreadable, PreconditionFailed,
        KeyInUse, KeyReused, and InvalidInput if the changed note has expired.

        A change that conflicts with a concurrent one is tried again on the newer version, so that none is lost. Raises
        NoteContended after CHANGE_ATTEMPTS conflicts.
        """
        async with self._claims.hold(attempts, urgency) as claims:
            if claims and claims[0].earlier:
                return await self._replay(claims[0].earlier)
            async with self._changing.setdefault(note_id, asyncio.Lock()):
                for _ in range(CHANGE_ATTEMPTS):
                    if added := await self._change(note_id, edit, generate, condition, urgency, claims):
                        return added
            raise NoteContended(note_id)

    async def _change(
        self,
        note_id: str,
        edit: Callable[[Note], Note],
        generate: Generate,
        condition: Condition | None,
        urgency: Urgency,
        claims: Sequence[Claim],
    ) -> Added | None:
        """Try a change once; return None if the note was changed meanwhile."""
        (known,) = await self._store.get([note_id], with_vectors=True)
        old = readable(note_id, known)
        if condition is not None:
            check_condition(condition, note_id, old)
        note = edit(old.note)
        self._refuse_expired(note)
        try:
            (added,) = await self._add_distinct(
                [note], generate, urgency, condition=Condition((old.position,)), known=[old], claims=claims
            )
        except PreconditionFailed:
            return None
        return added

    def _refuse_expired(self, note: Note) -> None:
        if note.expired(self._clock()):
            raise expired_error()

    async def remove(
        self,
        note_id: str,
        condition: Condition | None = None,
        attempts: Sequence[Attempt] = (),
    ) -> Removed:
        """Remove a note: on return the removal is durable, and no search of this replica finds the note.

        Raises NoteNotFound, PreconditionFailed, KeyInUse, KeyReused.
        """
        async with self._claims.hold(attempts, PATIENT) as claims:
            if earlier := claims[0].earlier if claims else None:
                position: str | None = earlier.position
            else:
                remembered = Remembered(claims[0], REMOVED) if claims else None
                position = await self._store.delete(note_id, condition, remembered)
            if position is None:
                raise NoteNotFound(note_id)
            await self.index.wait_for(position, WAIT_SECONDS)
            return Removed(position, replayed=earlier is not None)
