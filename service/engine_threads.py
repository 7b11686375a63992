"""Threads of the engine: they give way to those that answer requests.

The engine keeps all cores busy. Where a read needs a core for a millisecond it gets one at once, which goodput does not
show (docs/log/operations.md).
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import structlog

log = structlog.get_logger(__name__)

NICENESS = 10
"""By how much less the scheduler favours a thread of the engine."""


def engine_thread(name: str) -> ThreadPoolExecutor:
    """Return a thread for calls of the engine. Threads that these start, as OpenVINO's do, are as nice as it is."""
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_give_way)


def _give_way() -> None:
    if sys.platform == "linux":  # elsewhere niceness is the whole process's
        thread = threading.get_native_id()
        try:
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
        except OSError as error:  # a sandbox may forbid it
            log.warning("engine_not_nice", detail=str(error))
