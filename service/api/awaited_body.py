"""AwaitedBody: the `receive` of one request, which knows whether the app waits for more of the body."""

from __future__ import annotations

import weakref
from typing import cast

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class AwaitedBody:
    """Returns the messages of the request `cycle`.

    `is_awaited`: whether the app waits for a message. The reference to `cycle` is weak, since `cycle` has this object
    as an attribute: otherwise only a garbage collection would free them. The task that runs the app keeps `cycle`
    alive.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._receive = weakref.WeakMethod(cycle.receive)
        self._waiting = 0

    @property
    def is_awaited(self) -> bool:
        return self._waiting > 0

    async def __call__(self) -> Message:
        receive = self._receive()
        if receive is None:  # the app has ended
            return {"type": "http.disconnect"}
        self._waiting += 1
        try:
            return cast(Message, await receive())
        finally:
            self._waiting -= 1
