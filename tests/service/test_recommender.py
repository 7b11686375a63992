"""The use-cases on a real store and index: what is written, and what it costs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from model.generation import VECTOR_ONLY, GenerationOutput, Usage
from model.note import Note
from service.adding import STORE_BATCH_SIZE, batches_with_unique_ids
from service.admission import PATIENT
from service.errors import EngineFailed, NoteContended, NoteNotFound, PreconditionFailed, QueueFull
from service.filters import Filter
from service.index.live import LiveIndex
from service.interfaces import Clock
from service.recommender import CHANGE_ATTEMPTS, Recommender
from service.records import Attempt, Condition
from service.search.search import NoteSearch
from service.store.redis_store import RedisNoteStore
from service.stored_notes import read_note
from tests.service.conftest import PreparedWords, WordEngine, batching, make_recommender
from tests.service.steps import NOTHING, add, add_one, related, similar_ids, soup

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

# add


async def test_a_new_note_is_created_and_stored_as_told(
    recommender: Recommender, embedded_store: RedisNoteStore, engine: WordEngine
) -> None:
    added = await add_one(recommender, Note(id="a", title="hot soup", author="ann"))
    assert (added.status, added.stored.revision, added.usage) == ("created", 1, Usage(2, 0))
    stored = await read_note(embedded_store, "a")
    assert stored == replace(added.stored, vector=None)
    assert (stored.note.author, stored.space) == ("ann", engine.space)


async def test_changed_note_is_updated_and_equal_one_costs_nothing(
    recommender: Recommender, engine: WordEngine
) -> None:
    first = await add_one(recommender, Note(id="a", title="soup"))
    second = await add_one(recommender, Note(id="a", title="stew"))
    assert (second.status, second.stored.revision, second.usage) == ("updated", 2, Usage(1, 0))
    third = await add_one(recommender, Note(id="a", title="stew"))
    assert (third.status, third.stored.revision, third.usage) == ("unchanged", 2, Usage())
    assert third.stored.position == second.stored.position != first.stored.position
    assert len(engine.batches) == 2


async def test_new_fields_of_the_same_text_are_found_without_tokens(
    recommender: Recommender, search: NoteSearch, engine: WordEngine, live_index: LiveIndex
) -> None:
    note = Note(id="a", title="soup", author="tom", category="Food")
    await add(recommender, note, Note(id="b", title="soup"))
    batches = len(engine.batches)
    added = await add_one(recommender, replace(note, author="ann", category="Travel", attributes={"x": 1}))
    assert (added.status, added.usage, len(engine.batches)) == ("updated", Usage(), batches)
    assert await similar_ids(search, "b", where=Filter(category="Travel", author="ann")) == ["a"]
    assert await similar_ids(search, "b", where=Filter(author="tom")) == []
    assert live_index.status().tombstones == 0


@pytest.mark.parametrize("value", [True, 1.0, "1"])
async def test_attribute_of_another_type_is_a_change(
    recommender: Recommender, embedded_store: RedisNoteStore, value: Any
) -> None:
    await add_one(recommender, Note(id="a", title="soup", attributes={"seats": 1}))
    added = await add_one(recommender, Note(id="a", title="soup", attributes={"seats": value}))
    assert (added.status, added.usage) == ("updated", Usage())
    stored = (await read_note(embedded_store, "a")).note.attributes["seats"]
    assert (stored, type(stored)) == (value, type(value))


async def test_earlier_answer_is_told_while_the_queue_is_full(
    engine: WordEngine, embedded_store: RedisNoteStore, live_index: LiveIndex, clock: Clock
) -> None:
    async with batching(engine, max_queue=1) as batcher:
        recommender = make_recommender(engine, batcher, embedded_store, live_index, clock)
        attempts = [Attempt("key", "fingerprint")]
        (first,) = await recommender.add([Note(title="soup")], NOTHING, PATIENT, attempts)
        with batcher.admit(1, VECTOR_ONLY, PATIENT):
            with pytest.raises(QueueFull):
                await recommender.add([Note(title="stew")], NOTHING, PATIENT)
            (again,) = await recommender.add([Note(title="soup")], NOTHING, PATIENT, attempts)
    assert first
    assert again
    assert again.replayed
    assert again.stored.note.id == first.stored.note.id


async def test_a_note_without_an_id_gets_one_of_its_own(
    recommender: Recommender, embedded_store: RedisNoteStore
) -> None:
    added = await add(recommender, Note(title="soup"), Note(title="soup"))
    ids = {a.stored.note.id for a in added}
    assert len(ids) == 2
    assert all([(await read_note(embedded_store, i)).note.title == "soup" for i in ids])


async def test_the_time_of_arrival_is_kept_where_the_author_gave_none(recommender: Recommender, clock: Clock) -> None:
    before = clock()
    arrived = (await add_one(recommender, Note(id="a", title="soup"))).stored.note.created_at
    assert arrived is not None
    assert before <= arrived <= clock()
    clock.offset = 1000
    again = await add_one(recommender, Note(id="a", title="stew"))
    assert again.stored.note.created_at == arrived


async def test_an_id_several_times_in_a_list_is_applied_in_order(
    recommender: Recommender, embedded_store: RedisNoteStore
) -> None:
    notes = [Note(id=i, title=t) for i, t in [("a", "x"), ("b", "y"), ("a", "z"), ("a", "z"), ("b", "y")]]
    added = await add(recommender, *notes)
    assert [a.status for a in added] == ["created", "created", "updated", "unchanged", "unchanged"]
    assert [a.stored.note.title for a in added] == ["x", "y", "z", "z", "y"]
    stored = await read_note(embedded_store, "a")
    assert (stored.note.title, stored.revision) == ("z", 2)


async def test_a_long_list_comes_back_whole_and_in_order(
    recommender: Recommender, embedded_store: RedisNoteStore
) -> None:
    notes = [Note(id=f"n{n % 90}", title=f"soup {n}") for n in range(200)]
    added = await add(recommender, *notes)
    assert [(a.stored.note.id, a.stored.note.title) for a in added] == [(n.id, n.title) for n in notes]
    assert (await read_note(embedded_store, "n5")).note.title == "soup 185"


def test_batches_with_unique_ids_have_every_note_once_in_the_order_of_its_id() -> None:
    notes = [Note(id="abcab"[n % 5], title=str(n)) for n in range(100)]
    parts = list(batches_with_unique_ids(notes, lambda: STORE_BATCH_SIZE))
    assert sorted(i for part in parts for i in part) == list(range(100))
    assert all(len({notes[i].id for i in part}) == len(part) for part in parts)
    for note_id in "abc":
        order = [i for part in parts for i in part if notes[i].id == note_id]
        assert order == sorted(order)


async def test_an_empty_list_adds_nothing(recommender: Recommender) -> None:
    assert await add(recommender) == []


async def test_a_failure_of_the_engine_stores_nothing(
    recommender: Recommender, embedded_store: RedisNoteStore, engine: WordEngine
) -> None:
    engine.failure = RuntimeError()
    with pytest.raises(EngineFailed):
        await add(recommender, Note(id="a", title="soup"), Note(id="b", title="stew"))
    engine.failure = None
    for note_id in "ab":
        with pytest.raises(NoteNotFound):
            await read_note(embedded_store, note_id)
    assert (await add_one(recommender, Note(id="a", title="soup"))).status == "created"


# put, change, remove


async def test_a_put_at_another_position_changes_nothing(
    recommender: Recommender, embedded_store: RedisNoteStore
) -> None:
    first = await add_one(recommender, Note(id="a", title="soup"))
    second = await recommender.put(Note(id="a", title="stew"), NOTHING, Condition((first.stored.position,)))
    assert second.stored.revision == 2
    with pytest.raises(PreconditionFailed):
        await recommender.put(Note(id="a", title="lost"), NOTHING, Condition((first.stored.position,)))
    with pytest.raises(PreconditionFailed):
        await recommender.put(Note(id="unknown", title="lost"), NOTHING, Condition((first.stored.position,)))
    assert (await read_note(embedded_store, "a")).note.title == "stew"


async def test_a_change_is_made_to_the_note_as_it_is(
    recommender: Recommender, embedded_store: RedisNoteStore, engine: WordEngine
) -> None:
    first = await add_one(recommender, Note(id="a", title="soup", author="tom"))
    batches = len(engine.batches)
    added = await recommender.change("a", lambda note: replace(note, author="ann"), Condition((first.stored.position,)))
    assert (added.status, added.usage, len(engine.batches)) == ("updated", Usage(), batches)
    assert (await read_note(embedded_store, "a")).note == replace(first.stored.note, author="ann")
    with pytest.raises(PreconditionFailed):
        await recommender.change("a", lambda note: replace(note, author="lost"), Condition((first.stored.position,)))
    with pytest.raises(NoteNotFound):
        await recommender.change("unknown", lambda note: note)


@pytest.mark.parametrize("field", ["content", "author"])
async def test_concurrent_changes_of_one_note_are_all_made(
    recommender: Recommender, embedded_store: RedisNoteStore, field: str
) -> None:
    await add_one(recommender, Note(id="a", title="soup", content="-", author="-"))

    def append(n: int, note: Note) -> Note:
        changed: dict[str, Any] = {field: f"{getattr(note, field)} {n}"}
        return replace(note, **changed)

    changes = (recommender.change("a", partial(append, n)) for n in range(30))
    await asyncio.gather(*changes)
    stored = await read_note(embedded_store, "a")
    assert sorted(getattr(stored.note, field).split()[1:], key=int) == [str(n) for n in range(30)]
    assert stored.revision == 31


async def test_change_that_meets_another_one_each_time_is_told_to_try_again(
    engine: WordEngine,
    embedded_store: RedisNoteStore,
    live_index: LiveIndex,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with batching(engine) as batcher:
        here, elsewhere = (make_recommender(engine, batcher, embedded_store, live_index, clock) for _ in range(2))
        await add_one(here, Note(id="a", title="soup"))
        views = 0

        def step() -> list[tuple[PreparedWords, GenerationOutput]]:
            nonlocal views
            views += 1
            changing = elsewhere.change("a", lambda note: replace(note, attributes={"views": views}))
            asyncio.run_coroutine_threadsafe(changing, loop).result(30)
            return make_step()

        loop, make_step = asyncio.get_running_loop(), engine.step
        monkeypatch.setattr(engine, "step", step)
        with pytest.raises(NoteContended, match="Try again"):
            await here.change("a", lambda note: replace(note, content="of lemons"))
        assert views == CHANGE_ATTEMPTS
        assert (await read_note(embedded_store, "a")).note.content == ""


async def test_a_removed_note_is_gone_everywhere(
    recommender: Recommender, embedded_store: RedisNoteStore, search: NoteSearch
) -> None:
    await add(recommender, *soup(3))
    with pytest.raises(PreconditionFailed):
        await recommender.remove("n1", Condition(("1-0",)))
    await recommender.remove("n1", Condition(((await read_note(embedded_store, "n1")).position,)))
    assert await similar_ids(search, "n0") == ["n2"]
    for call in (read_note(embedded_store, "n1"), related(search, "n1", 3), recommender.remove("n1")):
        with pytest.raises(NoteNotFound):
            await call
    assert (await add_one(recommender, soup(3)[1])).status == "created"
