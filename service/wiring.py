"""Builds the service with the model from its settings. shared_wiring.py builds the parts that reader processes have,
too, and reader_process_wiring.py a reader process: only these three choose concrete classes of the store and the
index."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
from fastapi import FastAPI
from pydantic import SecretStr

from model.config import CheckpointError
from model.generation import CategoriesTooLong, GenerationRequest
from model.hashtags.lexical_index import InvertedLexicalIndex
from model.inference.engine import Engine
from model.note import Note
from service.access.gate import Gate
from service.admission import first_estimate
from service.api.app import create_app
from service.api.scenarios import read_scenarios
from service.batcher import Batcher
from service.behaviour.co_occurrence import CoOccurrenceOptions
from service.behaviour.live import MAX_ERASURES, MAX_EVENT_BODIES, MAX_READER_EXPORTS, LiveBehaviour
from service.claims import Claims
from service.collection.change_feed import MAX_CHANGE_WAITERS, ChangeFeed
from service.collection.export import MAX_EXPORTS
from service.collection.importing import Importer
from service.collection.removal import Remover
from service.concurrency import ConcurrencyLimit
from service.container import Service
from service.engine_threads import engine_thread
from service.erasure.schedule import PurgeSchedule
from service.events import EventBounds
from service.gauges import connect_gauges, connect_lag, connect_readiness, connect_unsaved
from service.generator import GenerationDefaults, Generator
from service.index.gpu import Gpu, find_gpu
from service.index.live import LiveIndex, search_threads
from service.index.segmented import SegmentedIndex
from service.index.snapshot_files import TENANTS, SnapshotFolder, remove_unused_snapshots
from service.index.texts import LiveTexts
from service.index.threads import run_in
from service.interfaces import NoteStore
from service.lifecycle import Lifecycle
from service.reader_processes import ReaderProcesses, ReaderProcessStart
from service.recommender import Recommender
from service.samples import load_samples
from service.search.search import NoteSearch
from service.settings import Settings
from service.shared_wiring import SharedParts, make_gate, snapshot_folder
from service.store.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from service.store.events import RedisEventStore
from service.store.known_position import KnownPositions
from service.store.ranked_lists import RedisLists
from service.store.redis_keys import RedisKeys
from service.store_probe import StoreProbe
from service.telemetry import Telemetry
from service.tenants import Tenants
from service.tracing import Tracer, open_tracer

START_ERRORS = (CheckpointError, CategoriesTooLong, EmbeddedRedisError)
"""Start-up errors whose message says what to do; see `open_service`."""
FOLLOWING_SECONDS = 60.0
"""Seconds between two reports of its log position to the store by a replica that keeps no snapshots."""
FIRST_NOTE = Note(title="Three days in Kyoto", content="Buses all day, noodles at the market, temples at dawn.")
"""Note for the first runs of the model at the start; their outputs are not used."""
FIRST_HASHTAGS = 5
"""Hashtags that these runs write: as many as the figures of admission.HASHTAGS_WORK are for."""
MERGE_SECONDS = 600.0
"""Maximum wait of the start of the reader processes for the indexes of all tenants to be merged; they then start with
what is merged so far."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelParts:
    """Components for the model and the index that all tenants of a process share. `searchers`: threads for searches."""

    engine: Engine
    batcher: Batcher
    searchers: ThreadPoolExecutor
    gpu: Gpu | None


def build_app(
    settings: Settings,
    lifecycle: Lifecycle | None = None,
    tracer: Tracer | None = None,
    readers: ReaderProcesses | None = None,
) -> FastAPI:
    """Build the HTTP app of one process. It opens its own service, and has started once the sample notes are loaded.
    `tracer`: by default the one that the environment configures. `readers`: by default none. Raises
    ScenariosUnusable."""
    lifecycle, readers = lifecycle or Lifecycle(), readers or ReaderProcesses(0)
    telemetry = Telemetry()
    tracer = tracer or open_tracer()
    gate = make_gate(settings, telemetry)

    @contextlib.asynccontextmanager
    async def open_with_samples() -> AsyncIterator[Tenants[Service]]:
        async with contextlib.AsyncExitStack() as stack:
            if tracer:
                stack.push_async_callback(asyncio.to_thread, tracer.close)
            tenants = await stack.enter_async_context(open_service(settings, telemetry, lifecycle, gate, readers))
            await load_samples(tenants.default, lifecycle.report)
            yield tenants

    scenarios = read_scenarios(settings)
    return create_app(settings, open_with_samples, gate, lifecycle, telemetry, START_ERRORS, tracer, scenarios, readers)


