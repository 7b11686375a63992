"""AwaitedBody: the `receive` of one request, which knows whether the app waits for more of the body."""

from __future__ import annotations

from starlette.types import Message, Receive


class AwaitedBody:
    """Returns the messages of a request. `is_awaited`: whether the app waits for one."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._waiting = 0

    @property
    def is_awaited(self) -> bool:
        return self._waiting > 0

    async def __call__(self) -> Message:
        self._waiting += 1
        try:
            return await self._receive()
        finally:
            self._waiting -= 1
