"""NeighbourCache on a real store and index: a cached list equals what a search would find, or is dropped."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from service.filters import Filter
from service.index.live import LiveIndex
from service.interfaces import Clock
from service.records import Hit, StoredNote, Vector, Write
from service.search import neighbour_cache
from service.search.neighbour_cache import (
    CHANGE_BYTES,
    CHANGES,
    MIN_CHANGES,
    NeighbourCache,
    NeighbourList,
    RecentChanges,
)
from service.search.shared_lru import SharedLru
from service.telemetry import Telemetry
from tests.service.conftest import DIMENSION, GatedStore, stored_note

pytestmark = pytest.mark.anyio
PLAIN = Filter()


class Cache:
    """A NeighbourCache with lists of three notes, and counts of the lists from memory and from the index."""

    def __init__(self, store: GatedStore, index: LiveIndex, max_bytes: int = 2**20) -> None:
        self.store, self.index = store, index
        self.telemetry = Telemetry()
        self.lists = SharedLru[NeighbourList | RecentChanges](max_bytes)
        self.cached = NeighbourCache(index, self.lists, self.telemetry)

    async def put(self, **vectors: Vector) -> None:
        """Write notes with these vectors, and wait until they can be found."""
        written = await self.store.put([Write(stored_note(name, vector=vector)) for name, vector in vectors.items()])
        assert written[-1]
        await self.index.wait_for(written[-1].position, 5)

    async def put_note(self, note: StoredNote) -> None:
        (written,) = await self.store.put([Write(note)])
        assert written
        await self.index.wait_for(written.position, 5)

    async def remove(self, note_id: str) -> None:
        position = await self.store.delete(note_id)
        assert position
        await self.index.wait_for(position, 5)

    async def ids(self, note_id: str = "n0", where: Filter = PLAIN) -> list[str] | None:
        hits = await self.cached.search(note_id, 3, where)
        return None if hits is None else [hit.id for hit in hits]

    def taken_from(self, source: str) -> float:
        value = self.telemetry.registry.get_sample_value("notellm_neighbour_lists_total", {"source": source})
        assert value is not None
        return value


@pytest.fixture
async def cache(embedded_store: GatedStore, live_index: LiveIndex) -> Cache:
    """A Cache of the notes n0 to n5, each a tenth of a radian farther from n0 than the one before."""
    made = Cache(embedded_store, live_index)
    await made.put(**{f"n{number}": at_angle(number / 10) for number in range(6)})
    return made


def at_angle(radians: float) -> Vector:
    """Return the unit vector at an angle to the first axis."""
    vector = np.zeros(DIMENSION, np.float32)
    vector[:2] = np.cos(radians), np.sin(radians)
    return vector


async def test_list_is_searched_once_while_nothing_changes(cache: Cache) -> None:
    for _ in range(3):
        assert await cache.ids() == ["n1", "n2", "n3"]
    assert (cache.taken_from("index"), cache.taken_from("memory")) == (1, 2)


@pytest.mark.parametrize(
    ("where", "found"), [(Filter(author="nobody"), []), (Filter(exclude=frozenset({"n1"})), ["n2", "n3", "n4"])]
)
async def test_list_with_conditions_is_searched_each_time(cache: Cache, where: Filter, found: Sequence[str]) -> None:
    for _ in range(2):
        assert await cache.ids(where=where) == found
    assert (await cache.ids(), cache.lists.count(0)) == (["n1", "n2", "n3"], 1)
    assert cache.taken_from("memory") == 0


async def test_changes_that_are_farther_than_a_list_leave_it_in_memory(cache: Cache) -> None:
    assert await cache.ids() == ["n1", "n2", "n3"]
    await cache.put(new=at_angle(0.45), n5=at_angle(0.6))
    await cache.remove("n4")
    assert await cache.ids() == ["n1", "n2", "n3"]
    assert cache.taken_from("memory") == 1


@pytest.mark.parametrize(("removed", "left"), [("n2", ["n1", "n3", "n4"]), ("n0", None)])
async def test_removed_note_is_in_no_list_and_has_none(cache: Cache, removed: str, left: Sequence[str] | None) -> None:
    assert await cache.ids() == ["n1", "n2", "n3"]
    await cache.remove(removed)
    assert await cache.ids() == left


@pytest.mark.parametrize(
    ("name", "radians", "found"),
    [
        ("new", 0.25, ["n1", "n2", "new"]),
        ("a_first", 0.3, ["n1", "n2", "a_first"]),
        ("n2", 3.0, ["n1", "n3", "n4"]),
        ("n0", 0.5, ["n5", "n4", "n3"]),
    ],
    ids=[
        "a note is nearer than the last",
        "it is as near, and first by its id",
        "one of the list moves away",
        "its own",
    ],
)
async def test_list_that_a_vector_makes_another_one_is_searched_again(
    cache: Cache, name: str, radians: float, found: Sequence[str]
) -> None:
    assert await cache.ids() == ["n1", "n2", "n3"]
    await cache.put(**{name: at_angle(radians)})
    assert await cache.ids() == found


async def test_list_with_fewer_notes_than_asked_for_takes_in_any_note(cache: Cache) -> None:
    for number in (2, 3, 4, 5):
        await cache.remove(f"n{number}")
    assert await cache.ids() == ["n1"]
    await cache.put(far=at_angle(3.1))
    assert await cache.ids() == ["n1", "far"]


async def test_lists_are_dropped_where_the_index_is_built_anew(cache: Cache) -> None:
    assert await cache.ids() == ["n1", "n2", "n3"]
    without_changes = cache.lists.used
    cache.cached.apply({"far": stored_note("far", vector=at_angle(3.0))})
    assert cache.lists.used >= without_changes + DIMENSION * 4  # the recorded changes take memory, too
    cache.cached.apply(None)
    assert cache.lists.used == 0
    assert await cache.ids() == ["n1", "n2", "n3"]
    assert cache.taken_from("index") == 2


async def test_change_during_a_search_is_compared_with_what_it_found(
    cache: Cache, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = live_index.search

    async def beside_a_change(vector: Vector, k: int, where: Filter, recall_k: int | None = None) -> list[Hit]:
        hits = await search(vector, k, where, recall_k)
        monkeypatch.undo()
        await cache.put(new=at_angle(0.05))
        return hits

    monkeypatch.setattr("service.index.live.MAX_ROWS_IN_LOOP", 0)  # nothing can come between a search in the event loop
    monkeypatch.setattr(live_index, "search", beside_a_change)
    assert await cache.ids() == ["n1", "n2", "n3"]
    assert await cache.ids() == ["new", "n1", "n2"]


async def test_note_that_keeps_its_vector_leaves_lists_in_memory(cache: Cache) -> None:
    assert await cache.ids() == ["n1", "n2", "n3"]
    await cache.put_note(stored_note("n1", vector=at_angle(0.1), author="another"))
    await cache.remove("n5")
    await cache.remove("n4")
    assert await cache.ids() == ["n1", "n2", "n3"]
    await cache.put_note(stored_note("n3", vector=at_angle(0.3), hashtags=("new",)))
    assert await cache.ids() == ["n1", "n2", "n3"]
    assert cache.taken_from("index") == 1


async def test_note_that_had_expired_and_is_written_again_comes_into_lists(cache: Cache, clock: Clock) -> None:
    soon = stored_note("n1", vector=at_angle(0.1), expires_at=clock() + 60)
    await cache.put_note(soon)
    clock.offset = 61.0
    assert await cache.ids() == ["n2", "n3", "n4"]
    assert cache.index.vector("n1") is not None  # its row is removed later
    await cache.put_note(replace(soon, note=replace(soon.note, expires_at=None)))
    assert await cache.ids() == ["n1", "n2", "n3"]


async def test_list_of_a_search_beside_which_all_lists_were_dropped_is_not_kept(
    cache: Cache, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = live_index.search

    async def beside_a_purge(vector: Vector, k: int, where: Filter, recall_k: int | None = None) -> list[Hit]:
        hits = await search(vector, k, where, recall_k)
        cache.cached.apply(None)
        return hits

    monkeypatch.setattr("service.index.live.MAX_ROWS_IN_LOOP", 0)
    monkeypatch.setattr(live_index, "search", beside_a_purge)
    assert await cache.ids() == ["n1", "n2", "n3"]
    assert cache.lists.used == 0


async def test_list_that_is_older_than_the_known_changes_is_searched_again(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbour_cache, "MAX_CHANGES", 2)
    assert await cache.ids() == ["n1", "n2", "n3"]
    for number in range(5):
        await cache.put(**{f"far{number}": at_angle(3.0)})
    assert await cache.ids() == ["n1", "n2", "n3"]
    assert cache.taken_from("index") == 2
    await cache.put(**{f"far{number}": at_angle(2.9) for number in range(5)})  # more changes than are remembered
    assert cache.lists.used == 0


async def test_no_list_is_kept_without_memory_for_it(embedded_store: GatedStore, live_index: LiveIndex) -> None:
    cache = Cache(embedded_store, live_index, max_bytes=0)
    await cache.put(n0=at_angle(0), n1=at_angle(0.1))
    for _ in range(2):
        assert await cache.ids() == ["n1"]
        await cache.put(n2=at_angle(3.0))
        await cache.remove("n2")
    assert (cache.lists.used, cache.taken_from("memory")) == (0, 0)


async def test_lists_of_a_hundred_tenants_are_kept_beside_changes(cache: Cache, live_index: LiveIndex) -> None:
    tenants = [NeighbourCache(live_index, cache.lists, cache.telemetry) for _ in range(100)]
    for _ in range(2):
        for tenant in tenants:
            hits = await tenant.search("n0", 3, PLAIN)
            assert hits is not None
            assert [hit.id for hit in hits] == ["n1", "n2", "n3"]
        await cache.put(far=at_angle(3.0))
    assert (cache.taken_from("index"), cache.taken_from("memory")) == (100, 100)


async def test_changes_of_tenants_at_rest_give_way_to_lists_of_others(
    embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    cache = Cache(embedded_store, live_index, max_bytes=20_000)
    await cache.put(**{f"n{number}": at_angle(number / 10) for number in range(6)})
    for tenant in [NeighbourCache(live_index, cache.lists, cache.telemetry) for _ in range(5)]:
        await tenant.search("n0", 3, PLAIN)
        for _ in range(2 * MIN_CHANGES):
            tenant.apply({"far": stored_note("far", vector=at_angle(3.0))})
    for _ in range(2):
        for k in range(1, 13):
            assert await cache.cached.search("n0", k, PLAIN)
    assert cache.taken_from("memory") == 12
    assert cache.lists.used <= 20_000


@pytest.mark.parametrize("lists", [1, 2 * MIN_CHANGES])
async def test_as_many_changes_are_known_as_there_are_lists(cache: Cache, lists: int) -> None:
    for k in range(3, lists + 3):
        await cache.cached.search("n0", k, PLAIN)
    without_changes = cache.lists.used
    for number in range(100):
        assert await cache.ids() == ["n1", "n2", "n3"]
        cache.cached.apply({f"far{number}": stored_note(f"far{number}", vector=at_angle(3.0))})
    assert max(MIN_CHANGES, lists) <= known_changes(cache) <= 2 * max(MIN_CHANGES, lists)
    known = (cache.lists.used - without_changes) / (DIMENSION * 4 + CHANGE_BYTES + len("far99"))
    assert max(MIN_CHANGES, lists) <= known <= 2 * max(MIN_CHANGES, lists)


def known_changes(cache: Cache) -> int:
    changes = cache.lists.get(0, CHANGES)
    assert isinstance(changes, RecentChanges)
    return changes.end - changes.first


async def test_as_many_changes_are_known_as_lists_are_left(cache: Cache) -> None:
    for k in range(3, 67):
        await cache.cached.search("n0", k, PLAIN)
    for number in range(100):
        cache.cached.apply({f"far{number}": stored_note("far", vector=at_angle(3.0))})
    for k in range(35, 67):
        cache.cached.forget("n0", k)
    lists = 32
    cache.cached.apply({"far": stored_note("far", vector=at_angle(3.0))})
    assert lists <= known_changes(cache) <= 2 * lists
    assert cache.lists.count(0) == lists + 1
    changes = cache.lists.get(0, CHANGES)
    assert changes
    assert changes.nbytes <= 2 * lists * (DIMENSION * 4 + CHANGE_BYTES + len("far99"))


async def test_ids_of_changes_take_memory_until_they_are_forgotten(cache: Cache) -> None:
    assert await cache.ids() == ["n1", "n2", "n3"]
    cache.cached.apply({"far": stored_note("far", vector=at_angle(3.0))})
    before = cache.lists.used
    ids = [f"{number:02}" + 1000 * "x" for number in range(3)]
    for note_id in (*ids, *ids):
        cache.cached.apply({note_id: stored_note("far", vector=at_angle(3.0))})
    assert 3000 < cache.lists.used - before < 6000
    for _ in range(3 * MIN_CHANGES):
        cache.cached.apply({"far": stored_note("far", vector=at_angle(3.0))})
    assert cache.lists.used < before + 2 * MIN_CHANGES * DIMENSION * 4


async def test_changes_take_less_memory_after_most_lists_went(cache: Cache) -> None:
    for k in range(3, 100):
        await cache.cached.search("n0", k, PLAIN)
    for _ in range(2):
        cache.cached.apply(dict.fromkeys((f"n{number}" for number in range(10, 90)), stored_note("far")))
    for k in range(4, 100):
        cache.cached.forget("n0", k)
    before = cache.lists.used
    cache.cached.apply({"far": stored_note("far", vector=at_angle(3.0))})
    assert cache.lists.used < before - 100 * DIMENSION * 4


async def test_note_of_another_vector_space_leaves_lists_in_memory(cache: Cache) -> None:
    assert await cache.ids() == ["n1", "n2", "n3"]
    cache.cached.apply({"other": stored_note("other", space="other", vector=np.ones(DIMENSION + 1, np.float32))})
    await cache.put(far=at_angle(3.0))
    assert await cache.ids() == ["n1", "n2", "n3"]
    assert cache.taken_from("memory") == 1


async def test_imported_vector_that_is_longer_than_1_comes_into_a_short_list(cache: Cache) -> None:
    for number in (2, 3, 4, 5):
        await cache.remove(f"n{number}")
    assert await cache.ids() == ["n1"]
    await cache.put(far=at_angle(np.pi) * np.float32(1.0009))
    assert await cache.ids() == ["n1", "far"]


@pytest.mark.parametrize(("at_least", "at_most"), [(8, 8), (1, 512)], ids=["eight", "as many as lists"])
async def test_any_changes_give_what_a_search_gives(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, at_least: int, at_most: int
) -> None:
    monkeypatch.setattr(neighbour_cache, "MIN_CHANGES", at_least)  # so that the oldest changes are forgotten many times
    monkeypatch.setattr(neighbour_cache, "MAX_CHANGES", at_most)
    choice = random.Random(0)
    names = [f"n{number}" for number in range(12)]
    for _ in range(200):
        name = choice.choice(names)
        if choice.random() < 0.2 and cache.index.vector(name) is not None:
            await cache.remove(name)
        else:
            await cache.put(**{name: at_angle(choice.random() * 6)})
        for asked in choice.sample(names, 4):
            vector = cache.index.vector(asked)
            found = vector is not None and await cache.index.search(vector, 3, Filter(exclude=frozenset({asked})))
            assert await cache.cached.search(asked, 3, PLAIN) == (found or None)
    assert cache.taken_from("memory") > 100
