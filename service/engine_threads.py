"""Threads of the engine, with a lower priority than those that answer requests.

The engine keeps all cores busy. With lower priority for its threads, a read that needs a core for a millisecond gets
one at once, without a measurable loss of goodput (docs/log/operations.md).
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import structlog

log = structlog.get_logger(__name__)

NICENESS = 10
"""Nice value added to a thread of the engine."""


def engine_thread(name: str) -> ThreadPoolExecutor:
    """Return an executor with one thread for calls of the engine. Threads that these calls start, such as OpenVINO's,
    inherit its niceness."""
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_lower_priority)


def _lower_priority() -> None:
    if sys.platform == "linux":  # elsewhere niceness is the whole process's
        thread = threading.get_native_id()
        try:
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
        except OSError as error:  # a sandbox may forbid it
            log.warning("engine_not_nice", detail=str(error))
