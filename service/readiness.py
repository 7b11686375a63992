"""Whether this process may serve: /readyz and the gauge notellm_ready give the same answer."""

from __future__ import annotations

from service.container import Service
from service.lifecycle import Lifecycle
from service.reader_processes import ReaderProcesses
from service.tenants import Tenants


def is_ready(lifecycle: Lifecycle, tenants: Tenants[Service], readers: ReaderProcesses) -> bool:
    """Return whether the process has started and is not draining, the store answered the last request of its probe, all
    indexes follow the log, the engine makes progress, and each reader process was ready once or has ended."""
    if not lifecycle.started or lifecycle.draining:
        return False
    service = tenants.default
    return service.store_probe.answers and tenants.ready and readers.tried and not service.batcher.is_stuck
