"""LogFollower on a real store: the index has what the store has, whatever happens to the store and its log."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import redis

from service.errors import IndexBehind
from service.filters import Filter
from service.index.live import LiveIndex
from service.index.state import IndexedNotes
from service.interfaces import Clock
from service.records import LogEntry, StoredNote, Unreadable, Write, position_key, position_seconds
from service.store.embedded_redis import EmbeddedRedis
from service.store.redis_keys import LOG, NOTE
from service.store.redis_store import RedisNoteStore
from tests.service.conftest import GatedStore, eventually, following, stored_note
from tests.service.damage import DAMAGES
from tests.service.index.live_steps import ANY, WAIT, delete, find_ids, ids_of, notes, put

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_follower_writes_and_deletes_are_applied(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    await live_index.wait_for(await put(embedded_store, *notes(3)), WAIT)
    assert await find_ids(live_index) == {"n0", "n1", "n2"}
    await put(embedded_store, stored_note("n0", author="ann"))
    await live_index.wait_for(await delete(embedded_store, "n1"), WAIT)
    assert await find_ids(live_index) == {"n0", "n2"}
    assert await find_ids(live_index, Filter(author="ann")) == {"n0"}
    np.testing.assert_array_equal(live_index.vector("n0"), stored_note("n0").vector)
    assert live_index.vector("n1") is None


async def test_follower_vector_not_finite_is_left_out(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    broken = replace(stored_note("broken"), vector=np.full(stored_note().vector.shape, np.nan, np.float32))
    await live_index.wait_for(await put(embedded_store, broken, *notes(2)), WAIT)
    assert await find_ids(live_index) == {"n0", "n1"}


async def test_follower_unreadable_notes_in_log_are_left_out(
    embedded: EmbeddedRedis, embedded_store: GatedStore, live_index: LiveIndex, embedded_admin: redis.Redis,
    clock: Clock,
) -> None:  # fmt: skip
    await live_index.wait_for(await put(embedded_store, *map(stored_note, DAMAGES), stored_note("good")), WAIT)
    await embedded_store.hold()
    other = RedisNoteStore(embedded.url, clock=clock)
    await other.put([Write(stored_note(note_id, title="newer")) for note_id in DAMAGES])
    for note_id, damage in DAMAGES.items():
        damage(embedded_admin, note_id)
    embedded_admin.xadd(LOG, {"op": "put"})
    embedded_store.release()
    await live_index.wait_for(await put(embedded_store, stored_note("later")), WAIT)
    assert await find_ids(live_index) == {"good", "later"}
    assert sorted(embedded_store.unreadable) == sorted(DAMAGES)
    assert live_index.status().ready
    await other.put([Write(stored_note(note_id)) for note_id in DAMAGES])
    await eventually(lambda: not embedded_store.unreadable)
    await other.close()


async def test_rebuild_equals_index_that_followed(
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
            assert await find_ids(built, where) == await find_ids(live_index, where) != set()
        for note_id in await find_ids(built):
            np.testing.assert_array_equal(built.vector(note_id), live_index.vector(note_id))


async def test_rebuild_beside_writes_misses_none(embedded_store: GatedStore, clock: Clock) -> None:
    await put(embedded_store, *notes(1000))

    async def change() -> str:
        for note in notes(100, 1000):
            await put(embedded_store, note)
            position = await delete(embedded_store, f"n{int(note.note.id[1:]) - 1000}")
        return position

    changing = asyncio.create_task(change())
    async with following(embedded_store, clock) as index:
        await index.wait_for(await changing, WAIT)
        assert await find_ids(index) == ids_of(notes(1000, 100))


async def test_followers_of_one_store_converge(embedded_store: GatedStore, live_index: LiveIndex, clock: Clock) -> None:
    async with following(embedded_store, clock) as other:
        positions = await asyncio.gather(*(put(embedded_store, note) for note in notes(100)))
        positions += [await delete(embedded_store, f"n{n}") for n in range(20)]
        for index in (live_index, other):
            await index.wait_for(positions[-1], WAIT)
            assert await find_ids(index) == ids_of(notes(80, 20))


async def test_follower_other_space_is_left_out_and_counted(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    alien = stored_note("alien", space="another", vector=np.ones(3, np.float32))
    await live_index.wait_for(await put(embedded_store, alien, stored_note("ours")), WAIT)
    async with following(embedded_store, clock) as built:
        for index in (live_index, built):
            assert await find_ids(index) == {"ours"}
            assert index.status().other_space == 1


async def test_follower_note_changing_space_is_moved(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    other = stored_note("a", space="another")
    for note, expected in [(stored_note("a"), ({"a"}, 0)), (other, (set(), 1)), (stored_note("a"), ({"a"}, 0))]:
        await live_index.wait_for(await put(embedded_store, note), WAIT)
        assert (await find_ids(live_index), live_index.status().other_space) == expected
    await put(embedded_store, other)
    await live_index.wait_for(await delete(embedded_store, "a"), WAIT)
    assert live_index.status().other_space == 0


@pytest.mark.parametrize("kept", [2, 1, 0], ids="{} entries left".format)
@pytest.mark.parametrize("before", [4, 0], ids="{} notes before".format)
async def test_follower_log_cut_behind_index_loses_nothing(
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
    await live_index.wait_for(position, WAIT)
    assert await find_ids(live_index) == ids_of(notes(before + 5)) - ({"n0"} if before else set())
    await live_index.wait_for(await put(embedded_store, stored_note("later")), WAIT)
    assert "later" in await find_ids(live_index)
    assert live_index.status().lost == ""


async def test_index_that_is_rebuilt_after_a_gap_of_the_log_tells_since_when_it_is_behind(
    embedded_store: GatedStore,
    live_index: LiveIndex,
    embedded_admin: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scan, behind = embedded_store.scan, list[float]()

    def recording() -> AsyncIterator[list[StoredNote | Unreadable]]:
        behind.append(live_index.status().behind_since)
        return scan()

    reached = await put(embedded_store, stored_note("a"))
    await live_index.wait_for(reached, WAIT)
    monkeypatch.setattr(embedded_store, "scan", recording)
    await embedded_store.hold()
    position = await put(embedded_store, *notes(5))
    embedded_admin.xtrim(LOG, maxlen=1, approximate=False)
    embedded_store.release()
    await live_index.wait_for(position, WAIT)
    assert behind == [position_seconds(reached)]
    await eventually(lambda: live_index.status().behind_since == 0.0)


async def test_follower_of_a_log_that_lost_its_end_and_went_on_tells_of_lost_writes(
    embedded_store: GatedStore, live_index: LiveIndex, embedded_admin: redis.Redis
) -> None:
    await put(embedded_store, stored_note("kept"))
    lost = await put(embedded_store, stored_note("lost"))
    await live_index.wait_for(lost, WAIT)
    assert live_index.status().lost == ""
    await embedded_store.hold()
    embedded_admin.xdel(LOG, lost)  # as after a failover to a server that never had the entry
    embedded_admin.delete(f"{NOTE}lost")
    position = await put(embedded_store, stored_note("new"))
    embedded_store.release()
    await live_index.wait_for(position, WAIT)
    assert await find_ids(live_index) == {"kept", "new"}
    assert lost in live_index.status().lost


async def test_follower_flushed_store_empties_index(
    embedded_store: GatedStore, live_index: LiveIndex, embedded_admin: redis.Redis
) -> None:
    alien = stored_note("alien", space="another")
    await live_index.wait_for(await put(embedded_store, *notes(5), alien), WAIT)
    embedded_admin.flushall()
    await eventually(lambda: live_index.status().vectors == live_index.status().other_space == 0)
    await live_index.wait_for(await put(embedded_store, stored_note("new")), WAIT)
    assert await find_ids(live_index) == {"new"}


async def test_follower_store_flushed_and_refilled_is_followed(
    embedded_store: GatedStore, live_index: LiveIndex, embedded_admin: redis.Redis
) -> None:
    await live_index.wait_for(await put(embedded_store, *notes(5)), WAIT)
    await embedded_store.hold()
    embedded_admin.flushall()
    position = await put(embedded_store, *notes(3, 100))
    embedded_store.release()
    await live_index.wait_for(position, WAIT)
    await eventually(lambda: live_index.status().vectors == 3)
    assert await find_ids(live_index) == ids_of(notes(3, 100))


def kill(server: EmbeddedRedis) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)


async def test_follower_killed_store_back_resumes(
    embedded: EmbeddedRedis, embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    await live_index.wait_for(await put(embedded_store, *notes(3)), WAIT)
    kill(embedded)
    await eventually(lambda: "unavailable" in live_index.status().detail)
    assert await find_ids(live_index) == {"n0", "n1", "n2"}
    embedded.start()
    await live_index.wait_for(await put(embedded_store, *notes(3, 3)), WAIT)
    assert await find_ids(live_index) == ids_of(notes(6))
    await eventually(lambda: live_index.status().ready and live_index.status().detail == "follows the log")


async def test_follower_store_unavailable_is_not_ready(
    embedded: EmbeddedRedis, embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    assert live_index.status().ready
    kill(embedded)
    await eventually(lambda: "unavailable" in live_index.status().detail)
    assert not live_index.status().ready
    embedded.start()
    await eventually(lambda: live_index.status().ready)


async def test_follower_started_without_store_builds_when_it_comes(
    embedded: EmbeddedRedis, embedded_store: GatedStore, clock: Clock
) -> None:
    await put(embedded_store, *notes(3))
    embedded.stop()
    async with following(embedded_store, clock) as index:
        assert not index.status().ready
        with pytest.raises(IndexBehind):
            await find_ids(index)
        embedded.start()
        await eventually(lambda: index.status().ready)
        assert await find_ids(index) == {"n0", "n1", "n2"}


async def test_follower_failure_names_no_note_in_its_state(
    embedded_store: GatedStore, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(notes: IndexedNotes, changed: object) -> None:
        raise KeyError("n0")

    with monkeypatch.context() as patch:
        patch.setattr(IndexedNotes, "update", fail)
        await put(embedded_store, *notes(3))
        await eventually(lambda: "rebuilding after a failure" in live_index.status().detail)
        assert "n0" not in live_index.status().detail
    await eventually(lambda: live_index.status().ready)
    assert await find_ids(live_index) == {"n0", "n1", "n2"}


async def test_follower_expired_rows_are_hidden_then_removed(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    short = stored_note("short", expires_at=clock() + 1000)
    await live_index.wait_for(await put(embedded_store, short, stored_note("long")), WAIT)
    assert await find_ids(live_index) == {"short", "long"}
    clock.offset = 1001
    assert await find_ids(live_index) == {"long"}
    await eventually(lambda: live_index.status().vectors == 1)


async def test_follower_clock_jumping_back_keeps_expired_out(
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
    assert await find_ids(live_index) == {"long", "late"}
    assert live_index.status().ready
    brief = stored_note("brief", expires_at=clock() + 1000)
    await live_index.wait_for(await put(embedded_store, brief), WAIT)
    clock.offset += 1001
    await eventually(lambda: live_index.status().vectors == 2)


async def test_follower_note_written_expired_is_not_added(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    await put(embedded_store, stored_note("a"))
    await live_index.wait_for(await put(embedded_store, stored_note("a", expires_at=clock() - 1)), WAIT)
    assert await find_ids(live_index) == set()
    assert live_index.status().vectors == 0


async def test_index_that_has_not_applied_a_change_tells_since_when(
    embedded_store: GatedStore, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert live_index.status().behind_since == 0.0
    gate, get_logged = asyncio.Event(), embedded_store.get_logged

    async def get_later(entries: Sequence[LogEntry]) -> dict[str, StoredNote | Unreadable | None]:
        await gate.wait()
        return await get_logged(entries)

    monkeypatch.setattr(embedded_store, "get_logged", get_later)
    first = await put(embedded_store, stored_note("a"))
    await eventually(lambda: live_index.status().behind_since == position_seconds(first))
    last = await put(embedded_store, stored_note("b"))
    gate.set()
    await live_index.wait_for(last, WAIT)
    await eventually(lambda: live_index.status().behind_since == 0.0)