@contextlib.asynccontextmanager
async def open_service(
    settings: Settings, telemetry: Telemetry, lifecycle: Lifecycle, gate: Gate, readers: ReaderProcesses | None = None
) -> AsyncIterator[Tenants[Service]]:
    """Start all components in order; on exit, stop them in reverse order.

    Raises CheckpointError, EmbeddedRedisError or CategoriesTooLong. An external Redis that is unavailable is no error:
    the index waits for it.
    """
    async with contextlib.AsyncExitStack() as stack:
        url = settings.redis_url or SecretStr(await _open_embedded(settings, stack, telemetry, lifecycle))
        # Processes on other machines may write to a store at an address, so its newest position is not known here.
        known = None if settings.redis_url else stack.enter_context(closing(KnownPositions(settings.data_dir)))
        shared = SharedParts(settings, url, telemetry, gate, known)
        connection = await shared.open_gate(stack)  # early: /metrics is read during the start
        engine, estimate = await _load_in_thread(settings, lifecycle)
        batcher = Batcher(
            engine,
            telemetry,
            max_tokens=settings.batch_tokens,
            max_notes=settings.batch_notes,
            max_queue=settings.queue_notes,
            max_seconds=settings.queue_seconds,
            first_estimate=estimate,
            count_tenants=lambda: len(tenants),
        )
        searchers = search_threads()
        stack.callback(searchers.shutdown)
        gpu = find_gpu() if settings.index_device == "cuda" else None
        parts = ModelParts(engine, batcher, searchers, gpu)
        directory = shared.open_directory(connection)
        open_tenant = partial(_open_tenant, shared, parts)
        remove_leftovers = partial(_remove_snapshots_of_other_tenants, settings)
        discard = partial(_discard_snapshots, settings)
        tenants = Tenants(directory, open_tenant, telemetry, remove_leftovers, discard)
        stack.push_async_callback(tenants.stop)
        await tenants.start(lifecycle)
        batcher.start()
        stack.push_async_callback(batcher.stop, settings.shutdown_seconds)
        if settings.purge_seconds:
            schedule = PurgeSchedule(url, settings.data_dir, settings.purge_seconds, telemetry, shared.clock)
            _run_until_left(stack, schedule.run(), "purge-store")
        _run_until_left(stack, tenants.default.store_probe.watch(), "watch-store")
        telemetry.model_info.labels(engine.name, engine.space, "serving").set(1)
        connect_gauges(telemetry, tenants, settings.event_bytes, settings.data_dir)
        connect_lag(telemetry, tenants, shared.clock)
        if settings.snapshot_seconds:
            connect_unsaved(telemetry, tenants, shared.clock)
        readers = readers or ReaderProcesses(0)
        connect_readiness(telemetry, lifecycle, tenants, readers, batcher)
        if readers.count:
            telemetry.readers.set_function(lambda: readers.ready)
            stack.push_async_callback(readers.stop, settings.shutdown_seconds)
            _run_until_left(stack, _start_reader_processes(readers, shared, engine, tenants), "start-readers")
        yield tenants


