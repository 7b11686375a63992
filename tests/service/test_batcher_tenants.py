"""Tenants in the batcher: they take turns, and none uses up the places of the others."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from model.generation import VECTOR_ONLY, GenerationOutput
from model.note import Note
from service.access.principal import DEFAULT_TENANT
from service.admission import IN_BACKGROUND, PATIENT, Lane, Urgency
from service.batcher import MAX_BULK_WAIT, Batcher
from service.errors import DeadlineExceeded, QueueFull
from tests.service.batcher_steps import note, plug, queue
from tests.service.conftest import WordEngine, batching, eventually

pytestmark = pytest.mark.anyio


async def queue_for(
    batcher: Batcher, tenant: str, *notes: Note, urgency: Urgency = IN_BACKGROUND
) -> asyncio.Task[list[GenerationOutput]]:
    """Start a bulk request of a tenant, and return its task once it is in the queue."""
    before = batcher.waiting
    pairs = [(n, VECTOR_ONLY) for n in notes]
    task = asyncio.create_task(batcher.generate_all(pairs, urgency, tenant=tenant))
    await eventually(lambda: batcher.waiting == before + len(notes))
    return task


async def test_tenants_take_turns_in_a_lane(engine: WordEngine) -> None:
    async with batching(engine, max_notes=1, tenants=2) as batcher:
        await plug(engine, batcher)
        tasks = [await queue_for(batcher, "load", *(note(f"l{n}") for n in range(4)))]
        tasks.append(await queue_for(batcher, "other", note("o0"), note("o1")))
        tasks.append(await queue(batcher, note("person")))
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert [n.id for n in engine.notes[1:]] == ["person", "l0", "o0", "l1", "o1", "l2", "l3"]


async def test_bulk_note_of_a_newcomer_does_not_hold_up_those_that_are_due(engine: WordEngine) -> None:
    engine.room, now = 1, [0.0]
    async with batching(engine, max_notes=8, tenants=2, now=lambda: now[0]) as batcher:
        await plug(engine, batcher)
        tasks = [await queue_for(batcher, "load", note("l0"), note("l1"))]
        now[0] = MAX_BULK_WAIT
        tasks.append(await queue_for(batcher, "newcomer", note("x0")))
        tasks += [await queue(batcher, note(name)) for name in "abc"]
        engine.gate.set()
        await asyncio.gather(*tasks)
    order = [n.id for n in engine.notes[1:]]
    assert order[:3] == ["l0", "x0", "l1"]
    assert sorted(order) == ["a", "b", "c", "l0", "l1", "x0"]


async def test_bulk_note_whose_deadline_has_passed_brings_none_forward(engine: WordEngine) -> None:
    engine.room, now = 1, [0.0]
    async with batching(engine, max_notes=8, tenants=2, now=lambda: now[0]) as batcher:
        await plug(engine, batcher)
        tasks = [await queue_for(batcher, "load", note("l0"))]
        overdue = await queue_for(batcher, "load", note("l1"), urgency=Urgency(Lane.BULK, MAX_BULK_WAIT - 1))
        now[0] = MAX_BULK_WAIT
        tasks.append(await queue_for(batcher, "newcomer", note("x0")))
        tasks += [await queue(batcher, note(name)) for name in "ab"]
        engine.gate.set()
        await asyncio.gather(*tasks)
        with pytest.raises(DeadlineExceeded):
            await overdue
    assert [n.id for n in engine.notes[1:]] == ["l0", "a", "b", "x0"]


async def test_tenant_leaves_places_in_the_queue_to_others(engine: WordEngine) -> None:
    async with batching(engine, max_queue=9, tenants=2) as batcher:
        await plug(engine, batcher)
        tasks = [await queue_for(batcher, "load", *map(note, "abcd"))]
        with pytest.raises(QueueFull):
            await batcher.generate(note("e"), urgency=IN_BACKGROUND, tenant="load")
        tasks.append(await queue_for(batcher, "other", *map(note, "fg")))
        with pytest.raises(QueueFull):
            await batcher.generate(note("h"), urgency=IN_BACKGROUND, tenant="other")
        tasks.append(await queue_for(batcher, "third", note("i")))
        tasks.append(await queue_for(batcher, "fourth", note("j")))
        engine.gate.set()
        await asyncio.gather(*tasks)


async def test_list_takes_more_places_only_of_those_that_its_tenant_may_have(engine: WordEngine) -> None:
    async with batching(engine, max_queue=100, tenants=2) as batcher:
        with batcher.admit(1000, VECTOR_ONLY, IN_BACKGROUND, 13, "load") as later:
            with batcher.admit(1000, VECTOR_ONLY, IN_BACKGROUND, 32, "load") as first:
                assert [batcher.grow_admission(one, 40) for one in (later, first)] == [13, 32]
                with batcher.admit(22, VECTOR_ONLY, IN_BACKGROUND, tenant="other"):
                    assert [batcher.grow_admission(one, 40) for one in (later, first)] == [13, 32]
            assert (batcher.grow_admission(later, 40), later.reserved) == (40, 40)


async def test_newcomer_and_interactive_note_find_places_beside_many_bulk_loads(engine: WordEngine) -> None:
    loads = [f"load{number}" for number in range(20)]
    async with batching(engine, max_queue=400, tenants=len(loads) + 1) as batcher:
        with ExitStack() as held:
            places = [take_all_places(held, batcher, load) for load in loads]
            assert places[:3] == [180, 90, 45]
            assert all(places)
            for tenant in (*loads, "newcomer"):
                held.enter_context(batcher.admit(1, VECTOR_ONLY, PATIENT, tenant=tenant))
            assert take_all_places(held, batcher, "newcomer") > 0


async def test_bulk_load_of_the_only_tenant_leaves_places_to_interactive_notes(engine: WordEngine) -> None:
    async with batching(engine, max_queue=100) as batcher:
        with ExitStack() as held:
            assert take_all_places(held, batcher, DEFAULT_TENANT) == 90
            for _ in range(10):
                held.enter_context(batcher.admit(1, VECTOR_ONLY, PATIENT))
            with pytest.raises(QueueFull):
                await batcher.generate(note("a"))


def take_all_places(held: ExitStack, batcher: Batcher, tenant: str) -> int:
    """Admit as many bulk notes of a tenant as the batcher allows, until `held` ends; return their number."""
    places = 0
    while batcher.refusal(IN_BACKGROUND, tenant) is None:
        held.enter_context(batcher.admit(1, VECTOR_ONLY, IN_BACKGROUND, tenant=tenant))
        places += 1
    return places


async def test_only_tenant_has_the_whole_queue(engine: WordEngine) -> None:
    async with batching(engine, max_queue=9) as batcher:
        await plug(engine, batcher)
        task = await queue_for(batcher, "load", *map(note, "abcdefghi"))
        engine.gate.set()
        assert len(await task) == 9
