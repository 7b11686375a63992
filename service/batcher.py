"""Batcher: concurrent requests of all endpoints -> readings that begin and leave at any step of the one engine thread.

Bounded, and with two lanes: interactive before bulk. Every waiter gets an answer: its reading, or the step's error.
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
    """Who goes first: a person waits in INTERACTIVE, a list or a stream in BULK."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(slots=True, eq=False)
class QueuedNote:
    """One note in the queue or being read. Whoever waits for `answer` may cancel it; then the note is dropped."""

    tokenized: TokenizedRequest
    lane: Lane
    answer: asyncio.Future[GenerationOutput]
    since: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class Admission:
    """Room for `left` notes that are not in the queue yet."""

    left: int


class Batcher:
    """`max_tokens`: of the prompts that begin with one step. `max_notes`: that are read at a time. `max_queue`: notes
    that may wait; beyond it QueueFull."""

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
        self._reading: dict[object, QueuedNote] = {}
        """By what the engine calls it."""
        self._done_lately, self._seconds_lately = 10.0, 1.0

    def start(self) -> None:
        self._task = asyncio.create_task(self._loop(), name="batcher")

    async def stop(self, seconds: float) -> None:
        """Refuse new notes, finish the queue for at most `seconds`, then answer the rest with Stopping."""
        self._stopping = True
        self._arrived.set()
        if self._task:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._task), seconds)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for lane in self._lanes.values():
            for job in lane:
                _fail(job, Stopping())
            lane.clear()
        self._engine_thread.shutdown(wait=False)
        self._tokenise_thread.shutdown(wait=False)

    @property
    def waiting(self) -> int:
        """Notes in the queue, those of callers that left included until their turn comes."""
        return sum(map(len, self._lanes.values()))

    @property
    def busy_seconds(self) -> float:
        """How long the engine has been at its present step; 0 when it is idle."""
        return 0.0 if self._step_since is None else time.perf_counter() - self._step_since

    async def generate(
        self, note: Note, wanted: GenerationRequest = VECTOR_ONLY, lane: Lane = Lane.INTERACTIVE
    ) -> GenerationOutput:
        """The engine's reading of one note. Raises QueueFull, EngineFailed, Stopping."""
        return (await self.generate_all([(note, wanted)], lane))[0]

    async def generate_all(
        self, notes: Sequence[tuple[Note, GenerationRequest]], lane: Lane, admission: Admission | None = None
    ) -> list[GenerationOutput]:
        """Readings in order; the first failure cancels the rest.

        All notes are admitted, or none (QueueFull), unless the caller was admitted with them.
        """
        if not notes:
            return []
        if admission is None:
            with self.admit(len(notes)) as admission:
                return await self.generate_all(notes, lane, admission)
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        tokenized = await loop.run_in_executor(
            self._tokenise_thread, lambda: [self._engine.tokenize(note, wanted) for note, wanted in notes]
        )
        self._telemetry.tokenise.observe(time.perf_counter() - started)
        if self._stopping:
            raise Stopping
        self._reserved -= len(notes)
        admission.left -= len(notes)
        jobs = [QueuedNote(p, lane, loop.create_future()) for p in tokenized]
        self._lanes[lane].extend(jobs)
        self._telemetry.queue_depth.labels(lane).set(len(self._lanes[lane]))
        self._arrived.set()
        try:
            return [await job.answer for job in jobs]
        finally:
            for job in jobs:
                job.answer.cancel()

    @contextlib.contextmanager
    def admit(self, notes: int) -> Iterator[Admission]:
        """Room in the queue for `notes`, kept for as long as the block lasts. Raises QueueFull, Stopping."""
        if self._stopping:
            raise Stopping
        taken = self.waiting + self._reserved
        if taken + notes > self._max_queue:
            raise QueueFull(taken, max(1, math.ceil(taken * self._seconds_lately / self._done_lately)))
        admission = Admission(notes)
        self._reserved += notes
        try:
            yield admission
        finally:
            self._reserved -= admission.left

    async def _loop(self) -> None:
        while True:
            begin = self._next_jobs()
            if begin or self._reading:
                await self._step(begin)
            elif self._stopping:
                return
            else:
                self._arrived.clear()
                await self._arrived.wait()

    def _next_jobs(self) -> list[QueuedNote]:
        """The oldest notes, interactive ones first, as many as the budgets allow; one at least where none is read."""
        jobs: list[QueuedNote] = []
        tokens = 0
        for lane, queue in self._lanes.items():
            while queue:
                if queue[0].answer.done():  # its caller left
                    queue.popleft()
                    continue
                more = queue[0].tokenized.tokens
                full = len(self._reading) + len(jobs) >= self._max_notes or (jobs and tokens + more > self._max_tokens)
                if full:
                    break
                tokens += more
                jobs.append(queue.popleft())
            self._telemetry.queue_depth.labels(lane).set(len(queue))
        return jobs

    async def _step(self, begin: Sequence[QueuedNote]) -> None:
        started = self._step_since = time.perf_counter()
        try:
            ended, left = await asyncio.get_running_loop().run_in_executor(self._engine_thread, self._advance, begin)
        except BaseException as error:
            stopping = isinstance(error, asyncio.CancelledError)
            if not stopping:
                log.exception("engine_failed", notes=len(begin) + len(self._reading))
            for job in {*begin, *self._reading.values()}:
                _fail(job, Stopping() if stopping else EngineFailed(type(error).__name__))
            self._reading.clear()
            if stopping or not isinstance(error, Exception):
                raise
            return
        finally:
            seconds = time.perf_counter() - started
            self._step_since = None
        for job in reversed(left):
            self._lanes[job.lane].appendleft(job)
        self._done_lately = 0.9 * self._done_lately + len(ended)
        self._seconds_lately = 0.9 * self._seconds_lately + seconds
        self._measure([reading for _, reading in ended], seconds)
        begun = begin[: len(begin) - len(left)]
        if begun:
            self._telemetry.batch_tokens.observe(sum(job.tokenized.tokens for job in begun))
        for job in begun:
            self._telemetry.queue_wait.labels(job.lane).observe(started - job.since)
        for job, reading in ended:
            if not job.answer.done():
                job.answer.set_result(reading)

    def _advance(
        self, begin: Sequence[QueuedNote]
    ) -> tuple[list[tuple[QueuedNote, GenerationOutput]], list[QueuedNote]]:
        """One step of the engine, in its thread: the readings that ended, and what it has no room for yet."""
        for work in [work for work, job in self._reading.items() if job.answer.done()]:
            self._engine.abort(work)
            del self._reading[work]
        left = list(begin)
        while left and (not self._reading or self._engine.can_add(left[0].tokenized)):
            job = left.pop(0)
            self._reading[self._engine.add_request(job.tokenized)] = job
        ended = [(self._reading.pop(work), reading) for work, reading in self._engine.step()]
        return ended, left

    def _measure(self, readings: Sequence[GenerationOutput], seconds: float) -> None:
        self._telemetry.inference.observe(seconds)
        self._telemetry.prompt_tokens.inc(sum(r.usage.prompt_tokens for r in readings))
        self._telemetry.generated_tokens.inc(sum(r.usage.generated_tokens for r in readings))
        for reading in readings:
            if reading.first_token_seconds is not None:
                self._telemetry.first_token.observe(reading.first_token_seconds)


def _fail(job: QueuedNote, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
        job.answer.exception()  # seen: only the first failure of a request is awaited