@contextlib.asynccontextmanager
async def _open_tenant(shared: SharedParts, parts: ModelParts, name: str, identity: str) -> AsyncIterator[Service]:
    """Build the components of one tenant; on exit, stop them in reverse order. `identity`: that of its store; "" for
    the default tenant, whose store may have any."""
    settings, engine, clock = shared.settings, parts.engine, shared.clock
    async with contextlib.AsyncExitStack() as stack:
        known = stack.enter_context(shared.known.open(name, identity)) if shared.known else None
        store = shared.open_store(stack, name, identity, engine.space, engine.dimension, known)
        snapshots = await _claim_in_thread(settings, stack, snapshot_folder(settings, name, identity))
        index = _make_index(shared, parts, store, snapshots)
        stack.push_async_callback(index.stop)
        generator = Generator(engine, parts.batcher, store, index, _generation_defaults(settings), name)
        recommender = Recommender(
            generator, parts.batcher, store, index, shared.telemetry, clock, settings.idempotency_seconds, name
        )
        events = RedisEventStore(store.connection, _event_bounds(settings), RedisKeys(name), identity, known)
        behaviour = _make_behaviour(shared, events)
        stack.push_async_callback(behaviour.stop)
        behaviour.start()
        lists = RedisLists(store.connection, RedisKeys(name), settings.page_seconds, identity)
        search = NoteSearch(
            engine,
            parts.batcher,
            store,
            index,
            lists,
            shared.telemetry,
            clock,
            name,
            behaviour,
            settings.words_weight,
            engine.title_mean_share,
        )
        stack.push_async_callback(search.stop)
        yield Service(
            settings=settings,
            model=engine.name,
            engine=engine,
            generator=generator,
            recommender=recommender,
            search=search,
            nearest=shared.make_nearest(stack, store, index),
            remover=Remover(store, index, Claims(store, settings.idempotency_seconds)),
            importer=Importer(recommender, store, clock),
            exports=ConcurrencyLimit("max_exports", MAX_EXPORTS),
            store_probe=StoreProbe(store, shared.telemetry),
            reader_exports=ConcurrencyLimit("max_reader_exports", MAX_READER_EXPORTS),
            event_bodies=ConcurrencyLimit("max_event_bodies", MAX_EVENT_BODIES),
            erasures=ConcurrencyLimit("max_erasures", MAX_ERASURES),
            changes=ChangeFeed(store, index, ConcurrencyLimit("max_change_waiters", MAX_CHANGE_WAITERS)),
            batcher=parts.batcher,
            store=store,
            index=index,
            behaviour=behaviour,
            telemetry=shared.telemetry,
            clock=clock,
            tenant=name,
        )


def _make_index(
    shared: SharedParts, parts: ModelParts, store: NoteStore, snapshots: SnapshotFolder | None
) -> LiveIndex:
    """Build the empty index of a tenant's notes."""
    settings, engine = shared.settings, parts.engine
    return LiveIndex(
        store,
        make_index=partial(
            SegmentedIndex,
            engine.dimension,
            attributes=settings.filter_attributes,
            gpu=parts.gpu,
            mean_share=engine.mean_share,
        ),
        make_texts=lambda: LiveTexts(engine.vocabulary(), InvertedLexicalIndex()),
        space=engine.space,
        clock=shared.clock,
        attributes=settings.filter_attributes,
        snapshots=snapshots,
        snapshot_seconds=settings.snapshot_seconds or FOLLOWING_SECONDS,
        searchers=parts.searchers,
    )


def _run_until_left(stack: contextlib.AsyncExitStack, work: Coroutine[None, None, None], name: str) -> None:
    """Run `work` as a task, which is cancelled when the stack exits."""
    stack.callback(asyncio.create_task(work, name=name).cancel)


def _generation_defaults(settings: Settings) -> GenerationDefaults:
    return GenerationDefaults(
        settings.categories,
        settings.hashtag_policy,
        settings.blocked_hashtags,
        settings.min_category_probability,
        settings.min_hashtag_score,
    )


def _event_bounds(settings: Settings) -> EventBounds:
    return EventBounds(settings.event_seconds, settings.event_bytes, settings.event_id_seconds, settings.event_ids)


def _make_behaviour(shared: SharedParts, events: RedisEventStore) -> LiveBehaviour:
    """Build the component that stores and follows the events of a tenant."""
    settings = shared.settings
    options = CoOccurrenceOptions(
        window=settings.behaviour_window or None,
        lower=settings.behaviour_lower,
        upper=settings.behaviour_upper or math.inf,
        min_readers=settings.behaviour_min_readers,
        top=settings.behaviour_top,
        half_life=settings.behaviour_half_life_seconds or None,
        max_reads=settings.behaviour_reads,
    )
    return LiveBehaviour(
        events,
        options,
        settings.event_weights,
        settings.event_seconds,
        shared.telemetry,
        shared.clock,
        settings.behaviour_kappa,
    )


def _remove_snapshots_of_other_tenants(settings: Settings, identities: Mapping[str, str]) -> None:
    """Remove the snapshots of tenants that no longer exist: they were removed while no process ran on this machine."""
    folders = {snapshot_folder(settings, name, identity) for name, identity in identities.items()}
    for folder in (settings.data_dir / TENANTS).glob("*"):
        if folder not in folders:
            remove_unused_snapshots(folder)


