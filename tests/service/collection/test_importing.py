"""Import of notes: values for fields that a line leaves out, and lists longer than the queue."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.note import Note
from service.adding import GENERATE_NOTHING
from service.admission import PATIENT
from service.collection.importing import Importer, NoteToImport
from service.errors import EngineFailed, IndexBehind
from service.index.live import LiveIndex
from service.interfaces import Clock
from service.recommender import Recommender
from service.records import Generated, StoredNote, Write
from service.store.redis_store import RedisNoteStore
from service.stored_notes import read_note
from tests.service.conftest import SPACE, GatedStore, WordEngine, batching, make_recommender, note_vector

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def with_vector(note: Note) -> NoteToImport:
    return NoteToImport(note, Generated(), SPACE, note_vector(note))


def without_vector(note: Note) -> NoteToImport:
    return NoteToImport(note, Generated(), "of-another-model", None)


@pytest.fixture
def importer(recommender: Recommender, embedded_store: RedisNoteStore, clock: Clock) -> Importer:
    return Importer(recommender, embedded_store, clock)


async def test_note_with_a_vector_and_no_time_has_that_of_its_arrival(
    importer: Importer, embedded_store: RedisNoteStore, clock: Clock
) -> None:
    note = Note(id="a", title="soup")
    await importer.add([with_vector(note)], False, PATIENT)
    arrived = (await read_note(embedded_store, "a")).note.created_at
    assert arrived == pytest.approx(clock(), abs=60)
    clock.offset += 1000
    (again,) = await importer.add([with_vector(note)], True, PATIENT)
    assert again.status == "unchanged"
    await importer.add([with_vector(replace(note, author="ann"))], True, PATIENT)
    assert (await read_note(embedded_store, "a")).note == replace(note, author="ann", created_at=arrived)


async def test_unchanged_note_is_not_answered_before_the_index_has_it(
    importer: Importer, embedded_store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = Note(id="a", title="soup", created_at=1.0)
    await embedded_store.hold()
    await embedded_store.put([Write(StoredNote(note, SPACE, note_vector(note), Generated()))])
    with monkeypatch.context() as patch:
        patch.setattr("service.collection.importing.WAIT_SECONDS", 0.05)
        with pytest.raises(IndexBehind):
            await importer.add([with_vector(note)], True, PATIENT)
    embedded_store.release()
    (outcome,) = await importer.add([with_vector(note)], True, PATIENT)
    assert outcome.status == "unchanged"


async def test_note_that_differs_in_the_type_of_an_attribute_alone_is_replaced(
    importer: Importer, embedded_store: RedisNoteStore
) -> None:
    note = Note(id="a", title="soup", created_at=1.0, attributes={"seats": 1})
    await importer.add([with_vector(note)], False, PATIENT)
    changed = replace(note, attributes={"seats": True})
    (outcome,) = await importer.add([with_vector(changed)], True, PATIENT)
    assert outcome.status == "updated"
    assert (await read_note(embedded_store, "a")).note.attributes["seats"] is True


async def test_note_that_has_expired_since_its_export_is_left_out(
    importer: Importer, embedded_store: RedisNoteStore, clock: Clock
) -> None:
    notes = [
        Note(id="over", title="sale", expires_at=clock() - 1),
        Note(id="on", title="sale", expires_at=clock() + 60),
    ]
    outcomes = await importer.add(list(map(with_vector, notes)), False, PATIENT)
    assert [outcome.status for outcome in outcomes] == ["expired", "created"]
    assert await embedded_store.size() == 1


async def test_more_notes_than_the_queue_has_places_are_read_part_by_part(
    engine: WordEngine, embedded_store: RedisNoteStore, live_index: LiveIndex, clock: Clock
) -> None:
    async with batching(engine, max_queue=4) as batcher:
        recommender = make_recommender(engine, batcher, embedded_store, live_index, clock)
        await recommender.put(Note(id="n3", title="there already"), GENERATE_NOTHING)
        notes = [without_vector(Note(id=f"n{n}", title=f"note {n}")) for n in range(11)]
        outcomes = await Importer(recommender, embedded_store, clock).add(notes, False, PATIENT)
    assert [outcome.status for outcome in outcomes] == ["created"] * 3 + ["exists"] + ["created"] * 7
    assert await embedded_store.size() == 11


async def test_import_that_fails_leaves_nothing_under_way(
    engine: WordEngine, embedded_store: RedisNoteStore, live_index: LiveIndex, clock: Clock
) -> None:
    async with batching(engine, max_queue=4) as batcher:
        recommender = make_recommender(engine, batcher, embedded_store, live_index, clock)
        engine.failure = RuntimeError("out of memory")
        notes = [without_vector(Note(id=f"n{n}", title=f"note {n}")) for n in range(11)]
        with pytest.raises(EngineFailed, match="stays stored"):
            await Importer(recommender, embedded_store, clock).add(notes, False, PATIENT)
        with batcher.admit(4, recommender.generator.request(), PATIENT):
            pass
    assert await embedded_store.size() == 0
