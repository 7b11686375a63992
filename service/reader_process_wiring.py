"""Builds a reader process from the settings: keys, quotas and an index that follows the store, without the model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

from fastapi import FastAPI

from service.api.app import create_reader_process_app
from service.api.scenarios import read_scenarios
from service.container import ReadService
from service.gauges import connect_lag
from service.index.live import LiveIndex, search_threads
from service.index.segmented import SegmentedIndex
from service.index.snapshot_files import SharedSnapshots
from service.index.texts import NoTexts
from service.lifecycle import Lifecycle
from service.reader_processes import ReaderProcessStart
from service.settings import Settings
from service.shared_wiring import SharedParts, make_gate, snapshot_folder
from service.store.known_position import KnownPositions
from service.telemetry import Telemetry
from service.tenants import Tenants
from service.tracing import open_tracer

READY_CHECK_SECONDS = 0.05
"""Pause between two checks whether all indexes follow the store."""
MAX_MERGED_ROWS = 50_000
"""Rows above which a reader process does not merge a segment: all reader processes share the memory of the snapshot's
segments, while a merged segment would be one reader process's own. Segments of notes written while a reader process
runs reach up to four times as many rows."""


def build_reader_process(
    settings: Settings, start: ReaderProcessStart, lifecycle: Lifecycle, telemetry: Telemetry
) -> FastAPI:
    """Build the HTTP app of a reader process. `settings` must name the store. Raises ScenariosUnusable."""
    gate = make_gate(settings, telemetry)
    tracer = open_tracer()

    @contextlib.asynccontextmanager
    async def open_reader_process() -> AsyncIterator[Tenants[ReadService]]:
        """Start all components in order, and wait until all indexes follow the store."""
        async with contextlib.AsyncExitStack() as stack:
            if tracer:
                stack.push_async_callback(asyncio.to_thread, tracer.close)
            assert settings.redis_url is not None
            known = stack.enter_context(closing(KnownPositions(settings.data_dir))) if start.embedded else None
            shared = SharedParts(settings, settings.redis_url, telemetry, gate, known)
            connection = await shared.open_gate(stack)
            searchers = search_threads()
            stack.callback(searchers.shutdown)
            directory = shared.open_directory(connection)
            tenants = Tenants(directory, partial(_open_tenant, shared, start, searchers), telemetry)
            stack.push_async_callback(tenants.stop)
            await tenants.start(lifecycle)
            connect_lag(telemetry, tenants, shared.clock)
            while not tenants.ready:  # noqa: ASYNC110 - an index sends no event; the store may be unavailable
                await asyncio.sleep(READY_CHECK_SECONDS)
            yield tenants

    scenarios = read_scenarios(settings)
    return create_reader_process_app(
        settings, open_reader_process, gate, lifecycle, telemetry, start.socket, tracer, scenarios
    )


@contextlib.asynccontextmanager
async def _open_tenant(
    shared: SharedParts, start: ReaderProcessStart, searchers: ThreadPoolExecutor, name: str, identity: str
) -> AsyncIterator[ReadService]:
    """Build the components of one tenant; on exit, stop them in reverse order."""
    settings = shared.settings
    async with contextlib.AsyncExitStack() as stack:
        known = stack.enter_context(shared.known.open(name, identity)) if shared.known else None
        store = shared.open_store(stack, name, identity, start.space, start.dimension, known)
        index = LiveIndex(
            store,
            make_index=partial(
                SegmentedIndex,
                start.dimension,
                attributes=settings.filter_attributes,
                max_merged_rows=MAX_MERGED_ROWS,
                mean_share=start.mean_share,
            ),
            make_texts=NoTexts,
            space=start.space,
            clock=shared.clock,
            attributes=settings.filter_attributes,
            snapshots=SharedSnapshots(snapshot_folder(settings, name, identity)),
            searchers=searchers,
        )
        stack.push_async_callback(index.stop)
        yield ReadService(
            settings=settings,
            model=start.model,
            nearest=shared.make_nearest(stack, store, index, in_reader_process=True),
            store=store,
            index=index,
            telemetry=shared.telemetry,
            clock=shared.clock,
            tenant=name,
        )
