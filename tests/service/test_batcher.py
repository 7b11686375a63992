"""The batcher: which notes share a batch, which go first, which are refused; and every caller gets an answer."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from model.generation import VECTOR_ONLY, GenerationOutput, GenerationRequest, Hashtag
from model.note import Note
from service.admission import FIRST_ESTIMATE, NEW_WEIGHT, PATIENT, Lane, Urgency
from service.batcher import MAX_BULK_WAIT, Batcher
from service.errors import EngineFailed, QueueFull, Stopping
from service.telemetry import Telemetry
from service.tokenising import TOKENISED_CHARS, parts_to_tokenise
from service.tracing import begin_request
from tests.service.batcher_steps import ANSWER_SECONDS, answer_of, names, note, plug, queue, start_request
from tests.service.conftest import PreparedWords, WordEngine, batching, eventually, note_vector

pytestmark = pytest.mark.anyio


async def test_concurrent_requests_share_a_batch(engine: WordEngine) -> None:
    async with batching(engine) as batcher:
        await plug(engine, batcher)
        tasks = [await queue(batcher, note(name)) for name in "abc"]
        tasks.append(await queue(batcher, note("d"), lane=Lane.BULK))
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert names(engine) == [["a", "b", "c", "d"]]


async def test_what_begins_together_keeps_within_its_budget(engine: WordEngine) -> None:
    chance = random.Random(3)
    notes = [note(f"n{n}", chance.randint(1, 12)) for n in range(60)]
    async with batching(engine, max_tokens=20, max_notes=6) as batcher:
        await plug(engine, batcher)
        tasks = [await queue(batcher, *notes[:40], lane=Lane.BULK)]
        tasks += [await queue(batcher, n) for n in notes[40:]]
        engine.gate.set()
        await asyncio.gather(*tasks)
    batches = [[engine.tokenize(n, VECTOR_ONLY).tokens for n in batch] for batch in engine.batches]
    assert all(len(batch) <= 6 and sum(batch) <= 20 for batch in batches)
    assert sorted(n.id for n in engine.notes) == sorted(["plug", *(n.id for n in notes)])


async def test_a_vector_does_not_wait_for_the_hashtags_of_another_note(engine: WordEngine) -> None:
    async with batching(engine) as batcher:
        engine.gate.clear()
        long = asyncio.create_task(batcher.generate(note("long"), GenerationRequest(hashtags=10**9)))
        await eventually(lambda: engine.batches)
        vector = await queue(batcher, note("vector"))
        engine.gate.set()
        await vector
        assert not long.done()
        long.cancel()
        await eventually(lambda: not engine.live)  # the work of the cancelled request ends too


async def test_what_the_engine_has_no_room_for_waits_its_turn(engine: WordEngine) -> None:
    engine.room = 2
    async with batching(engine) as batcher:
        await plug(engine, batcher)
        tasks = [await queue(batcher, note(name)) for name in "abcde"]
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert names(engine) == [["a", "b"], ["c", "d"], ["e"]]


async def test_a_note_beyond_the_budget_runs_alone(engine: WordEngine) -> None:
    async with batching(engine, max_tokens=10) as batcher:
        await plug(engine, batcher)
        tasks = [await queue(batcher, note(name, words)) for name, words in [("a", 2), ("long", 50), ("b", 2)]]
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert names(engine) == [["a"], ["long"], ["b"]]


async def test_interactive_notes_go_before_bulk_ones(engine: WordEngine) -> None:
    async with batching(engine, max_notes=2) as batcher:
        await plug(engine, batcher)
        bulk = await queue(batcher, *map(note, "uvw"), lane=Lane.BULK)
        person = [await queue(batcher, note(name)) for name in "abc"]
        engine.gate.set()
        await asyncio.gather(bulk, *person)
    assert names(engine) == [["a", "b"], ["c", "u"], ["v", "w"]]


async def test_a_bulk_note_that_is_due_gets_the_next_room_of_the_engine(engine: WordEngine) -> None:
    engine.room, now = 1, [0.0]
    async with batching(engine, max_notes=8, now=lambda: now[0]) as batcher:
        await plug(engine, batcher)
        bulk = await queue(batcher, *map(note, "uv"), lane=Lane.BULK)
        person = [await queue(batcher, note(name)) for name in "abc"]
        now[0] = MAX_BULK_WAIT
        engine.gate.set()
        await asyncio.gather(bulk, *person)
    assert names(engine)[0] == ["u"]
    assert sorted(itertools.chain(*names(engine))) == ["a", "b", "c", "u", "v"]


async def test_interactive_note_is_tokenised_between_long_bulk_notes(
    engine: WordEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenised: list[str] = []
    begun, go_on, tokenize = threading.Event(), threading.Event(), engine.tokenize

    def recorded(one: Note, request: GenerationRequest) -> PreparedWords:
        tokenised.append(one.id)
        begun.set()
        assert go_on.wait(ANSWER_SECONDS)
        return tokenize(one, request)

    monkeypatch.setattr(engine, "tokenize", recorded)
    async with batching(engine, max_tokens=10**6) as batcher:
        bulk = asyncio.create_task(
            batcher.generate_all([(note(name, TOKENISED_CHARS), VECTOR_ONLY) for name in "uvw"], Urgency(Lane.BULK))
        )
        await eventually(begun.is_set)
        person = asyncio.create_task(batcher.generate(note("a")))
        await eventually(lambda: batcher._tokenise_thread._work_queue.qsize())
        go_on.set()
        await asyncio.gather(bulk, person)
    assert tokenised == ["u", "a", "v", "w"]


def test_parts_to_tokenise_have_few_characters_or_one_note() -> None:
    sizes = [10, 20, TOKENISED_CHARS, TOKENISED_CHARS + 1, 5, 5]
    notes = [(Note(title="x" * size), VECTOR_ONLY) for size in sizes]
    parts = [[len(one.title) for one, _ in part] for part in parts_to_tokenise(notes)]
    assert list(itertools.chain(*parts)) == sizes
    assert all(len(part) == 1 or sum(part) <= TOKENISED_CHARS for part in parts)
    assert len(parts) < len(sizes)


async def test_outputs_come_in_the_order_of_the_notes(engine: WordEngine) -> None:
    chance = random.Random(5)
    notes = [note(f"n{n}", chance.randint(1, 9)) for n in range(40)]
    async with batching(engine, max_notes=7) as batcher:
        outputs = await batcher.generate_all([(n, VECTOR_ONLY) for n in notes], Urgency(Lane.BULK))
    for n, output in zip(notes, outputs, strict=True):
        np.testing.assert_array_equal(output.vector, note_vector(n))


async def test_each_note_gets_what_it_asked_for(engine: WordEngine) -> None:
    async with batching(engine) as batcher:
        plain, full = await batcher.generate_all(
            [(note("a"), VECTOR_ONLY), (note("b"), GenerationRequest(hashtags=1, categories=("Food",)))],
            Urgency(Lane.BULK),
        )
    assert (plain.hashtags, plain.categories) == (None, None)
    assert [h.text for h in full.hashtags or ()] == ["b"]
    assert [c.name for c in full.categories or ()] == ["Food"]


async def test_no_notes_need_no_engine(engine: WordEngine) -> None:
    async with batching(engine) as batcher:
        assert await batcher.generate_all([], Urgency(Lane.BULK)) == []
    assert engine.batches == []


async def test_every_batch_runs_on_the_one_engine_thread(engine: WordEngine) -> None:
    async with batching(engine, max_notes=2) as batcher:
        await asyncio.gather(*(start_request(batcher, note(f"n{n}")) for n in range(20)))
    assert len(engine.batches) >= 10
    assert len(engine.threads) == 1


async def test_a_full_queue_refuses_with_a_time_to_come_back(engine: WordEngine) -> None:
    async with batching(engine, max_queue=3) as batcher:
        await plug(engine, batcher)
        waiting = await queue(batcher, *map(note, "abc"))
        with pytest.raises(QueueFull) as error:
            await batcher.generate(note("d"))
        assert error.value.retry_after >= 1
        engine.gate.set()
        await waiting
        await batcher.generate(note("e"))
    assert "d" not in {n.id for n in engine.notes}


async def test_a_list_is_admitted_whole_or_not_at_all(engine: WordEngine) -> None:
    async with batching(engine, max_queue=3) as batcher:
        await plug(engine, batcher)
        waiting = await queue(batcher, *map(note, "ab"))
        with pytest.raises(QueueFull):
            await batcher.generate_all([(note(name), VECTOR_ONLY) for name in "cd"], Urgency(Lane.BULK))
        assert batcher.waiting == 2
        engine.gate.set()
        await waiting
    assert names(engine) == [["a", "b"]]


async def test_requests_at_once_are_admitted_only_up_to_the_bound(engine: WordEngine) -> None:
    async with batching(engine, max_queue=5) as batcher:
        await plug(engine, batcher)
        tasks = [start_request(batcher, note(f"n{n}")) for n in range(20)]
        await eventually(lambda: sum(task.done() for task in tasks) == 15)
        assert batcher.waiting == 5
        engine.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(answer, QueueFull) for answer in answers) == 15


async def test_a_note_whose_caller_left_never_reaches_the_engine(engine: WordEngine) -> None:
    async with batching(engine) as batcher:
        await plug(engine, batcher)
        left = await queue(batcher, note("left"))
        left_list = await queue(batcher, *map(note, "xyz"), lane=Lane.BULK)
        stays = await queue(batcher, note("stays"))
        left.cancel()
        left_list.cancel()
        await asyncio.gather(left, left_list, return_exceptions=True)
        engine.gate.set()
        await stays
    assert names(engine) == [["stays"]]


async def test_notes_whose_caller_left_take_no_place_behind_a_note_that_waits(engine: WordEngine) -> None:
    async with batching(engine, max_queue=4) as batcher:
        await plug(engine, batcher)
        stays = await queue(batcher, note("stays"))
        for _ in range(5):
            left = await queue(batcher, *map(note, "xyz"))
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            assert batcher.waiting == 1
        engine.gate.set()
        await stays
    assert names(engine) == [["stays"]]


async def test_a_caller_that_leaves_a_running_batch_harms_nobody_in_it(engine: WordEngine) -> None:
    async with batching(engine) as batcher:
        await plug(engine, batcher)
        left, stays = await queue(batcher, note("left")), await queue(batcher, note("stays"))
        engine.gate.set()
        await eventually(lambda: len(engine.batches) == 2)
        left.cancel()
        np.testing.assert_array_equal((await stays)[0].vector, note_vector(note("stays")))


async def test_tokens_of_a_caller_that_leaves_are_counted(engine: WordEngine) -> None:
    async with batching(engine) as batcher:
        stages = begin_request(None)
        plugged = await plug(engine, batcher)
        waits = await queue(batcher, note("waits", 7))
        for task in (plugged, waits):
            task.cancel()
            await asyncio.wait({task})
        assert stages.take_tokens() == 1, "those of the note that had begun"
        engine.gate.set()
        await batcher.generate(note("next", 5))
        assert stages.take_tokens() == 5


async def test_generated_tokens_of_a_caller_that_leaves_are_counted(engine: WordEngine) -> None:
    hashtags: list[str] = []

    def hold(hashtag: Hashtag) -> None:
        hashtags.append(hashtag.text)
        if len(hashtags) == 3:
            engine.gate.clear()  # the next step will wait

    async with batching(engine) as batcher:
        stages = begin_request(None)
        request = GenerationRequest(8, on_hashtag=hold)
        task = asyncio.create_task(batcher.generate_all([(note("long", 9), request)], PATIENT))
        await eventually(lambda: stages.generated_tokens == 3)
        task.cancel()
        await asyncio.wait({task})
        assert stages.take_tokens() == 9 + 3
        engine.gate.set()
        assert (await batcher.generate(note("next", 5), GenerationRequest(2))).usage.generated_tokens == 2
        assert stages.take_tokens() == 1 + 5 + 2, "one of the step that ran when the caller left"


async def test_metrics_count_the_tokens_of_callers_that_leave_and_of_failures(engine: WordEngine) -> None:
    telemetry = Telemetry()

    def prompt_tokens() -> float | None:
        return telemetry.registry.get_sample_value("notellm_prompt_tokens_total")

    async with batching(engine, telemetry=telemetry) as batcher:
        engine.gate.clear()
        left = start_request(batcher, note("left", 7))
        await eventually(lambda: engine.batches)
        left.cancel()
        engine.gate.set()
        await batcher.generate(note("next", 5))
        assert prompt_tokens() == 7 + 5
        engine.failure = RuntimeError("out of memory")
        with pytest.raises(EngineFailed):
            await batcher.generate(note("fails", 3))
        assert prompt_tokens() == 7 + 5 + 3


@pytest.mark.parametrize(("seconds", "reason"), [(0.0, "deadline"), (math.inf, "left")])
async def test_note_dropped_with_its_request_is_counted_by_the_reason(
    engine: WordEngine, seconds: float, reason: str
) -> None:
    now, telemetry = 0.0, Telemetry()
    async with batching(engine, now=lambda: now, telemetry=telemetry) as batcher:
        await plug(engine, batcher)
        task = asyncio.create_task(batcher.generate_all([(note("waits"), VECTOR_ONLY)], Urgency(seconds=seconds + 1)))
        await eventually(lambda: batcher.waiting == 1)
        now = 1.0
        task.cancel()  # as the edge does at the deadline
        await asyncio.wait({task})
        counted = {
            name: telemetry.registry.get_sample_value("notellm_dropped_notes_total", {"reason": name})
            for name in ("deadline", "left")
        }
    assert {name for name, count in counted.items() if count} == {reason}


async def test_engine_failure_answers_every_waiter_and_the_next_works(engine: WordEngine) -> None:
    async with batching(engine) as batcher:
        plugged = await plug(engine, batcher)
        engine.failure = RuntimeError("out of memory")
        tasks = [await queue(batcher, note(name)) for name in "abc"] + [await queue(batcher, *map(note, "def"))]
        engine.gate.set()
        for task in (plugged, *tasks):
            assert isinstance(await answer_of(task), EngineFailed)
        engine.failure = None
        assert await batcher.generate(note("next"))
        assert (batcher.waiting, batcher.busy_seconds) == (0, 0.0)


async def test_note_that_fails_on_its_own_leaves_those_beside_it(engine: WordEngine) -> None:
    telemetry = Telemetry()
    async with batching(engine, telemetry=telemetry) as batcher:
        await plug(engine, batcher)
        engine.failing = {"poison"}
        tasks = [await queue(batcher, note(name)) for name in ("a", "poison", "b")]
        engine.gate.set()
        answers = [await answer_of(task) for task in tasks]
        assert [isinstance(answer, EngineFailed) for answer in answers] == [False, True, False]
        assert await batcher.generate(note("next"))
    assert engine.live == {}
    assert telemetry.registry.get_sample_value("notellm_prompt_tokens_total") == 1 + 3 + 1


async def test_room_in_the_queue_is_given_back_whatever_ends_a_request(engine: WordEngine) -> None:
    async with batching(engine, max_queue=3) as batcher:
        await plug(engine, batcher)
        left = await queue(batcher, *map(note, "abc"))
        left.cancel()
        engine.gate.set()
        await eventually(lambda: batcher.waiting == 0)
        unborn = start_request(batcher, *map(note, "abc"))
        await asyncio.sleep(0)  # lets it be admitted and begin tokenising
        unborn.cancel()
        await asyncio.gather(left, unborn, return_exceptions=True)
        engine.failure = RuntimeError()
        await asyncio.gather(start_request(batcher, *map(note, "abc")), return_exceptions=True)
        with pytest.raises(QueueFull):
            await batcher.generate_all([(note("x"), VECTOR_ONLY)] * 4, Urgency(Lane.BULK))
        engine.failure = None
        assert len(await start_request(batcher, *map(note, "abc"))) == 3


async def test_notes_of_one_step_share_its_time_by_their_tokens() -> None:
    """A short note beside a long one keeps the expected wait for short notes short."""
    clock = Clock()
    engine = EngineOfOneSecondSteps(clock)
    short, long = (note("short"), VECTOR_ONLY), (note("long", words=9), GenerationRequest(categories=("Travel",)))
    async with batching(engine, now=lambda: clock.seconds) as batcher:
        await batcher.generate_all([short, long], Urgency(Lane.BULK))
        assert engine.notes == [short[0], long[0]]
        with batcher.admit(1, VECTOR_ONLY, Urgency(Lane.BULK)):
            expected = batcher.expected_wait(Lane.BULK)
    assert expected == pytest.approx(FIRST_ESTIMATE + NEW_WEIGHT * (1 / 10 - FIRST_ESTIMATE))


@dataclass
class Clock:
    seconds: float = 0.0


class EngineOfOneSecondSteps(WordEngine):
    """An engine whose steps take a second by the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def step(self) -> list[tuple[PreparedWords, GenerationOutput]]:
        self._clock.seconds += 1
        return super().step()


