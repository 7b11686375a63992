"""Threads of the engine, and threads that they start, have a higher niceness than those that answer requests."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from service.engine_threads import NICENESS, engine_thread


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def niceness_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(niceness()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is that of the process")
def test_engine_thread_gives_way_with_all_that_it_starts() -> None:
    before = niceness()
    with engine_thread("engine") as thread:
        assert thread.submit(niceness).result() == min(before + NICENESS, 19)
        assert thread.submit(niceness_of_a_new_thread).result() == min(before + NICENESS, 19)
    assert niceness() == before
    assert niceness_of_a_new_thread() == before
