"""Batcher: concurrent requests of all endpoints share one engine thread, joining and leaving its batch at any step.

The queue has two lanes, interactive before bulk; within each the tenants take turns (lane_queue.py). It is bounded in
notes and in seconds (admission.py). Every waiting caller gets an output or an error. The module does not depend on
HTTP, the store or the tokens of the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from model.generation import VECTOR_ONLY, GenerationOutput, GenerationRequest, Usage
from model.note import Note
from service.access.principal import DEFAULT_TENANT
from service.admission import FIRST_ESTIMATE, PATIENT, WAITING_SHARE, Admission, EngineSeconds, Lane, Urgency
from service.engine_threads import engine_thread
from service.errors import DeadlineExceeded, EngineFailed, QueueFull, Stopping
from service.interfaces import Engine, TokenizedRequest
from service.lane_queue import LaneQueue
from service.queued_note import QueuedNote, add_stages
from service.telemetry import Telemetry
from service.tokenising import parts_to_tokenise
from service.tracing import current_request

MAX_BULK_WAIT = 5.0
"""Seconds after which one bulk note is started, however many interactive ones wait: an ingest slows down but does not
starve."""
EMBED_BATCH_SIZE = 32
"""Notes of one request that are queued at a time if only their vectors are requested."""
BULK_SHARE = 0.9
"""Share of the queue that bulk notes may take, apart from one note per tenant; the rest is kept free for interactive
notes."""
STUCK_SECONDS = 60.0
"""Duration of an engine step beyond which the process is not ready; a step normally takes less than a second."""
log = structlog.get_logger(__name__)


class Batcher:
    """Queue in front of the engine.

    `max_tokens`: prefill budget of one engine step, in prompt tokens. `max_notes`: notes in the engine at a time.
    `max_queue`: notes that may wait, and `max_seconds`: longest expected wait in the interactive lane; beyond either,
    QueueFull is raised. `first_estimate`: engine seconds to expect for a note's vector until some are measured.
    `count_tenants`: returns the number of tenants that share the queue. `now`: clock of Urgency.
    """

    def __init__(
        self,
        engine: Engine,
        telemetry: Telemetry,
        *,
        max_tokens: int,
        max_notes: int,
        max_queue: int,
        max_seconds: float = math.inf,
        first_estimate: float = FIRST_ESTIMATE,
        count_tenants: Callable[[], int] = lambda: 1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._telemetry = telemetry
        self._max_tokens = max_tokens
        self._max_notes = max_notes
        self._max_queue = max_queue
        self._max_seconds = max_seconds
        self._count_tenants = count_tenants
        self._now = now
        self._lanes = {lane: LaneQueue[QueuedNote](lambda note: note.admission.tenant) for lane in Lane}
        self._arrived = asyncio.Event()
        self._engine_thread = engine_thread("engine")
        self._tokenise_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._task: asyncio.Task[None] | None = None
        self._admissions: set[Admission] = set()
        self._engine_seconds = EngineSeconds(first_estimate)
        self._stopping = False
        self._step_since: float | None = None
        self._running: dict[object, QueuedNote] = {}
        """Notes in the engine, by the handle that the engine returned for each."""

    def start(self) -> None:
        self._task = asyncio.create_task(self._loop(), name="batcher")

    async def stop(self, seconds: float) -> None:
        """Refuse new notes, work on the queue for at most `seconds`, then answer the rest with Stopping."""
        self._stopping = True
        self._arrived.set()
        if self._task:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._task), seconds)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for lane in self._lanes.values():
            for note in lane:
                note.fail(Stopping())
            lane.clear()
        self._engine_thread.shutdown(wait=False)
        self._tokenise_thread.shutdown(wait=False)

    @property
    def waiting(self) -> int:
        """Notes in the queue."""
        return sum(map(len, self._lanes.values()))

    @property
    def busy_seconds(self) -> float:
        """Seconds that the engine's current step has taken so far; 0 if it is idle."""
        return 0.0 if self._step_since is None else self._now() - self._step_since

    @property
    def is_stuck(self) -> bool:
        """Whether the engine's current step has taken STUCK_SECONDS or longer."""
        return self.busy_seconds >= STUCK_SECONDS

    def expected_wait(self, lane: Lane, tenant: str | None = None) -> float:
        """Return the expected seconds until a note admitted now starts, from the measured times of the notes before it;
        without `tenant`, for the tenant that would wait longest."""
        tenants = {admission.tenant for admission in self._admissions} if tenant is None else {tenant}
        return max((self._engine_seconds.expected_wait(self._admissions, lane, name) for name in tenants), default=0.0)

    async def generate(
        self,
        note: Note,
        request: GenerationRequest = VECTOR_ONLY,
        urgency: Urgency = PATIENT,
        tenant: str = DEFAULT_TENANT,
    ) -> GenerationOutput:
        """Return the engine's output for one note. Raises QueueFull, DeadlineExceeded, EngineFailed, Stopping."""
        return (await self.generate_all([(note, request)], urgency, tenant=tenant))[0]

    async def generate_all(
        self,
        notes: Sequence[tuple[Note, GenerationRequest]],
        urgency: Urgency,
        admission: Admission | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> list[GenerationOutput]:
        """Return the outputs in order; the first failure cancels the rest.

        All notes are admitted or none. A caller that was admitted already passes its `admission`. Raises QueueFull,
        DeadlineExceeded, EngineFailed, Stopping.
        """
        if not notes:
            return []
        if admission is None:
            with self.admit(len(notes), notes[0][1], urgency, tenant=tenant) as admission:
                return await self.generate_all(notes, urgency, admission)
        loop = asyncio.get_running_loop()
        started = self._now()
        tokenized: list[TokenizedRequest] = []
        for part in parts_to_tokenise(notes):
            if self._stopping:
                raise Stopping
            tokenized += await loop.run_in_executor(self._tokenise_thread, self._tokenise, part)
        self._telemetry.tokenise.observe(self._now() - started)
        if self._stopping:  # it began to stop meanwhile
            raise Stopping
        queued = [
            QueuedNote(tokens, request, urgency, admission, loop.create_future(), self._now(), current_request())
            for tokens, (_, request) in zip(tokenized, notes, strict=True)
        ]
        self._lanes[urgency.lane].extend(queued)
        self._telemetry.queue_depth.labels(urgency.lane).set(len(self._lanes[urgency.lane]))
        self._arrived.set()
        try:
            return [await note.answer for note in queued]
        finally:
            for note in queued:
                note.answer.cancel()
            self._drop_abandoned(urgency.lane, [note for note in queued if note.answer.cancelled()])
            add_stages(queued, self._now())

    def _tokenise(self, notes: Sequence[tuple[Note, GenerationRequest]]) -> list[TokenizedRequest]:
        return [self._engine.tokenize(note, request) for note, request in notes]

    async def embed_all(
        self, notes: Sequence[Note], urgency: Urgency, tenant: str = DEFAULT_TENANT
    ) -> list[GenerationOutput]:
        """Return outputs with only the vectors of notes, in order. All notes are admitted or none, and EMBED_BATCH_SIZE
        of them are queued at a time, so that the queue need not have places for all. Raises what `generate_all`
        raises."""
        if not notes:
            return []
        outputs: list[GenerationOutput] = []
        with self.admit(len(notes), VECTOR_ONLY, urgency, EMBED_BATCH_SIZE, tenant) as admission:
            while part := notes[len(outputs) : len(outputs) + self.grow_admission(admission, EMBED_BATCH_SIZE)]:
                outputs += await self.generate_all([(note, VECTOR_ONLY) for note in part], urgency, admission)
        return outputs

    @contextlib.contextmanager
    def admit(
        self,
        notes: int,
        request: GenerationRequest,
        urgency: Urgency,
        places: int | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> Iterator[Admission]:
        """Admit `notes` notes for the duration of the block. `places`: how many of them will be queued at a time; None
        for all. Where the tenant may take fewer in this lane, it is that many; places that the tenant's other
        admissions have taken are not subtracted (`grow_admission`).

        Raises QueueFull if the queue, or the tenant's share of it, lacks these places, or if the first note would wait
        too long for its caller's deadline; and Stopping.
        """
        if self._stopping:
            raise Stopping
        if places is not None:
            reserved, own = self._reserved(tenant, urgency.lane)
            places = min(places, self._max_places(urgency.lane, reserved - own))
        admission = Admission(urgency.lane, request, notes, places or notes, tenant)
        if full := self._full(admission.reserved, urgency, tenant):
            raise full
        self._admissions.add(admission)
        try:
            yield admission
        finally:
            self._admissions.remove(admission)

    def grow_admission(self, admission: Admission, max_size: int) -> int:
        """Give the admission of a list as many places as its tenant may take now, up to `max_size` and no fewer than it
        has. Return their number: how many notes of the list to queue next."""
        reserved, own = self._reserved(admission.tenant, admission.lane)
        places = self._max_places(admission.lane, reserved - own) - own + admission.reserved
        admission.places = max(admission.places, min(max_size, places))
        return admission.places

    def refusal(self, urgency: Urgency, tenant: str) -> QueueFull | None:
        """Return the error with which one more note of a tenant would be refused now; None if it would be admitted."""
        return self._full(1, urgency, tenant)

    def _full(self, places: int, urgency: Urgency, tenant: str) -> QueueFull | None:
        """Return the error with which `admit` refuses `places` more notes; None if it admits them."""
        reserved, own = self._reserved(tenant, urgency.lane)
        wait = self.expected_wait(urgency.lane, tenant)
        full = reserved + places > self._max_queue or own + places > self._max_places(urgency.lane, reserved - own)
        return QueueFull(own, wait) if full or wait > self._max_wait(urgency) else None

    def _reserved(self, tenant: str, lane: Lane) -> tuple[int, int]:
        """Return how many places of the queue are reserved in all, and by the notes of a tenant in a lane."""
        reserved = own = 0
        for admission in self._admissions:
            places = admission.reserved
            reserved += places
            if admission.tenant == tenant and admission.lane is lane:
                own += places
        return reserved, own

    def _max_places(self, lane: Lane, others: int) -> int:
        """Return how many places of the queue one tenant's notes of a lane may take, where all other notes take
        `others`: all free places if it is the only tenant, else half of them, so that as many are left for the next
        tenant. It may always take one."""
        places = self._max_queue if lane is Lane.INTERACTIVE else math.ceil(BULK_SHARE * self._max_queue)
        left = places - others
        return max(1, left if self._count_tenants() < 2 else left // 2)

    def _max_wait(self, urgency: Urgency) -> float:
        """Return how many seconds a caller's notes may wait for the engine."""
        caller = WAITING_SHARE * max(0.0, urgency.deadline - self._now())
        return min(caller, self._max_seconds) if urgency.lane is Lane.INTERACTIVE else caller

    async def _loop(self) -> None:
        while True:
            new_notes = self._next_notes()
            if new_notes or self._running:
                await self._step(new_notes)
            elif self._stopping:
                return
            else:
                self._arrived.clear()
                await self._arrived.wait()

    def _next_notes(self) -> list[QueuedNote]:
        """Remove from the queue, and return, the notes that the next step starts, oldest first, within the budgets: a
        bulk note that is due (`_bulk_is_due`), then interactive notes, then bulk notes. The first note is taken even if
        it alone exceeds the token budget, and so is the first interactive note after a bulk note that is due.

        A bulk note that is due comes first because the engine adds notes in order: if its KV cache has no room for this
        note, the interactive ones wait until there is room.
        """
        places = self._max_notes - len(self._running)
        bulk = self._lanes[Lane.BULK]
        new_notes = [self._take(bulk)] if places and self._bulk_is_due() else []
        tokens = sum(note.tokenized.tokens for note in new_notes)
        for lane, queue in self._lanes.items():
            may_exceed = lane is Lane.INTERACTIVE or not new_notes
            while (note := self._first(queue)) and len(new_notes) < places:
                if tokens + note.tokenized.tokens > self._max_tokens and not may_exceed:
                    break
                may_exceed = False
                tokens += note.tokenized.tokens
                new_notes.append(self._take(queue))
            self._telemetry.queue_depth.labels(lane).set(len(queue))
        return new_notes

    def _take(self, queue: LaneQueue[QueuedNote]) -> QueuedNote:
        """Take the first note off a queue."""
        note = queue.take()
        note.admission.left -= 1
        return note

    def _bulk_is_due(self) -> bool:
        """Return whether bulk notes have waited for MAX_BULK_WAIT and none is running, so that one starts before the
        waiting interactive notes. Always False for an engine that takes one note at a time: the bulk note would occupy
        its only place."""
        bulk = self._lanes[Lane.BULK]
        first = self._first(bulk)
        if first is None or self._max_notes == 1:
            return False
        oldest = min(note.since for note in bulk.fronts if note is first or self._may_start(note))
        if self._now() - oldest < MAX_BULK_WAIT:
            return False
        return not any(note.urgency.lane is Lane.BULK for note in self._running.values())

    def _first(self, queue: LaneQueue[QueuedNote]) -> QueuedNote | None:
        """Return the first note of a queue, after dropping notes whose caller left or whose deadline has passed."""
        while note := queue.first:
            if self._may_start(note):
                return note
            overdue = note.urgency.deadline <= self._now()
            queue.drop()
            self._telemetry.dropped.labels("deadline" if overdue else "left").inc()
            note.fail(DeadlineExceeded(note.urgency.seconds))
        return None

    def _may_start(self, note: QueuedNote) -> bool:
        """Return whether the caller of a note has not left and its deadline has not passed."""
        return not note.answer.done() and note.urgency.deadline > self._now()

    def _drop_abandoned(self, lane: Lane, notes: Collection[QueuedNote]) -> None:
        """Remove the notes of one request from the queue, after its caller left or its deadline passed: with the end of
        its admission nothing bounds them."""
        overdue = any(note.urgency.deadline <= self._now() for note in notes)
        self._telemetry.dropped.labels("deadline" if overdue else "left").inc(self._lanes[lane].discard(notes))
        self._telemetry.queue_depth.labels(lane).set(len(self._lanes[lane]))

    async def _step(self, new_notes: Sequence[QueuedNote]) -> None:
        """Run one engine step that starts `new_notes`, and answer all notes that end with it."""
        started = self._step_since = self._now()
        for note in new_notes:
            note.began = started
        loop = asyncio.get_running_loop()
        try:
            ended, failed, postponed = await loop.run_in_executor(self._engine_thread, self._advance, new_notes, loop)
        except BaseException as error:
            self._fail_running(new_notes, error)
            if isinstance(error, asyncio.CancelledError) or not isinstance(error, Exception):
                raise
            return
        finally:
            seconds = self._now() - started
            self._step_since = None
        for note in reversed(postponed):
            note.admission.left += 1
            note.began = math.inf
            self._lanes[note.urgency.lane].put_back(note)
        for note, failure in failed:
            log.error("engine_failed", notes=1, exc_info=failure)
            self._fail(note, EngineFailed(type(failure).__name__))
        self._share_out(seconds, ended)
        self._observe([output for _, output in ended], seconds)
        begun = new_notes[: len(new_notes) - len(postponed)]
        if begun:
            self._telemetry.batch_tokens.observe(sum(note.tokenized.tokens for note in begun))
        for note in begun:
            self._telemetry.queue_wait.labels(note.urgency.lane).observe(started - note.since)
        for running, note in self._running.items():
            used = self._engine.usage(running)
            note.charge(Usage(max(note.tokenized.tokens, used.prompt_tokens), used.generated_tokens))
        for note, output in ended:
            note.ended = started + seconds
            note.charge(output.usage)
            first_token = output.first_token_seconds
            note.prefilled = note.ended if first_token is None else note.began + first_token
            if not note.answer.done():
                note.answer.set_result(output)

    def _share_out(self, seconds: float, ended: Sequence[tuple[QueuedNote, GenerationOutput]]) -> None:
        """Add to each note its share of the step's time, by its tokens, and update the means with those that ended."""
        tokens = {note: output.usage.tokens for note, output in ended}
        tokens |= {note: self._engine.usage(running).tokens for running, note in self._running.items()}
        step_tokens = sum(tokens.values()) - sum(note.tokens for note in tokens)
        for note, total in tokens.items():
            note.seconds += seconds * (total - note.tokens) / max(1, step_tokens)
            note.tokens = total
        for note, _ in ended:
            self._engine_seconds.measure(note.urgency.lane, note.request, note.seconds)

    def _advance(
        self, new_notes: Sequence[QueuedNote], loop: asyncio.AbstractEventLoop
    ) -> tuple[list[tuple[QueuedNote, GenerationOutput]], list[tuple[QueuedNote, Exception]], list[QueuedNote]]:
        """Run one engine step in the engine's thread; `loop` charges the notes that it begins. Return the notes that
        ended, with their outputs, those that failed on their own, with their errors, and those of `new_notes` for which
        the engine has no room yet."""
        for running in [running for running, note in self._running.items() if note.answer.done()]:
            self._engine.abort(running)
            self._count_tokens(self._running.pop(running).charged)
        postponed = list(new_notes)
        while postponed and (not self._running or self._engine.can_add(postponed[0].tokenized)):
            note = postponed.pop(0)
            self._running[self._engine.add_request(note.tokenized)] = note
            loop.call_soon_threadsafe(note.charge, Usage(note.tokenized.tokens))
        ended = [(self._running.pop(running), output) for running, output in self._engine.step()]
        failed = [(self._running.pop(running), error) for running, error in self._engine.take_failed()]
        return ended, failed, postponed

    def _fail(self, note: QueuedNote, error: Exception) -> None:
        """Answer the caller of a note that the engine has begun with an error, and count its tokens."""
        note.fail(error)
        self._count_tokens(note.charged)

    def _fail_running(self, new_notes: Sequence[QueuedNote], error: BaseException) -> None:
        """Fail all notes of a failed step: after an error the engine has dropped them."""
        stopping = isinstance(error, asyncio.CancelledError)
        failed = {*new_notes, *self._running.values()}
        if not stopping:
            log.exception("engine_failed", notes=len(failed))
        for note in failed:
            self._fail(note, Stopping() if stopping else EngineFailed(type(error).__name__))
        self._running.clear()

    def _observe(self, outputs: Sequence[GenerationOutput], seconds: float) -> None:
        self._telemetry.inference.observe(seconds)
        for output in outputs:
            self._count_tokens(output.usage)
            if output.first_token_seconds is not None:
                self._telemetry.first_token.observe(output.first_token_seconds)

    def _count_tokens(self, usage: Usage) -> None:
        """Count the tokens of a note that left the engine, whether it ended, was aborted or failed."""
        self._telemetry.prompt_tokens.inc(usage.prompt_tokens)
        self._telemetry.generated_tokens.inc(usage.generated_tokens)