async def test_busy_is_told_while_a_batch_runs(engine: WordEngine) -> None:
    async with batching(engine) as batcher:
        assert batcher.busy_seconds == 0
        plugged = await plug(engine, batcher)
        assert batcher.busy_seconds > 0
        engine.gate.set()
        await plugged
        assert batcher.busy_seconds == 0


def refuses(batcher: Batcher) -> bool:
    try:
        with batcher.admit(1, VECTOR_ONLY, PATIENT):
            return False
    except Stopping:
        return True


async def test_stop_finishes_what_runs_and_what_waits(engine: WordEngine) -> None:
    batcher = Batcher(engine, Telemetry(), max_tokens=100, max_notes=1, max_queue=10)
    batcher.start()
    tasks = [await plug(engine, batcher), await queue(batcher, note("a")), await queue(batcher, note("b"))]
    stopping = asyncio.create_task(batcher.stop(60))
    await eventually(lambda: refuses(batcher))
    engine.gate.set()
    await stopping
    assert [len(await task) for task in tasks] == [1, 1, 1]


async def stopped_while_stuck(engine: WordEngine) -> tuple[object, object]:
    """Return the answers of a note in a batch that did not end in time, and of a note queued behind it."""
    batcher = Batcher(engine, Telemetry(), max_tokens=100, max_notes=1, max_queue=10)
    batcher.start()
    running, waiting = await plug(engine, batcher), await queue(batcher, note("a"))
    await batcher.stop(0.05)
    assert batcher.waiting == 0
    first, second = await asyncio.gather(answer_of(running), answer_of(waiting), return_exceptions=True)
    return first, second


