"""Work that ends when its caller leaves or its time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from service.errors import DeadlineExceeded

T = TypeVar("T")


class CallerLeft(Exception):
    """The connection was closed before the answer was ready; nobody reads one."""


async def while_connected(request: Request, seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, which is cancelled when the caller leaves or after `seconds`.

    Raises CallerLeft, DeadlineExceeded.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise CallerLeft if left.done() else DeadlineExceeded(seconds)
    finally:
        left.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    """Return once the caller has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
