"""LiveIndex on a real store: it has what the store has, whatever happens to the store and its log."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import redis

from model.generation import Neighbours
from model.note import Note
from service.errors import IndexBehind
from service.filters import Filter
from service.index.live import LiveIndex
from service.index.segmented import MergeJob, SegmentedIndex
from service.interfaces import Clock
from service.records import ORIGIN, Hit, LogBounds, LogEntry, StoredNote, Vector, Write, position_key
from service.store.embedded_redis import EmbeddedRedis
from service.store.redis_store import LOG, RedisNoteStore
from tests.service.conftest import GatedStore, eventually, following, stored_note
from tests.service.damage import DAMAGES, Damage

pytestmark = pytest.mark.anyio

WAIT = 10.0
ANY = Filter()


async def put(store: GatedStore, *notes: StoredNote) -> str:
    """The position of the last write."""
    (*_, last) = await store.put([Write(note) for note in notes])
    assert last is not None
    return last.position


async def delete(store: GatedStore, note_id: str) -> str:
    position = await store.delete(note_id)
    assert position is not None
    return position


async def found(index: LiveIndex, where: Filter = ANY) -> set[str]:
    vector = stored_note().vector
    assert vector is not None
    return {hit.id for hit in (await index.search(vector, 10_000, where))}


def notes(count: int, first: int = 0) -> list[StoredNote]:
    return [stored_note(f"n{n}") for n in range(first, first + count)]


def ids(some: Sequence[StoredNote]) -> set[str]:
    return {note.note.id for note in some}


async def test_it_follows_writes_and_deletes(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    await live_index.wait_for(await put(embedded_store, *notes(3)), WAIT)
    assert await found(live_index) == {"n0", "n1", "n2"}
    await put(embedded_store, stored_note("n0", author="ann"))
    await live_index.wait_for(await delete(embedded_store, "n1"), WAIT)
    assert await found(live_index) == {"n0", "n2"}
    assert await found(live_index, Filter(author="ann")) == {"n0"}
    np.testing.assert_array_equal(await live_index.vector("n0"), stored_note("n0").vector)
    assert await live_index.vector("n1") is None


async def test_it_seals_and_merges_what_is_written_and_what_is_there_at_the_start(
    embedded_store: GatedStore, clock: Clock
) -> None:
    async with following(embedded_store, clock, head_rows=2) as index:
        await index.wait_for(await put(embedded_store, *notes(41)), WAIT)
        await index.wait_for(await delete(embedded_store, "n0"), WAIT)
        await eventually(lambda: index.status().segments < 8)
        assert await found(index) == ids(notes(40, 1))
        np.testing.assert_array_equal(await index.vector("n7"), stored_note("n7").vector)
    async with following(embedded_store, clock, head_rows=2) as index:
        assert index.status().segments < 8
        assert await found(index) == ids(notes(40, 1))


async def test_a_job_that_fails_costs_no_answer_and_is_tried_again(
    embedded_store: GatedStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: MergeJob) -> None:
        raise MemoryError

    async with following(embedded_store, clock, head_rows=2) as index:
        with monkeypatch.context() as patch:
            patch.setattr(MergeJob, "run", fail)
            await index.wait_for(await put(embedded_store, *notes(20)), WAIT)
            assert await found(index) == ids(notes(20))
            assert index.status().segments == 10
        await index.wait_for(await put(embedded_store, *notes(1, 20)), WAIT)
        await eventually(lambda: index.status().segments < 8)
        assert await found(index) == ids(notes(21))


async def test_a_vector_that_is_none_is_left_out_and_the_rest_is_found(
    embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    broken = replace(stored_note("broken"), vector=np.full(stored_note().vector.shape, np.nan, np.float32))
    await live_index.wait_for(await put(embedded_store, broken, *notes(2)), WAIT)
    assert await found(live_index) == {"n0", "n1"}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_log_that_tells_of_an_unreadable_note_is_followed(
    embedded: EmbeddedRedis, embedded_store: GatedStore, live_index: LiveIndex, embedded_admin: redis.Redis,
    clock: Clock, damage: Damage,
) -> None:  # fmt: skip
    await live_index.wait_for(await put(embedded_store, stored_note("bad"), stored_note("good")), WAIT)
    await embedded_store.hold()
    other = RedisNoteStore(embedded.url, clock=clock)
    await other.put([Write(stored_note("bad", title="newer"))])
    damage(embedded_admin, "bad")
    embedded_admin.xadd(LOG, {"op": "put"})
    embedded_store.release()
    await live_index.wait_for(await put(embedded_store, stored_note("later")), WAIT)
    assert await found(live_index) == {"good", "later"}
    assert list(embedded_store.unreadable) == ["bad"]
    assert live_index.status().ready
    await other.put([Write(stored_note("bad"))])
    await eventually(lambda: not embedded_store.unreadable)
    await other.close()


async def test_what_expires_is_squeezed_out_although_nothing_is_written(
    embedded_store: GatedStore, clock: Clock
) -> None:
    async with following(embedded_store, clock, head_rows=2) as index:
        passing = [stored_note(f"p{n}", expires_at=clock() + 1000) for n in range(40)]
        await index.wait_for(await put(embedded_store, *passing, *notes(3)), WAIT)
        await eventually(lambda: index.status().segments < 8)
        clock.offset += 2000
        await eventually(lambda: index.status().vectors == 3 and index.status().tombstones <= 2)


async def test_the_nearest_notes_with_hashtags_are_found_among_many_without(
    embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    vector = stored_note("n0").vector
    assert vector is not None
    bare = [stored_note(f"n{n}", "n0") for n in range(30)]
    tagged = stored_note("tagged", "else", hashtags=("soup",))
    await live_index.wait_for(await put(embedded_store, *bare, tagged), WAIT)
    near = await asyncio.to_thread(live_index.find_neighbours, Note(), vector, 2)
    assert [(of.id, of.hashtags) for of in near.by_vector] == [("tagged", ("soup",))]
    await live_index.wait_for(await delete(embedded_store, "tagged"), WAIT)
    assert await asyncio.to_thread(live_index.find_neighbours, Note(), vector, 2) == Neighbours([], [])


async def test_notes_are_near_by_their_words_too_for_as_long_as_they_say_them(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    async def near() -> tuple[list[str], list[str]]:
        asked = Note(id="asked", title="lemon soup")
        found = await asyncio.to_thread(live_index.find_neighbours, asked, vector, 2)
        assert {of.hashtags for of in (*found.by_vector, *found.by_words)} == {("tag",)}
        return [of.id for of in found.by_vector], [of.id for of in found.by_words]

    def said(note_id: str, title: str, hashtags: tuple[str, ...] = ("tag",)) -> StoredNote:
        stored = stored_note(note_id, "else", hashtags=hashtags)
        return replace(stored, note=replace(stored.note, title=title))

    vector = stored_note("n0").vector
    assert vector is not None
    by_vector = [stored_note(f"v{n}", "n0", hashtags=("tag",)) for n in range(3)]
    by_words = [said("both", "Lemon soup"), said("asked", "Lemon soup"), said("bare", "lemon soup", ())]
    await live_index.wait_for(await put(embedded_store, *by_vector, *by_words, said("one", "a soup")), WAIT)
    assert await near() == (["v0", "v1"], ["both", "one"])
    await live_index.wait_for(await put(embedded_store, said("both", "bread"), said("bare", "lemon soup")), WAIT)
    assert await near() == (["v0", "v1"], ["bare", "one"])
    await live_index.wait_for(await delete(embedded_store, "bare"), WAIT)
    assert await near() == (["v0", "v1"], ["one"])
    passing = said("one", "a soup")
    passing = replace(passing, note=replace(passing.note, expires_at=clock() + 60))
    await live_index.wait_for(await put(embedded_store, passing), WAIT)
    assert await near() == (["v0", "v1"], ["one"])
    clock.offset += 61  # at once, before it is removed
    assert await near() == (["v0", "v1"], [])


async def test_a_hashtag_is_known_for_as_long_as_a_note_has_it(
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


async def test_a_write_that_was_waited_for_is_found(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    for note in notes(50):
        await live_index.wait_for(await put(embedded_store, note), WAIT)
        assert note.note.id in await found(live_index)


async def test_a_wait_ends_no_sooner_than_the_note_is_found(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    await embedded_store.hold()
    position = await put(embedded_store, stored_note())
    waiting = asyncio.create_task(live_index.wait_for(position, WAIT))
    with pytest.raises(IndexBehind):
        await live_index.wait_for(position, 0.05)
    assert not waiting.done()
    embedded_store.release()
    await waiting
    assert await found(live_index) == {"a"}


async def test_a_position_of_the_future_is_not_reached(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    position = await put(embedded_store, stored_note())
    await live_index.wait_for(position, WAIT)
    with pytest.raises(IndexBehind, match="99999999999999-0"):
        await live_index.wait_for("99999999999999-0", 0.05)
    await live_index.wait_for(position, 0.05)


async def test_an_index_built_at_start_equals_one_that_followed(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    chance = random.Random(7)
    position = await put(embedded_store, stored_note("n0"))
    for turn in range(100):
        note_id = f"n{chance.randrange(25)}"
        removed = await embedded_store.delete(note_id) if chance.random() < 0.3 else None
        position = removed or await put(embedded_store, stored_note(note_id, f"turn {turn}", author=f"{turn % 3}"))
    await live_index.wait_for(position, WAIT)
    async with following(embedded_store, clock) as built:
        assert built.position == live_index.position == position
        for where in (ANY, Filter(author="1")):
            assert await found(built, where) == await found(live_index, where) != set()
        for note_id in await found(built):
            np.testing.assert_array_equal(await built.vector(note_id), await live_index.vector(note_id))


async def test_writes_during_the_build_are_not_missed(embedded_store: GatedStore, clock: Clock) -> None:
    await put(embedded_store, *notes(1000))

    async def change() -> str:
        for note in notes(100, 1000):
            await put(embedded_store, note)
            position = await delete(embedded_store, f"n{int(note.note.id[1:]) - 1000}")
        return position

    changing = asyncio.create_task(change())
    async with following(embedded_store, clock) as index:
        await index.wait_for(await changing, WAIT)
        assert await found(index) == ids(notes(1000, 100))


async def test_two_indexes_on_one_store_converge(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    async with following(embedded_store, clock) as other:
        positions = await asyncio.gather(*(put(embedded_store, note) for note in notes(100)))
        positions += [await delete(embedded_store, f"n{n}") for n in range(20)]
        for index in (live_index, other):
            await index.wait_for(positions[-1], WAIT)
            assert await found(index) == ids(notes(80, 20))


async def test_notes_of_another_space_are_left_out_and_counted(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    alien = stored_note("alien", space="another", vector=np.ones(3, np.float32))
    await live_index.wait_for(await put(embedded_store, alien, stored_note("ours")), WAIT)
    async with following(embedded_store, clock) as built:
        for index in (live_index, built):
            assert await found(index) == {"ours"}
            assert index.status().other_space == 1


async def test_a_note_that_changes_its_space_changes_sides(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    other = stored_note("a", space="another")
    for note, expected in [(stored_note("a"), ({"a"}, 0)), (other, (set(), 1)), (stored_note("a"), ({"a"}, 0))]:
        await live_index.wait_for(await put(embedded_store, note), WAIT)
        assert (await found(live_index), live_index.status().other_space) == expected
    await put(embedded_store, other)
    await live_index.wait_for(await delete(embedded_store, "a"), WAIT)
    assert live_index.status().other_space == 0


@pytest.mark.parametrize("kept", [2, 1, 0], ids="{} entries left".format)
@pytest.mark.parametrize("before", [4, 0], ids="{} notes before".format)
async def test_a_log_cut_behind_the_index_loses_nothing(
    embedded_store: GatedStore, live_index: LiveIndex, embedded_admin: redis.Redis, before: int, kept: int
) -> None:
    for note in notes(before):
        await live_index.wait_for(await put(embedded_store, note), WAIT)
    await embedded_store.hold()
    position = await put(embedded_store, *notes(5, before))
    if before:
        position = await delete(embedded_store, "n0")
    embedded_admin.xtrim(LOG, maxlen=kept, approximate=False)
    embedded_store.release()
    await live_index.wait_for(position, 3)
    assert await found(live_index) == ids(notes(before + 5)) - ({"n0"} if before else set())
    await live_index.wait_for(await put(embedded_store, stored_note("later")), WAIT)
    assert "later" in await found(live_index)


async def test_a_flushed_store_empties_the_index(
    embedded_store: GatedStore, live_index: LiveIndex, embedded_admin: redis.Redis
) -> None:
    alien = stored_note("alien", space="another")
    await live_index.wait_for(await put(embedded_store, *notes(5), alien), WAIT)
    embedded_admin.flushall()
    await eventually(lambda: live_index.status().vectors == live_index.status().other_space == 0)
    await live_index.wait_for(await put(embedded_store, stored_note("new")), WAIT)
    assert await found(live_index) == {"new"}


async def test_a_store_flushed_and_filled_anew_is_followed(
    embedded_store: GatedStore, live_index: LiveIndex, embedded_admin: redis.Redis
) -> None:
    await live_index.wait_for(await put(embedded_store, *notes(5)), WAIT)
    await embedded_store.hold()
    embedded_admin.flushall()
    position = await put(embedded_store, *notes(3, 100))
    embedded_store.release()
    await live_index.wait_for(position, WAIT)
    await eventually(lambda: live_index.status().vectors == 3)
    assert await found(live_index) == ids(notes(3, 100))


def kill(server: EmbeddedRedis) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)


async def test_it_goes_on_when_a_killed_store_is_back(
    embedded: EmbeddedRedis, embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    await live_index.wait_for(await put(embedded_store, *notes(3)), WAIT)
    kill(embedded)
    await eventually(lambda: "does not answer" in live_index.status().detail)
    assert await found(live_index) == {"n0", "n1", "n2"}
    embedded.start()
    await live_index.wait_for(await put(embedded_store, *notes(3, 3)), WAIT)
    assert await found(live_index) == ids(notes(6))
    await eventually(lambda: live_index.status().ready and live_index.status().detail == "follows the log")


async def test_it_is_not_ready_while_it_cannot_follow(
    embedded: EmbeddedRedis, embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    assert live_index.status().ready
    kill(embedded)
    await eventually(lambda: "does not answer" in live_index.status().detail)
    assert not live_index.status().ready
    embedded.start()
    await eventually(lambda: live_index.status().ready)


async def test_started_without_a_store_it_is_built_when_the_store_comes(
    embedded: EmbeddedRedis, embedded_store: GatedStore, clock: Clock
) -> None:
    await put(embedded_store, *notes(3))
    embedded.stop()
    async with following(embedded_store, clock) as index:
        assert not index.status().ready
        with pytest.raises(IndexBehind):
            await found(index)
        embedded.start()
        await eventually(lambda: index.status().ready)
        assert await found(index) == {"n0", "n1", "n2"}


async def test_expired_rows_are_not_found_and_leave(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    short = stored_note("short", expires_at=clock() + 1000)
    await live_index.wait_for(await put(embedded_store, short, stored_note("long")), WAIT)
    assert await found(live_index) == {"short", "long"}
    clock.offset = 1001
    assert await found(live_index) == {"long"}
    await eventually(lambda: live_index.status().vectors == 1)


async def test_when_the_clock_jumps_back_writes_are_found_and_what_has_expired_is_not(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    short = stored_note("short", expires_at=clock() + 1000)
    await live_index.wait_for(await put(embedded_store, short, stored_note("long")), WAIT)
    clock.offset = 1001
    await eventually(lambda: live_index.status().vectors == 1)
    clock.offset = -100_000
    before = live_index.position
    await live_index.wait_for(after := await put(embedded_store, stored_note("late")), WAIT)
    assert position_key(after) > position_key(before)
    assert await found(live_index) == {"long", "late"}
    assert live_index.status().ready


async def test_a_note_written_already_expired_is_not_taken_in(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    await put(embedded_store, stored_note("a"))
    await live_index.wait_for(await put(embedded_store, stored_note("a", expires_at=clock() - 1)), WAIT)
    assert await found(live_index) == set()
    assert live_index.status().vectors == 0


async def test_stopped_it_leaves_no_task_behind(embedded_store: GatedStore, clock: Clock) -> None:
    async with following(embedded_store, clock):
        assert "follow-log" in {task.get_name() for task in asyncio.all_tasks()}
    assert "follow-log" not in {task.get_name() for task in asyncio.all_tasks()}


class SwallowingStore(GatedStore):
    """Its first cancelled read returns as if nothing had been said, as redis-py's may: before Python 3.12,
    asyncio.wait_for, with which it sends, drops a cancellation that meets the end of the send."""

    swallowed = False

    async def read_log(self, after: str, count: int, block_seconds: float) -> tuple[list[LogEntry], LogBounds]:
        try:
            return await super().read_log(after, count, block_seconds)
        except asyncio.CancelledError:
            if self.swallowed:
                raise
            self.swallowed = True
            return [], LogBounds(None, ORIGIN, cut=False)


async def test_stop_ends_it_though_the_redis_client_swallows_the_cancellation(
    embedded: EmbeddedRedis, embedded_admin: redis.Redis, clock: Clock
) -> None:
    store = SwallowingStore(embedded.url, clock=clock)
    try:
        async with following(store, clock) as index:
            await eventually(lambda: embedded_admin.info("clients")["blocked_clients"] == 1)
            async with asyncio.timeout(5):
                await index.stop()
        assert store.swallowed
    finally:
        await store.close()


async def test_of_searches_now_and_then_one_is_repeated_exactly_and_damage_is_seen(
    embedded_store: GatedStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.index.recall.SAMPLE_SECONDS", 0.0)
    async with following(embedded_store, clock, head_rows=2) as index:
        await index.wait_for(await put(embedded_store, *notes(20)), WAIT)
        assert math.isnan(index.status().recall_sampled)
        await found(index)
        await eventually(lambda: index.status().recall_sampled == 1.0)
        whole = SegmentedIndex.search

        def damaged(index: SegmentedIndex, vector: Vector, k: int, where: Filter, now: float) -> list[Hit]:
            of = whole(index, vector, k, where, now)
            return of if where.exact else of[1:]

        monkeypatch.setattr(SegmentedIndex, "search", damaged)
        await found(index)
        await eventually(lambda: index.status().recall_sampled == (1.0 + 19 / 20) / 2)
