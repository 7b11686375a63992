"""Overload of the engine, by a clock that only its steps move: which callers are admitted, and which are refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from model.generation import VECTOR_ONLY, GenerationRequest
from model.note import Note
from service.adding import GENERATE_NOTHING
from service.admission import IN_BACKGROUND, PATIENT, Admission, Lane, Urgency
from service.batcher import MAX_BULK_WAIT, Batcher
from service.errors import DeadlineExceeded, QueueFull
from service.index.live import LiveIndex
from service.interfaces import Clock
from service.store.redis_store import RedisNoteStore
from tests.service.conftest import WordEngine, batching, eventually, make_recommender

pytestmark = pytest.mark.anyio

NOTE_SECONDS = 0.025
BATCH_NOTES = 8
POSSIBLE_RATE = 1 / NOTE_SECONDS
QUEUE_SECONDS = 3.0


async def give_way_until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until `condition` holds: the batcher has no event that could be awaited instead."""
    while not condition():  # noqa: ASYNC110 - nothing to await: see above; each iteration runs all tasks that are ready
        await asyncio.sleep(0)


class TimedEngine(WordEngine):
    """An engine in which a note takes NOTE_SECONDS, or `cost` times that with hashtags. It makes a step when the test
    releases one, and `now`, its clock, advances by the time of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.cost = 10
        self.steps = threading.Semaphore(0)
        self.ended = 0
        """Number of steps that ended."""

    def step(self) -> list[tuple[Any, Any]]:
        assert self.steps.acquire(timeout=60), "the test never let the engine go on"
        for request in self.live:
            self.now += NOTE_SECONDS * (self.cost if request.request.hashtags else 1)
        self.live = dict.fromkeys(self.live, 1)  # one step is enough for any request
        outputs = super().step()
        self.ended += 1
        return outputs


@dataclass
class Overload:
    """Callers of one batcher, and counts of what became of their notes."""

    engine: TimedEngine
    batcher: Batcher
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    in_time: int = 0
    late: int = 0
    refused: list[QueueFull] = field(default_factory=list)

    def call(self, seconds: float, lane: Lane = Lane.INTERACTIVE, request: GenerationRequest = VECTOR_ONLY) -> None:
        """Start one more caller with a note, whose deadline is in `seconds`."""
        urgency = Urgency(lane, seconds, self.engine.now)
        self.tasks.append(asyncio.create_task(self._call(urgency, request)))

    async def _call(self, urgency: Urgency, request: GenerationRequest) -> None:
        try:
            await self.batcher.generate(Note(id=f"{urgency.lane} {len(self.tasks)}", title="a"), request, urgency)
        except QueueFull as error:
            self.refused.append(error)
        except DeadlineExceeded:
            self.late += 1
        else:
            self.in_time += self.engine.now <= urgency.deadline
            self.late += self.engine.now > urgency.deadline

    @property
    def open(self) -> int:
        return sum(not task.done() for task in self.tasks)

    async def settle(self) -> None:
        """Return once each open call is in the queue or in the engine."""
        await give_way_until(self._settled)

    def _settled(self) -> bool:
        running = len(self.batcher._running)  # there is no public count
        return self.batcher.waiting + running == self.open and (running > 0 or not self.batcher.waiting)

    async def step(self) -> None:
        """Let the engine make one step; return once its notes are answered."""
        await self.settle()
        if not self.open:
            self.engine.now += NOTE_SECONDS
            return
        ended = self.engine.ended
        self.engine.steps.release()
        await give_way_until(lambda: self.engine.ended != ended and not self.batcher.busy_seconds)
        for _ in range(5):  # lets the answers pass through the callers' tasks
            await asyncio.sleep(0)

    async def run(self, seconds: float, rate: float, patience: float) -> None:
        """Let callers arrive at `rate` for `seconds`."""
        begin, calls = self.engine.now, 0
        while self.engine.now < begin + seconds:
            while calls < rate * (self.engine.now - begin):
                self.call(patience)
                calls += 1
            await self.step()

    async def drain(self) -> float:
        """Run until no call is open, and return the seconds that it took."""
        begin = self.engine.now
        while self.open:
            await self.step()
        return self.engine.now - begin


@asynccontextmanager
async def overload() -> AsyncIterator[Overload]:
    engine = TimedEngine()
    async with batching(engine, max_notes=BATCH_NOTES, max_seconds=QUEUE_SECONDS, now=lambda: engine.now) as batcher:
        yield Overload(engine, batcher)
        engine.steps.release(100_000)


@pytest.mark.parametrize("patience", [1.0, 3.0, 10.0])
async def test_five_times_the_possible_rate_keeps_the_goodput(patience: float) -> None:
    async with overload() as callers:
        await callers.run(8, 5 * POSSIBLE_RATE, patience)
        await callers.drain()
        assert callers.in_time >= 0.9 * 8 * POSSIBLE_RATE
        assert callers.late <= 0.02 * callers.in_time


async def test_recovery_from_overload_takes_less_than_5_seconds() -> None:
    async with overload() as callers:
        await callers.run(6, 5 * POSSIBLE_RATE, 60)
        assert await callers.drain() < 5


@pytest.mark.parametrize("hashtags", [0, 3])
async def test_retry_after_is_right_within_a_factor_of_two(hashtags: int) -> None:
    request = GenerationRequest(hashtags=hashtags)
    async with overload() as callers:
        for _ in range(3):  # the rate is measured while the queue fills, and kept while it is full
            for _ in range(400):
                callers.call(60, request=request)
            await callers.settle()
            expected = callers.refused[-1].retry_after
            actual = await callers.drain()
        assert 0.5 <= expected / actual <= 2


async def test_caller_in_a_hurry_is_refused_where_a_patient_one_waits() -> None:
    async with overload() as callers:
        for _ in range(60):
            callers.call(60)
        await callers.settle()
        assert callers.refused == []
        callers.call(2)
        await callers.settle()
        assert len(callers.refused) == 1
        await callers.drain()
        assert callers.in_time == 60


async def test_note_behind_its_deadline_never_reaches_the_engine() -> None:
    async with overload() as callers:
        callers.call(60, request=GenerationRequest(hashtags=1))
        await callers.settle()
        callers.call(5 * NOTE_SECONDS)  # the step takes ten times as long as a note without hashtags
        await callers.drain()
        assert (callers.late, callers.in_time, len(callers.engine.notes)) == (1, 1, 1)


async def test_bulk_goes_on_slowly_beside_too_many_interactive_notes() -> None:
    async with overload() as callers:
        await callers.run(1, 5 * POSSIBLE_RATE, 10)
        for _ in range(40):
            callers.call(600, Lane.BULK)
        await callers.run(MAX_BULK_WAIT - 1, 5 * POSSIBLE_RATE, 10)
        assert all(note.id.startswith("interactive") for note in callers.engine.notes)
        begun = len(callers.engine.notes)
        await callers.run(6, 5 * POSSIBLE_RATE, 10)
        bulk = [note.id.startswith("bulk") for note in callers.engine.notes[begun:]]
        assert 0.05 <= sum(bulk) / len(bulk) <= 0.15


async def test_long_list_counts_whole_and_takes_few_places() -> None:
    async with overload() as callers:
        with callers.batcher.admit(4000, VECTOR_ONLY, Urgency(Lane.BULK, 60, callers.engine.now), places=8):
            assert callers.batcher.expected_wait(Lane.BULK) > 60
            assert callers.batcher.expected_wait(Lane.INTERACTIVE) == 0
            callers.call(60, Lane.BULK)
            callers.call(1)
            await callers.drain()
        assert (len(callers.refused), callers.in_time) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("use_case", ["add", "put_each", "embed"])
async def test_list_that_began_with_few_places_takes_more_when_others_leave(
    use_case: str, embedded_store: RedisNoteStore, live_index: LiveIndex, clock: Clock
) -> None:
    engine, urgency = TimedEngine(), IN_BACKGROUND
    notes = [Note(id=f"n{n}", title=f"note {n}") for n in range(65)]
    async with batching(engine, max_notes=1, max_queue=100) as batcher, asyncio.TaskGroup() as group:
        recommender = make_recommender(engine, batcher, embedded_store, live_index, clock)
        use_cases: dict[str, Callable[[], Coroutine[Any, Any, list[Any]]]] = {
            "add": lambda: recommender.add(notes, GENERATE_NOTHING, urgency),
            "put_each": lambda: recommender.put_each([(note, GENERATE_NOTHING) for note in notes], None, urgency),
            "embed": lambda: recommender.generator.embed(notes, urgency),
        }
        with batcher.admit(88, VECTOR_ONLY, PATIENT):  # leaves 2 of the 90 places that a bulk list may take
            late = group.create_task(use_cases[use_case]())
            await eventually(lambda: engine.live and batcher.waiting == 1)
        engine.steps.release(2)
        await eventually(lambda: batcher.waiting == 31)
        engine.steps.release(63)
        assert len(await late) == 65


async def test_refusal_asks_each_admission_once_for_its_places(
    engine: WordEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Admission] = []

    class ObservedAdmission(Admission):
        @property
        def reserved(self) -> int:
            asked.append(self)
            return super().reserved

    monkeypatch.setattr("service.batcher.Admission", ObservedAdmission)
    async with batching(engine, max_queue=20, tenants=2) as batcher:
        with ExitStack() as held:
            for _ in range(9):
                held.enter_context(batcher.admit(1, VECTOR_ONLY, IN_BACKGROUND, tenant="load"))
            asked.clear()
            assert batcher.refusal(IN_BACKGROUND, "load")
            assert len(asked) == 9
