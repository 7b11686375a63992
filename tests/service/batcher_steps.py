"""Steps of the tests of the batcher: requests that wait behind a busy engine."""

from __future__ import annotations

import asyncio

from model.generation import VECTOR_ONLY, GenerationOutput
from model.note import Note
from service.admission import Lane, Urgency
from service.batcher import Batcher
from tests.service.conftest import WordEngine, eventually

ANSWER_SECONDS = 20.0
"""Seconds to wait for an answer, after which a test fails: the batcher has lost the request."""


def note(name: str, words: int = 1) -> Note:
    """Return a note that costs `words` tokens."""
    return Note(id=name, title=name, content=" word" * (words - 1))


def start_request(
    batcher: Batcher, *notes: Note, lane: Lane = Lane.INTERACTIVE
) -> asyncio.Task[list[GenerationOutput]]:
    return asyncio.create_task(batcher.generate_all([(n, VECTOR_ONLY) for n in notes], Urgency(lane)))


async def plug(engine: WordEngine, batcher: Batcher) -> asyncio.Task[list[GenerationOutput]]:
    """Keep the engine busy with one note until its gate opens; further requests wait in the queue."""
    engine.gate.clear()
    plugged = start_request(batcher, note("plug"))
    await eventually(lambda: engine.batches)
    return plugged


async def queue(batcher: Batcher, *notes: Note, lane: Lane = Lane.INTERACTIVE) -> asyncio.Task[list[GenerationOutput]]:
    """Start one request, and return once it is in the queue."""
    before = batcher.waiting
    task = start_request(batcher, *notes, lane=lane)
    await eventually(lambda: batcher.waiting == before + len(notes))
    return task


async def answer_of(task: asyncio.Task[list[GenerationOutput]]) -> BaseException | list[GenerationOutput]:
    """Return the task's result or exception; TimeoutError if neither comes in time."""
    async with asyncio.timeout(ANSWER_SECONDS):
        (answer,) = await asyncio.gather(task, return_exceptions=True)
    return answer


def names(engine: WordEngine) -> list[list[str]]:
    """Return the note ids of each batch after that of `plug`."""
    return [sorted(n.id for n in batch) for batch in engine.batches[1:]]
