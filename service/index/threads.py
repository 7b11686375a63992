"""Threads of the index: blocking calls that are awaited from the event loop, and work that two threads share."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import TypeVar

from model.cores import usable_cores
from service.index.native import use_one_faiss_thread

T = TypeVar("T")
Item = TypeVar("Item")


async def run_in(threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    """Return what `call` returns in one of the pool's threads. It runs in a copy of the caller's context, so that its
    log lines have the caller's fields."""
    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, call)


class IndexWriter:
    """Runs the calls that change the notes of an index, one at a time: in a thread of its own, or in the event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index-write")
        self._exclusive = threading.Lock()
        """Held by the call that runs."""

    async def run(self, call: Callable[[], T]) -> T:
        """Return what `call` returns in the thread."""

        def run_alone() -> T:
            with self._exclusive:
                return call()

        return await run_in(self._thread, run_alone)

    async def run_short(self, call: Callable[[], T]) -> T:
        """Return what `call` returns. It runs in the event loop, unless another call is running. `call` must be shorter
        than the wait for the thread beside a busy event loop."""
        if not self._exclusive.acquire(blocking=False):
            return await self.run(call)
        try:
            return call()
        finally:
            self._exclusive.release()

    def shutdown(self) -> None:
        """End the thread once its calls are done."""
        self._thread.shutdown()


async def run_in_daemon(call: Callable[[], None]) -> None:
    """Run `call` in a daemon thread of its own: a process that ends does not wait for a long merge or a snapshot, which
    can be made again."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def resolve(error: BaseException | None) -> None:
        if done.done():  # cancelled: nobody waits any more
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            call()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(resolve, error)

    threading.Thread(target=copy_context().run, args=(run,), name="index-work", daemon=True).start()
    await done


def map_in_two_threads(call: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
    """Return the results of `call` for each item, in their order, computed by this thread and a helper thread. Each
    takes the next item that neither has begun. This thread never waits for a helper that has not started, so that any
    number of searches make progress."""
    left = deque(enumerate(items))
    results: dict[int, T] = {}

    def work() -> None:
        while True:
            try:
                place, item = left.popleft()
            except IndexError:  # nothing is left
                return
            results[place] = call(item)

    beside = _helpers().submit(work)
    try:
        work()
    finally:
        left.clear()
        if not beside.cancel():
            beside.result()
    return [results[place] for place in range(len(items))]


@cache
def _helpers() -> ThreadPoolExecutor:
    """Return a pool of helper threads: one fewer than there are usable cores, at least one."""
    count = max(1, usable_cores() - 1)
    return ThreadPoolExecutor(count, thread_name_prefix="index-help", initializer=use_one_faiss_thread)
