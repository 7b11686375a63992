"""verify: differences between store and index are named, changes in flight are not, and repair removes differences."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import redis

from service.index.growing import GrowingSegment
from service.index.live import LiveIndex
from service.index.segmented import SegmentedIndex
from service.interfaces import Clock
from service.records import StoredNote, Write
from service.store.redis_keys import NOTE
from service.verify import KINDS, Kind, Report, verify
from tests.service.conftest import SPACE, GatedStore, note_vector, record_reads, stored_note
from tests.service.damage import Damage, changed, field
from tests.service.index.live_steps import WAIT, notes, put

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def moved(note: StoredNote) -> StoredNote:
    return replace(note, vector=-note_vector(note.note))


async def check(
    store: GatedStore, index: LiveIndex, clock: Clock, differing: Mapping[Kind, tuple[str, ...]], repair: bool = False
) -> Report:
    report = await verify(store, index, SPACE, clock, repair=repair)
    assert report.differing == {kind: differing.get(kind, ()) for kind in KINDS}
    return report


@pytest.fixture
async def filled(embedded_store: GatedStore, live_index: LiveIndex) -> LiveIndex:
    await live_index.wait_for(await put(embedded_store, *notes(20)), WAIT)
    return live_index


async def test_of_a_healthy_deployment_nothing_is_reported(
    embedded_store: GatedStore, filled: LiveIndex, clock: Clock
) -> None:
    await put(embedded_store, stored_note("alien", space="other"), stored_note("old", expires_at=clock() + 100))
    clock.offset += 1000
    report = await check(embedded_store, filled, clock, {})
    assert report.well
    assert (report.notes, report.rows, report.other_space) == (21, 20, 1)


async def test_long_notes_are_compared_in_parts_of_bounded_size(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.redis_store.MAX_READ_BYTES", 20_000)
    ids = tuple(f"n{n:02}" for n in range(12))
    long = [stored_note(note_id, content="x" * 4000) for note_id in ids]
    await live_index.wait_for(await put(embedded_store, *long), WAIT)
    live_index._index.remove(ids)
    reads = record_reads(embedded_store, monkeypatch)
    await check(embedded_store, live_index, clock, {"missing": ids}, repair=True)
    await check(embedded_store, live_index, clock, {})
    assert max(map(len, reads)) == 4


async def test_each_difference_is_named_and_repaired(
    embedded_store: GatedStore, filled: LiveIndex, clock: Clock
) -> None:
    rows = filled._index
    rows.remove(["n1", "n2"])
    rows.upsert([moved(stored_note("n3")), stored_note("ghost")])
    wrong: dict[Kind, tuple[str, ...]] = {"missing": ("n1", "n2"), "different": ("n3",), "stale": ("ghost",)}
    report = await check(embedded_store, filled, clock, wrong)
    assert not report.well
    assert (await check(embedded_store, filled, clock, wrong, repair=True)).repaired
    assert (await check(embedded_store, filled, clock, {})).well


async def test_a_vector_that_is_none_cannot_be_repaired(
    embedded_store: GatedStore, embedded_admin: redis.Redis, filled: LiveIndex, clock: Clock
) -> None:
    embedded_admin.hset(f"{NOTE}n5", "vector", np.full(16, np.nan, np.float32).tobytes())
    report = await check(embedded_store, filled, clock, {"broken": ("n5",)}, repair=True)
    assert not report.well


@pytest.mark.parametrize("damage", [changed(title=...), field("vector", b"\0" * 12)], ids=["document", "vector"])
async def test_what_cannot_be_read_is_named_and_not_repaired(
    embedded_store: GatedStore, embedded_admin: redis.Redis, filled: LiveIndex, clock: Clock, damage: Damage
) -> None:
    damage(embedded_admin, "n5")
    filled._index.remove(["n1"])
    wrong: dict[Kind, tuple[str, ...]] = {"missing": ("n1",), "unreadable": ("n5",)}
    report = await check(embedded_store, filled, clock, wrong, repair=True)
    assert (report.notes, report.repaired, report.well) == (20, True, False)
    await put(embedded_store, stored_note("n5"))
    assert (await check(embedded_store, filled, clock, {})).well


async def test_what_is_only_on_its_way_is_not_reported(
    embedded_store: GatedStore, filled: LiveIndex, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, whole = asyncio.Event(), filled.wait_for

    async def wait_for(position: str, seconds: float) -> None:
        waits.set()
        await whole(position, seconds)

    monkeypatch.setattr(filled, "wait_for", wait_for)
    await embedded_store.hold()
    await embedded_store.put([Write(note) for note in (*notes(3, 20), moved(stored_note("n0")))])
    await embedded_store.delete("n1")
    looking = asyncio.create_task(check(embedded_store, filled, clock, {}))
    await waits.wait()
    embedded_store.release()
    assert (await looking).well


async def test_a_row_that_is_there_twice_is_found_out(
    embedded_store: GatedStore, filled: LiveIndex, clock: Clock
) -> None:
    assert isinstance(filled._index, SegmentedIndex)
    (head,) = filled._index.all_segments
    assert isinstance(head, GrowingSegment)
    head.append(stored_note("n4"), note_vector(stored_note("n4").note))
    head.alive[4] = True  # revives the row that the second one replaced
    head.dead -= 1
    head._row_of["n4"] = 4
    await check(embedded_store, filled, clock, {"duplicate": ("n4",)})