def _discard_snapshots(settings: Settings, name: str, identity: str) -> None:
    """Remove the snapshots of a removed tenant, except those of other processes, which remove their own."""
    remove_unused_snapshots(snapshot_folder(settings, name, identity))


async def _load_in_thread(settings: Settings, lifecycle: Lifecycle) -> tuple[Engine, float]:
    """Load the engine in a thread of its own, so that the event loop answers probes meanwhile."""
    lifecycle.report("Loading the model")
    loading = engine_thread("load-engine")
    try:
        return await run_in(loading, partial(_load_engine, settings, lifecycle.report))
    finally:
        loading.shutdown(wait=False)


def _load_engine(settings: Settings, progress: Callable[[str], None]) -> tuple[Engine, float]:
    """Load the model, check that it can choose among the deployment's categories, and run it twice: the first run of
    each of its graphs takes a second longer, for which the first caller would wait, and the second one is timed. Return
    the engine, and the engine seconds to expect for a note's vector: without them the first burst of requests would be
    admitted and then time out."""
    engine = Engine.load(
        settings.checkpoint,
        cache=settings.cache_dir,
        device=settings.device,
        dtype=settings.dtype,
        runtime=settings.runtime,
        isolated_export=True,
        progress=progress,
    )
    categories = tuple(sorted(settings.categories or engine.categories))  # in the order of the recommender's requests
    engine.tokenize(Note(), GenerationRequest(categories=categories))  # fails now, not at the first note
    engine.keep_closed_set(categories)
    progress("Warming up the model")
    request = GenerationRequest(hashtags=FIRST_HASHTAGS, categories=categories)
    engine.generate([FIRST_NOTE], request)
    began = time.monotonic()
    engine.generate([FIRST_NOTE], request)
    return engine, first_estimate(time.monotonic() - began, request)


async def _open_embedded(
    settings: Settings, stack: contextlib.AsyncExitStack, telemetry: Telemetry, lifecycle: Lifecycle
) -> str:
    """Start or join the embedded server of the data folder; return its address."""
    embedded = EmbeddedRedis(settings.data_dir, telemetry.store_restarts.inc, settings.store_memory_bytes)
    stack.callback(embedded.stop)
    lifecycle.report("Starting the embedded server", lambda: f"{embedded.loaded_percent:.0f}% of its data loaded")
    await embedded.start_in_loop()
    if embedded.pid is None:
        lifecycle.report(f"Using the store of {settings.data_dir}, which another process runs")
    _run_until_left(stack, embedded.keep_alive(), "keep-embedded-redis")
    return embedded.url


async def _claim_in_thread(settings: Settings, stack: contextlib.AsyncExitStack, parent: Path) -> SnapshotFolder | None:
    """Do what `_claim_snapshots` does, in a thread: naming a replica waits for the disk. `stack` releases the folder,
    also where the caller is cancelled meanwhile."""
    claiming = asyncio.ensure_future(asyncio.to_thread(_claim_snapshots, settings, parent))
    try:
        await asyncio.shield(claiming)
    finally:
        if snapshots := await claiming:
            stack.callback(snapshots.close)
    return snapshots


def _claim_snapshots(settings: Settings, parent: Path) -> SnapshotFolder | None:
    """Claim a folder in `parent` for snapshots of an index. Return None if they are switched off or it cannot be
    written; each start then reads the whole store."""
    if not settings.snapshot_seconds:
        return None
    try:
        return SnapshotFolder.claim(parent)
    except OSError as error:
        log.warning("no_snapshots", detail=str(error))
        return None


async def _start_reader_processes(
    readers: ReaderProcesses, shared: SharedParts, engine: Engine, tenants: Tenants[Service]
) -> None:
    """Start the reader processes once the indexes are merged and saved, so that they share the pages of the
    snapshots."""
    until = time.monotonic() + MERGE_SECONDS
    for tenant in tenants:
        if tenant.service and tenant.ready and not tenant.closing.is_set():  # the others have nothing to save
            await tenant.service.index.save_merged(max(0.0, until - time.monotonic()))
    start = ReaderProcessStart(
        engine.name, engine.space, engine.dimension, engine.mean_share, embedded=shared.known is not None
    )
    readers.start(start, shared.url.get_secret_value(), shared.telemetry.reader_restarts.inc)
