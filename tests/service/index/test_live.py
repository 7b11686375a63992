"""LiveIndex on a real store: waiting for writes, neighbours, the vocabulary, and stopping."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from safetensors.torch import load_file, save_file

from model.config import NoteLLMConfig
from model.evaluation.system import EngineSystem
from model.generation import Neighbours
from model.inference.engine import Engine
from model.note import Note
from model.weights import HEAD_FILE
from service.errors import IndexBehind
from service.filters import Filter
from service.index.live import LiveIndex
from service.index.state import IndexedNotes
from service.interfaces import Clock
from service.records import ORIGIN, LogBounds, LogEntry, StoredNote
from service.store.embedded_redis import EmbeddedRedis
from tests.models import in_torch
from tests.service.conftest import DIMENSION, GatedStore, eventually, following, stored_note
from tests.service.index.live_steps import WAIT, delete, find_ids, notes, put

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_neighbours_rare_hashtags_are_found_among_bare_notes(
    embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    vector = stored_note("n0").vector
    assert vector is not None
    bare = [stored_note(f"n{n}", "n0") for n in range(30)]
    tagged = stored_note("tagged", "else", hashtags=("soup",))
    await live_index.wait_for(await put(embedded_store, *bare, tagged), WAIT)
    neighbours = await asyncio.to_thread(live_index.find_neighbours, Note(), vector, 2)
    assert [(neighbour.id, neighbour.hashtags) for neighbour in neighbours.by_vector] == [("tagged", ("soup",))]
    await live_index.wait_for(await delete(embedded_store, "tagged"), WAIT)
    assert await asyncio.to_thread(live_index.find_neighbours, Note(), vector, 2) == Neighbours([], [], stored_notes=30)


@pytest.fixture
def small_engine(tiny_checkpoint: Path, tmp_path: Path) -> Engine:
    """An Engine on the tiny checkpoint with vectors of DIMENSION numbers, the dimension of `live_index`."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "small")
    head = load_file(folder / HEAD_FILE)
    save_file(head | {"projection": head["projection"][:DIMENSION].contiguous()}, folder / HEAD_FILE)
    replace(NoteLLMConfig.load(folder), dimension=DIMENSION).save(folder)
    return in_torch(folder, tmp_path)


async def test_neighbours_are_those_of_an_evaluation_on_the_same_notes(
    embedded_store: GatedStore, live_index: LiveIndex, small_engine: Engine
) -> None:
    """Half of the queries are stored notes."""
    dishes, places = ("lemon soup", "warm bread", "cold noodles"), ("here", "in town", "by the river", "on an island")
    titles = [f"{dish} {place}" for dish in dishes for place in places]
    tagged = [Note(title, id=f"n{n}", hashtags=("Soup" if n % 3 else "soup",)) for n, title in enumerate(titles)]
    known = [*tagged, Note("soup", id="bare")]
    vectors = small_engine.embed(known)
    stored = [
        stored_note(note.id, note.title, hashtags=note.hashtags, vector=vector)
        for note, vector in zip(known, vectors, strict=True)
    ]
    await live_index.wait_for(await put(embedded_store, *stored), WAIT)
    evaluated = EngineSystem(small_engine, "grounded", known).hashtag_request(3).find_neighbours
    assert evaluated is not None
    new = [Note("lemon bread by the river", id=f"new {n}", content=title) for n, title in enumerate(titles[:4])]
    for note in (*known[:4], *new):
        (vector,) = small_engine.embed([note])
        ways = [await asyncio.to_thread(find, note, vector, 5) for find in (live_index.find_neighbours, evaluated)]
        (served, measured) = ([(n.id, n.hashtags) for n in (*way.by_vector, *way.by_words)] for way in ways)
        assert measured == served
        assert ways[0].named == ways[1].named
        assert ways[0].stored_notes == ways[1].stored_notes == len(known)
        assert bool(ways[0].named) == ("soup" in f"{note.title} {note.content}")
        assert len(served) == 10
        assert note.id not in dict(served)


