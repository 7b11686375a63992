"""Blocking calls of the index, awaited from the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


async def run_in(threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    """Return what `call` returns in one of the pool's threads. Its log lines are those of the caller."""
    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, call)


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
