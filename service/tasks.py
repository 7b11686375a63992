"""Cancellation of asyncio tasks."""

from __future__ import annotations

import asyncio
from typing import Any


async def cancel_until_done(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task repeatedly until it has ended: the Redis client may swallow a cancellation."""
    while task and not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
