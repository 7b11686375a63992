"""The thread of the engine, which yields to the event loop."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

ENGINE_NICENESS = 5
"""Niceness of the engine's threads. They keep all cores busy while notes wait; the event loop, which answers reads,
needs a core for a fraction of a millisecond at a time, and gets it at once (docs/log/operations.md)."""


def engine_thread() -> ThreadPoolExecutor:
    """Return one thread for loading and running the engine. Threads that a library starts from it inherit its
    niceness."""
    return ThreadPoolExecutor(1, thread_name_prefix="engine", initializer=_yield_to_others)


def _yield_to_others() -> None:
    with contextlib.suppress(OSError, AttributeError):  # Linux alone has a niceness for each thread
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), ENGINE_NICENESS)