async def test_stop_answers_a_note_that_still_waits_with_stopping(engine: WordEngine) -> None:
    assert isinstance((await stopped_while_stuck(engine))[1], Stopping)


async def test_stop_answers_notes_of_an_endless_step_with_stopping(engine: WordEngine) -> None:
    assert isinstance((await stopped_while_stuck(engine))[0], Stopping)


async def test_after_stop_notes_are_refused_and_no_task_is_left(engine: WordEngine) -> None:
    async with batching(engine) as batcher:
        await batcher.generate(note("a"))
    with pytest.raises(Stopping):
        await batcher.generate(note("b"))
    assert "batcher" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_stop_between_two_batches_of_a_list_ends_it_with_stopping(engine: WordEngine) -> None:
    async with batching(engine) as batcher:
        with batcher.admit(2, VECTOR_ONLY, PATIENT, 1) as admission:
            await batcher.generate_all([(note("a"), VECTOR_ONLY)], PATIENT, admission)
            await batcher.stop(ANSWER_SECONDS)
            with pytest.raises(Stopping):
                await batcher.generate_all([(note("b"), VECTOR_ONLY)], PATIENT, admission)


async def test_note_that_is_postponed_while_its_caller_leaves_is_not_charged(
    engine: WordEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its step takes it off the queue and finds no room for it."""
    engine.room = 1
    steps = threading.Semaphore(0)
    begun = 0
    step = engine.step

    def step_when_told() -> list[Any]:
        nonlocal begun
        begun += 1
        assert steps.acquire(timeout=20)
        return step()

    monkeypatch.setattr(engine, "step", step_when_told)
    async with batching(engine) as batcher:
        longer = asyncio.create_task(batcher.generate(Note(title="one"), GenerationRequest(5)))
        await eventually(lambda: begun == 1)
        stages = begin_request(None)
        leaving = asyncio.create_task(batcher.generate(Note(title="a b c")))
        await eventually(lambda: batcher.waiting == 1)
        steps.release()
        await eventually(lambda: begun == 2 and batcher.waiting == 0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert stages.prompt_tokens == 0
        steps.release(30)
        await longer
        assert stages.prompt_tokens == 0
