"""Maintainer in a LiveIndex: what was written is merged in the background."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from service.index import maintenance
from service.index.segmented import MergeJob, SegmentedIndex
from service.interfaces import Clock
from tests.service.conftest import GatedStore, eventually, following, stored_note
from tests.service.index.live_steps import WAIT, delete, find_ids, ids_of, notes, put

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_maintainer_rows_written_and_rebuilt_are_merged(embedded_store: GatedStore, clock: Clock) -> None:
    async with following(embedded_store, clock, growing_rows=2) as index:
        await index.wait_for(await put(embedded_store, *notes(41)), WAIT)
        await index.wait_for(await delete(embedded_store, "n0"), WAIT)
        await eventually(lambda: index.status().segments < 8)
        assert await find_ids(index) == ids_of(notes(40, 1))
        np.testing.assert_array_equal(index.vector("n7"), stored_note("n7").vector)
    async with following(embedded_store, clock, growing_rows=2) as index:
        assert index.status().segments < 8
        assert await find_ids(index) == ids_of(notes(40, 1))


async def test_maintainer_failed_job_costs_no_answer_and_is_retried(
    embedded_store: GatedStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: MergeJob) -> None:
        raise MemoryError

    async with following(embedded_store, clock, growing_rows=2) as index:
        with monkeypatch.context() as patch:
            patch.setattr(MergeJob, "run", fail)
            await index.wait_for(await put(embedded_store, *notes(20)), WAIT)
            assert await find_ids(index) == ids_of(notes(20))
            assert index.status().segments == 10
        await index.wait_for(await put(embedded_store, *notes(1, 20)), WAIT)
        await eventually(lambda: index.status().segments < 8)
        assert await find_ids(index) == ids_of(notes(21))


async def test_maintainer_write_beside_a_failing_job_has_it_retried(
    embedded_store: GatedStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, go_on = threading.Event(), threading.Event()
    merge = MergeJob.run

    def fail_once(job: MergeJob) -> None:
        if running.is_set():
            return merge(job)
        running.set()
        assert go_on.wait(WAIT)
        raise MemoryError

    monkeypatch.setattr(MergeJob, "run", fail_once)
    async with following(embedded_store, clock, growing_rows=2) as index:
        await index.wait_for(await put(embedded_store, *notes(20)), WAIT)
        await eventually(running.is_set)
        await index.wait_for(await put(embedded_store, *notes(1, 20)), WAIT)
        go_on.set()
        await eventually(lambda: index.status().segments < 8)
        assert await find_ids(index) == ids_of(notes(21))


@pytest.mark.parametrize("step", [(SegmentedIndex, "plan"), (maintenance, "trim_heap")], ids=["plan", "trim_heap"])
async def test_maintainer_goes_on_after_a_step_beside_its_jobs_has_failed(
    embedded_store: GatedStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, step: tuple[object, str]
) -> None:
    failed = threading.Event()

    def fail(*_: object) -> None:
        failed.set()
        raise OSError

    monkeypatch.setattr(maintenance, "TRIM_HEAP_ROWS", 0)
    async with following(embedded_store, clock, growing_rows=2) as index:
        with monkeypatch.context() as patch:
            patch.setattr(*step, fail)
            await index.wait_for(await put(embedded_store, *notes(20)), WAIT)
            await eventually(failed.is_set)
        await index.wait_for(await put(embedded_store, *notes(40, 20)), WAIT)
        await eventually(lambda: index.status().segments < 8)
        assert await find_ids(index) == ids_of(notes(60))


async def test_maintainer_expired_rows_are_merged_away_without_writes(embedded_store: GatedStore, clock: Clock) -> None:
    async with following(embedded_store, clock, growing_rows=2) as index:
        passing = [stored_note(f"p{n}", expires_at=clock() + 1000) for n in range(40)]
        await index.wait_for(await put(embedded_store, *passing, *notes(3)), WAIT)
        await eventually(lambda: index.status().segments < 8)
        clock.offset += 2000
        await eventually(lambda: index.status().vectors == 3 and index.status().tombstones <= 2)