@pytest.mark.parametrize("bound", [2048, 0], ids=["few pass", "many pass"])
async def test_words_find_the_notes_of_a_rare_author_however_many_others_share_more(
    embedded_store: GatedStore, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    monkeypatch.setattr("service.index.live.MAX_PASSING_SCORED", bound)
    common = [stored_note(f"n{n}", "lemon soup", author="ann") for n in range(40)]
    rare = [stored_note("rare", "lemon bread", author="bob"), stored_note("excluded", "lemon soup", author="bob")]
    await live_index.wait_for(await put(embedded_store, *common, *rare), WAIT)
    where = Filter(author="bob", exclude=frozenset({"excluded"}))
    found = await live_index.search_words(Note(title="lemon soup"), 1, where, ["n0"])
    assert found.keys() == ({"n0", "rare"} if bound else {"n0"})
    assert found["n0"] == 1.0


async def test_words_of_all_notes_that_pass_are_scored_only_where_one_of_them_is_not_known(
    embedded_store: GatedStore, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, passing_ids = list[int](), IndexedNotes.passing_ids

    def recorded(notes: IndexedNotes, where: Filter, count: int, now: float) -> list[str]:
        calls.append(count)
        return passing_ids(notes, where, count, now)

    monkeypatch.setattr(IndexedNotes, "passing_ids", recorded)
    common = [stored_note(f"n{n}", "lemon soup", author="ann") for n in range(40)]
    rare = [stored_note(note_id, "lemon bread", author="bob") for note_id in ("rare", "other")]
    await live_index.wait_for(await put(embedded_store, *common, *rare), WAIT)
    query, where = Note(title="lemon soup"), Filter(author="bob")
    assert (await live_index.search_words(query, 1, where, ["rare", "other"])).keys() == {"rare", "other"}
    assert calls == []
    assert (await live_index.search_words(query, 1, where, ["rare"])).keys() == {"rare", "other"}
    assert calls == [2]


async def test_neighbours_by_words_follow_text_and_expiry(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    async def neighbours() -> tuple[list[str], list[str]]:
        """Ids of the neighbours by vector and by words."""
        query = Note(id="query", title="lemon soup")
        both = await asyncio.to_thread(live_index.find_neighbours, query, vector, 2)
        assert {neighbour.hashtags for neighbour in (*both.by_vector, *both.by_words)} == {("tag",)}
        return [neighbour.id for neighbour in both.by_vector], [neighbour.id for neighbour in both.by_words]

    def titled(note_id: str, title: str, hashtags: tuple[str, ...] = ("tag",)) -> StoredNote:
        stored = stored_note(note_id, "else", hashtags=hashtags)
        return replace(stored, note=replace(stored.note, title=title))

    vector = stored_note("n0").vector
    assert vector is not None
    by_vector = [stored_note(f"v{n}", "n0", hashtags=("tag",)) for n in range(3)]
    by_words = [titled("both", "Lemon soup"), titled("query", "Lemon soup"), titled("bare", "lemon soup", ())]
    await live_index.wait_for(await put(embedded_store, *by_vector, *by_words, titled("one", "a soup")), WAIT)
    assert await neighbours() == (["v0", "v1"], ["both", "one"])
    await live_index.wait_for(await put(embedded_store, titled("both", "bread"), titled("bare", "lemon soup")), WAIT)
    assert await neighbours() == (["v0", "v1"], ["bare", "one"])
    await live_index.wait_for(await delete(embedded_store, "bare"), WAIT)
    assert await neighbours() == (["v0", "v1"], ["one"])
    passing = titled("one", "a soup")
    passing = replace(passing, note=replace(passing.note, expires_at=clock() + 60))
    await live_index.wait_for(await put(embedded_store, passing), WAIT)
    assert await neighbours() == (["v0", "v1"], ["one"])
    clock.offset += 61  # it is hidden at once, before its row is removed
    assert await neighbours() == (["v0", "v1"], [])


async def test_vocabulary_hashtag_stays_while_a_note_has_it(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    def known() -> set[str]:
        return {tag for tag in ("soup", "bread") if live_index.vocabulary.holds(list(map(ord, tag)))}

    first = stored_note("a", hashtags=("soup", "bread"), expires_at=clock() + 60)
    await live_index.wait_for(await put(embedded_store, first, stored_note("b", hashtags=("soup",))), WAIT)
    assert known() == {"soup", "bread"}
    clock.offset += 61
    await eventually(lambda: known() == {"soup"})
    await live_index.wait_for(await delete(embedded_store, "b"), WAIT)
    assert known() == set()


async def test_wait_for_write_then_search_finds_it(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    for note in notes(50):
        await live_index.wait_for(await put(embedded_store, note), WAIT)
        assert note.note.id in await find_ids(live_index)


async def test_wait_for_while_log_is_held_ends_after_release(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    await embedded_store.hold()
    position = await put(embedded_store, stored_note())
    waiting = asyncio.create_task(live_index.wait_for(position, WAIT))
    with pytest.raises(IndexBehind):
        await live_index.wait_for(position, 0.05)
    assert not waiting.done()
    embedded_store.release()
    await waiting
    assert await find_ids(live_index) == {"a"}


async def test_wait_for_future_position_raises_index_behind(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    position = await put(embedded_store, stored_note())
    await live_index.wait_for(position, WAIT)
    with pytest.raises(IndexBehind, match="99999999999999-0"):
        await live_index.wait_for("99999999999999-0", 0.05)
    await live_index.wait_for(position, 0.05)


async def test_stop_leaves_no_task_behind(embedded_store: GatedStore, clock: Clock) -> None:
    before = asyncio.all_tasks()
    async with following(embedded_store, clock):
        assert "follow-log" in {task.get_name() for task in asyncio.all_tasks() - before}
    assert asyncio.all_tasks() <= before


class SwallowingStore(GatedStore):
    """A store whose first cancelled read returns as if it had not been cancelled. That can happen with redis-py, which
    sends with asyncio.wait_for: before Python 3.12 that drops a cancellation that comes at the end of the send."""

    swallowed = False

    async def read_log(self, after: str, count: int, block_seconds: float) -> tuple[list[LogEntry], LogBounds]:
        try:
            return await super().read_log(after, count, block_seconds)
        except asyncio.CancelledError:
            if self.swallowed:
                raise
            self.swallowed = True
            return [], LogBounds(None, ORIGIN, cut=False)


async def test_stop_when_cancellation_is_swallowed_still_ends(
    embedded: EmbeddedRedis, embedded_admin: redis.Redis, clock: Clock
) -> None:
    store = SwallowingStore(embedded.url, clock=clock)
    try:
        async with following(store, clock) as index:
            await eventually(lambda: embedded_admin.info("clients")["blocked_clients"] == 1)
            async with asyncio.timeout(WAIT):
                await index.stop()
        assert store.swallowed
    finally:
        await store.close()
