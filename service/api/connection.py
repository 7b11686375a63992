"""Work that is cancelled when its caller disconnects or its deadline passes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from service.admission import Urgency
from service.errors import DeadlineExceeded

T = TypeVar("T")
UNWATCHED_SECONDS = 0.02
"""Seconds before the caller of a piece of work is watched. Most writes are done by then, and watching costs as much as
reading a note."""


class CallerLeft(Exception):
    """The caller disconnected before the answer was ready."""


async def while_connected(request: Request, urgency: Urgency, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, which is cancelled when the caller disconnects or its deadline passes.

    Read the body first: watching receives everything that arrives of the request, and would consume parts of the body.
    Raises CallerLeft, DeadlineExceeded.
    """
    task = asyncio.ensure_future(work)
    left: asyncio.Future[None] | None = None
    try:
        await asyncio.wait({task}, timeout=min(UNWATCHED_SECONDS, seconds_left(urgency)))
        if not task.done():
            left = asyncio.ensure_future(_disconnected(request))
            await asyncio.wait({task, left}, timeout=seconds_left(urgency), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise CallerLeft if left and left.done() else DeadlineExceeded(urgency.seconds)
    finally:
        if left:
            left.cancel()
        task.cancel()


def seconds_left(urgency: Urgency) -> float:
    """Return the seconds until the deadline of a request; 0 after it."""
    return max(0.0, urgency.deadline - time.monotonic())


async def _disconnected(request: Request) -> None:
    """Return once the caller has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
