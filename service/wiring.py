"""Builds the service from its settings: the only place that names concrete classes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial

import structlog
from fastapi import FastAPI
from pydantic import SecretStr

from model.config import CheckpointError
from model.generation import CategoriesTooLong, GenerationRequest
from model.hashtags.lexical_index import InvertedLexicalIndex
from model.inference.engine import Engine
from model.note import Note
from service.admission import Lane
from service.api.app import create_app
from service.batcher import Batcher
from service.container import Service
from service.index.gpu import find_gpu
from service.index.hashtags import LiveHashtags
from service.index.live import LiveIndex
from service.index.segmented import SegmentedIndex
from service.index.snapshots import SnapshotFolder
from service.interfaces import Clock, NoteStore
from service.lifecycle import Lifecycle
from service.recommender import GenerationDefaults, Recommender
from service.samples import load_samples
from service.settings import Settings
from service.store.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from service.store.redis_store import RedisNoteStore
from service.telemetry import Telemetry
from service.tracing import Tracer, open_tracer

START_ERRORS = (CheckpointError, CategoriesTooLong, EmbeddedRedisError)
"""Errors of a start whose message says what to do; see `open_service`."""
FOLLOWING_SECONDS = 60.0
"""How often a replica without snapshots tells the store how far it has followed the log."""
log = structlog.get_logger(__name__)


def build_app(settings: Settings, lifecycle: Lifecycle | None = None, tracer: Tracer | None = None) -> FastAPI:
    """Build the HTTP app of one process. It opens its own service, and has started once the sample notes are loaded.
    `tracer`: without it the one that the environment configures."""
    lifecycle = lifecycle or Lifecycle()
    telemetry = Telemetry()
    tracer = tracer or open_tracer()

    @contextlib.asynccontextmanager
    async def open_with_samples() -> AsyncIterator[Service]:
        async with contextlib.AsyncExitStack() as stack:
            if tracer:
                stack.push_async_callback(asyncio.to_thread, tracer.close)
            service = await stack.enter_async_context(open_service(settings, telemetry, lifecycle))
            await load_samples(service, lifecycle.report)
            yield service

    return create_app(settings, open_with_samples, lifecycle, telemetry, START_ERRORS, tracer)


@contextlib.asynccontextmanager
async def open_service(settings: Settings, telemetry: Telemetry, lifecycle: Lifecycle) -> AsyncIterator[Service]:
    """Start every part in order; on leaving, stop them in the opposite order.

    Raises CheckpointError, EmbeddedRedisError or CategoriesTooLong. An external Redis that is away is no error: the
    index waits for it.
    """
    async with contextlib.AsyncExitStack() as stack:
        url = settings.redis_url or SecretStr(await _open_embedded(settings, stack, telemetry, lifecycle.report))
        lifecycle.report("Loading the model")
        engine = await asyncio.to_thread(_load_engine, settings, lifecycle.report)
        clock = Clock()
        store = RedisNoteStore(
            url.get_secret_value(),
            clock=clock,
            dimensions={engine.space: engine.dimension},
            on_error=telemetry.store_errors.inc,
        )
        stack.push_async_callback(store.close)
        gpu = find_gpu() if settings.index_device == "cuda" else None
        index = LiveIndex(
            store,
            make_index=partial(SegmentedIndex, engine.dimension, attributes=settings.filter_attributes, gpu=gpu),
            make_hashtags=lambda: LiveHashtags(engine.vocabulary(), InvertedLexicalIndex()),
            space=engine.space,
            clock=clock,
            attributes=settings.filter_attributes,
            snapshots=_claim_snapshots(settings, stack),
            snapshot_seconds=settings.snapshot_seconds or FOLLOWING_SECONDS,
        )
        batcher = Batcher(
            engine,
            telemetry,
            max_tokens=settings.batch_tokens,
            max_notes=settings.batch_notes,
            max_queue=settings.queue_notes,
            max_seconds=settings.queue_seconds,
        )
        lifecycle.report("Building the index from the store", lambda: index.status().detail)
        await index.start()
        stack.push_async_callback(index.stop)
        batcher.start()
        stack.push_async_callback(batcher.stop, settings.shutdown_seconds)
        defaults = GenerationDefaults(settings.categories, settings.hashtag_policy, settings.blocked_hashtags)
        remembered = settings.idempotency_seconds
        recommender = Recommender(engine, batcher, store, index, telemetry, clock, defaults, remembered)
        _connect_gauges(telemetry, index, store, engine)
        service = Service(settings, recommender, batcher, store, index, telemetry, clock)
        for lane in Lane:
            telemetry.expected_wait.labels(lane).set_function(partial(batcher.expected_wait, lane))
        telemetry.ready.set_function(lambda: lifecycle.started and not lifecycle.draining and service.works)
        yield service


def _load_engine(settings: Settings, progress: Callable[[str], None]) -> Engine:
    """Load the model, and check that it can choose among the deployment's categories."""
    engine = Engine.load(
        settings.checkpoint,
        cache=settings.cache_dir,
        device=settings.device,
        dtype=settings.dtype,
        runtime=settings.runtime,
        progress=progress,
    )
    engine.tokenize(Note(), GenerationRequest(categories=settings.categories))  # fails now, not at the first note
    return engine


async def _open_embedded(
    settings: Settings, stack: contextlib.AsyncExitStack, telemetry: Telemetry, progress: Callable[[str], None]
) -> str:
    """Start or join the embedded server of the data folder; return its address."""
    progress("Starting the embedded store")
    embedded = EmbeddedRedis(settings.data_dir, telemetry.store_restarts.inc, settings.store_memory_bytes)
    stack.callback(embedded.stop)
    await embedded.start_in_loop()
    if embedded.pid is None:
        progress(f"Joining the store of {settings.data_dir}, which another process runs")
    keeper = asyncio.get_running_loop().create_task(embedded.keep_alive(), name="keep-embedded-redis")
    stack.callback(keeper.cancel)
    return embedded.url


def _claim_snapshots(settings: Settings, stack: contextlib.AsyncExitStack) -> SnapshotFolder | None:
    """Claim a folder for snapshots of the index. None where they are switched off or it cannot be written: then each
    start reads the whole store."""
    if not settings.snapshot_seconds:
        return None
    try:
        snapshots = SnapshotFolder.claim(settings.data_dir / "snapshots")
    except OSError as error:
        log.warning("no_snapshots", detail=str(error))
        return None
    stack.callback(snapshots.close)
    return snapshots


def _connect_gauges(telemetry: Telemetry, index: LiveIndex, store: NoteStore, engine: Engine) -> None:
    """Have the gauges read their values when metrics are collected."""
    telemetry.index_vectors.labels("live").set_function(lambda: index.status().vectors)
    telemetry.index_vectors.labels("tombstone").set_function(lambda: index.status().tombstones)
    telemetry.index_segments.set_function(lambda: index.status().segments)
    telemetry.recall.set_function(lambda: index.status().recall_sampled)
    telemetry.other_space.set_function(lambda: index.status().other_space)
    telemetry.quarantined.set_function(lambda: len(store.unreadable))
    telemetry.snapshot_time.set_function(lambda: index.status().saved_at)
    telemetry.model_info.labels(engine.name, engine.space, "serving").set(1)
