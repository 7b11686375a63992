"""Gauges that read the running parts of the service when metrics are collected."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from service.admission import Lane
from service.batcher import Batcher
from service.behaviour.live import BehaviourStatus
from service.container import ReadService, Service
from service.interfaces import Clock
from service.lifecycle import Lifecycle
from service.reader_processes import ReaderProcesses
from service.readiness import is_ready
from service.records import IndexStatus
from service.telemetry import Telemetry
from service.tenants import Tenants

S = TypeVar("S", bound=ReadService)


def connect_gauges(telemetry: Telemetry, tenants: Tenants[Service], event_bytes: int, data_dir: Path) -> None:
    """Connect the gauges of the index, the events and the data folder: sums over all tenants.

    `event_bytes`: bound on the memory of a tenant's events.
    """

    def total(value: Callable[[IndexStatus], float]) -> Callable[[], float]:
        return lambda: sum(value(service.index.status()) for service in tenants.services)

    def behaviour(value: Callable[[BehaviourStatus], float]) -> Callable[[], float]:
        return lambda: sum(value(service.behaviour.status()) for service in tenants.services)

    telemetry.event_stream_bytes.set_function(behaviour(lambda status: status.stream_bytes))
    telemetry.event_stream_filled.set_function(
        lambda: max((one.behaviour.status().stream_bytes for one in tenants.services), default=0) / event_bytes
    )
    telemetry.behaviour_reads.set_function(behaviour(lambda status: status.reads))
    telemetry.behaviour_readers.set_function(behaviour(lambda status: status.readers))
    telemetry.behaviour_notes.set_function(behaviour(lambda status: status.notes))
    telemetry.behaviour_bytes.set_function(behaviour(lambda status: status.bytes))
    telemetry.index_vectors.labels("live").set_function(total(lambda status: status.vectors))
    telemetry.index_vectors.labels("tombstone").set_function(total(lambda status: status.tombstones))
    telemetry.index_segments.set_function(total(lambda status: status.segments))
    telemetry.other_space.set_function(total(lambda status: status.other_space))
    telemetry.lost_writes.set_function(lambda: bool(tenants.lost))
    telemetry.data_free.set_function(partial(_free_share, data_dir))
    telemetry.quarantined.set_function(lambda: sum(len(service.store.unreadable) for service in tenants.services))
    telemetry.recall.set_function(lambda: _mean_recall(tenants))
    telemetry.snapshot_time.set_function(
        lambda: max((service.index.status().saved_at for service in tenants.services), default=0.0)
    )
    telemetry.tenants.set_function(lambda: len(tenants.services))
    telemetry.tenants_failed.set_function(lambda: sum(tenant.failed for tenant in tenants))


def connect_readiness(
    telemetry: Telemetry,
    lifecycle: Lifecycle,
    tenants: Tenants[Service],
    readers: ReaderProcesses,
    batcher: Batcher,
) -> None:
    """Connect the gauges that tell whether this process may serve, and how long a note would wait for the model."""
    for lane in Lane:
        telemetry.expected_wait.labels(lane).set_function(partial(batcher.expected_wait, lane))
    telemetry.ready.set_function(partial(is_ready, lifecycle, tenants, readers))


def connect_unsaved(telemetry: Telemetry, tenants: Tenants[Service], clock: Clock) -> None:
    """Connect the gauge of how long the oldest change of any tenant has waited for a snapshot; 0 if none waits."""
    telemetry.snapshot_unsaved.set_function(
        lambda: _oldest_age((one.index.status().unsaved_since for one in tenants.services), clock)
    )


def connect_lag(telemetry: Telemetry, tenants: Tenants[S], clock: Clock) -> None:
    """Connect the gauge of how far the indexes of this process are behind the log."""
    telemetry.index_behind.set_function(
        lambda: _oldest_age((one.index.status().behind_since for one in tenants.services), clock)
    )


def _free_share(folder: Path) -> float:
    """Return the share of a folder's disk that is free; NaN if it cannot be read."""
    try:
        disk = shutil.disk_usage(folder)
    except OSError:
        return math.nan
    return disk.free / disk.total if disk.total else math.nan


def _oldest_age(times: Iterable[float], clock: Clock) -> float:
    """Return the seconds since the oldest of some times; 0 stands for none."""
    since = min(filter(None, times), default=None)
    return 0.0 if since is None else max(0.0, clock() - since)


def _mean_recall(tenants: Tenants[Service]) -> float:
    """Return the mean of the sampled recalls of all tenants that have one; NaN if none has."""
    sampled = [service.index.status().recall_sampled for service in tenants.services]
    known = [recall for recall in sampled if not math.isnan(recall)]
    return sum(known) / len(known) if known else math.nan
