"""Batcher: concurrent requests of all endpoints share one engine thread, joining and leaving its batch at any step.

The queue is bounded and has two lanes: interactive before bulk. Every waiter gets an answer: its output, or an error.
Knows nothing of HTTP, storage, or what a token is.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum

import structlog

from model.generation import VECTOR_ONLY, GenerationOutput, GenerationRequest
from model.note import Note
from service.errors import EngineFailed, QueueFull, Stopping
from service.interfaces import Engine, TokenizedRequest
from service.telemetry import Telemetry

log = structlog.get_logger(__name__)


class Lane(StrEnum):
    """Priority of a note: INTERACTIVE, where a person waits, goes before BULK, a list or a stream."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(slots=True, eq=False)
class QueuedNote:
    """A note in the queue or in the engine. `since`: when it was queued, by perf_counter. A caller that leaves cancels
    `answer`; then the note is dropped."""

    tokenized: TokenizedRequest
    lane: Lane
    answer: asyncio.Future[GenerationOutput]
    since: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class Admission:
    """Room reserved in the queue for `left` more notes."""

    left: int


class Batcher:
    """Queue in front of the engine.

    `max_tokens`: prompt tokens that begin with one step. `max_notes`: notes in the engine at a time. `max_queue`: notes
    that may wait; more raise QueueFull.
    """

    def __init__(
        self, engine: Engine, telemetry: Telemetry, *, max_tokens: int, max_notes: int, max_queue: int
    ) -> None:
        self._engine = engine
        self._telemetry = telemetry
        self._max_tokens = max_tokens
        self._max_notes = max_notes
        self._max_queue = max_queue
        self._lanes: dict[Lane, deque[QueuedNote]] = {lane: deque() for lane in Lane}
        self._arrived = asyncio.Event()
        self._engine_thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._tokenise_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._task: asyncio.Task[None] | None = None
        self._reserved = 0
        self._stopping = False
        self._step_since: float | None = None
        self._running: dict[object, QueuedNote] = {}
        """Notes in the engine, by the engine's running request."""
        self._recent_notes, self._recent_seconds = 10.0, 1.0
        """Notes done and seconds taken, weighted towards recent steps: QueueFull estimates its wait by their rate."""

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
                _fail(note, Stopping())
            lane.clear()
        self._engine_thread.shutdown(wait=False)
        self._tokenise_thread.shutdown(wait=False)

    @property
    def waiting(self) -> int:
        """Notes in the queue. Those whose callers left are counted until they come to its head."""
        return sum(map(len, self._lanes.values()))

    @property
    def busy_seconds(self) -> float:
        """How long the engine's present step has taken; 0 when it is idle."""
        return 0.0 if self._step_since is None else time.perf_counter() - self._step_since

    async def generate(
        self, note: Note, request: GenerationRequest = VECTOR_ONLY, lane: Lane = Lane.INTERACTIVE
    ) -> GenerationOutput:
        """Return the engine's output for one note. Raises QueueFull, EngineFailed, Stopping."""
        return (await self.generate_all([(note, request)], lane))[0]

    async def generate_all(
        self, notes: Sequence[tuple[Note, GenerationRequest]], lane: Lane, admission: Admission | None = None
    ) -> list[GenerationOutput]:
        """Return the outputs in order; the first failure cancels the rest. Raises QueueFull, EngineFailed, Stopping.

        All notes are admitted or none. A caller that has reserved room for them already passes its `admission`.
        """
        if not notes:
            return []
        if admission is None:
            with self.admit(len(notes)) as admission:
                return await self.generate_all(notes, lane, admission)
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        tokenized = await loop.run_in_executor(
            self._tokenise_thread, lambda: [self._engine.tokenize(note, request) for note, request in notes]
        )
        self._telemetry.tokenise.observe(time.perf_counter() - started)
        if self._stopping:
            raise Stopping
        self._reserved -= len(notes)
        admission.left -= len(notes)
        queued = [QueuedNote(request, lane, loop.create_future()) for request in tokenized]
        self._lanes[lane].extend(queued)
        self._telemetry.queue_depth.labels(lane).set(len(self._lanes[lane]))
        self._arrived.set()
        try:
            return [await note.answer for note in queued]
        finally:
            for note in queued:
                note.answer.cancel()

    @contextlib.contextmanager
    def admit(self, notes: int) -> Iterator[Admission]:
        """Reserve room in the queue for `notes` notes while the block lasts. Raises QueueFull, Stopping."""
        if self._stopping:
            raise Stopping
        taken = self.waiting + self._reserved
        if taken + notes > self._max_queue:
            raise QueueFull(taken, max(1, math.ceil(taken * self._recent_seconds / self._recent_notes)))
        admission = Admission(notes)
        self._reserved += notes
        try:
            yield admission
        finally:
            self._reserved -= admission.left

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
        """Take the oldest notes off the queue, interactive ones first, as many as the budgets allow. The first is taken
        even if it alone exceeds the token budget."""
        new_notes: list[QueuedNote] = []
        tokens = 0
        for lane, queue in self._lanes.items():
            while queue:
                if queue[0].answer.done():  # its caller left
                    queue.popleft()
                    continue
                next_tokens = queue[0].tokenized.tokens
                engine_full = len(self._running) + len(new_notes) >= self._max_notes
                if engine_full or (new_notes and tokens + next_tokens > self._max_tokens):
                    break
                tokens += next_tokens
                new_notes.append(queue.popleft())
            self._telemetry.queue_depth.labels(lane).set(len(queue))
        return new_notes

    async def _step(self, new_notes: Sequence[QueuedNote]) -> None:
        """Run one engine step, in which `new_notes` begin, and answer all notes that end with it."""
        started = self._step_since = time.perf_counter()
        try:
            ended, postponed = await asyncio.get_running_loop().run_in_executor(
                self._engine_thread, self._advance, new_notes
            )
        except BaseException as error:
            self._fail_running(new_notes, error)
            if isinstance(error, asyncio.CancelledError) or not isinstance(error, Exception):
                raise
            return
        finally:
            seconds = time.perf_counter() - started
            self._step_since = None
        for note in reversed(postponed):
            self._lanes[note.lane].appendleft(note)
        self._recent_notes = 0.9 * self._recent_notes + len(ended)
        self._recent_seconds = 0.9 * self._recent_seconds + seconds
        self._observe([output for _, output in ended], seconds)
        begun = new_notes[: len(new_notes) - len(postponed)]
        if begun:
            self._telemetry.batch_tokens.observe(sum(note.tokenized.tokens for note in begun))
        for note in begun:
            self._telemetry.queue_wait.labels(note.lane).observe(started - note.since)
        for note, output in ended:
            if not note.answer.done():
                note.answer.set_result(output)

    def _advance(
        self, new_notes: Sequence[QueuedNote]
    ) -> tuple[list[tuple[QueuedNote, GenerationOutput]], list[QueuedNote]]:
        """Run one engine step, in the engine's thread. Return the notes that ended with it, with their outputs, and
        those of `new_notes` that the engine has no room for yet."""
        for running in [running for running, note in self._running.items() if note.answer.done()]:
            self._engine.abort(running)
            del self._running[running]
        postponed = list(new_notes)
        while postponed and (not self._running or self._engine.can_add(postponed[0].tokenized)):
            note = postponed.pop(0)
            self._running[self._engine.add_request(note.tokenized)] = note
        ended = [(self._running.pop(running), output) for running, output in self._engine.step()]
        return ended, postponed

    def _fail_running(self, new_notes: Sequence[QueuedNote], error: BaseException) -> None:
        """Answer all notes of a failed step: after an error the engine has dropped them."""
        stopping = isinstance(error, asyncio.CancelledError)
        if not stopping:
            log.exception("engine_failed", notes=len(new_notes) + len(self._running))
        for note in {*new_notes, *self._running.values()}:
            _fail(note, Stopping() if stopping else EngineFailed(type(error).__name__))
        self._running.clear()

    def _observe(self, outputs: Sequence[GenerationOutput], seconds: float) -> None:
        self._telemetry.inference.observe(seconds)
        self._telemetry.prompt_tokens.inc(sum(output.usage.prompt_tokens for output in outputs))
        self._telemetry.generated_tokens.inc(sum(output.usage.generated_tokens for output in outputs))
        for output in outputs:
            if output.first_token_seconds is not None:
                self._telemetry.first_token.observe(output.first_token_seconds)


def _fail(note: QueuedNote, error: Exception) -> None:
    if not note.answer.done():
        note.answer.set_exception(error)
        note.answer.exception()  # marks it as retrieved: a caller awaits only its first failure
