"""HeadWithBody: sends the head of an answer together with its body."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.api.protocol import BoundedProtocol


class HeadWithBody(asyncio.Transport):
    """Transport of one answer, which sends its head together with its body. uvicorn writes them separately, and each
    write would be a system call and wake the caller. The head waits for the body, but no longer than the current
    iteration of the event loop. `has_body`: the head of an answer without one does not wait: the next answer could be
    sent before it."""

    def __init__(self, protocol: BoundedProtocol, has_body: bool) -> None:
        super().__init__()
        self._protocol = protocol
        self._transport = protocol.transport
        self._loop = protocol.loop
        self._head: bytes | None = None if has_body else b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._head is None:
            self._head = bytes(data)
            self._loop.call_soon(self._send_head)
        else:
            head, self._head = self._head, b""
            self._protocol.write(head + data if head else data)

    def _send_head(self) -> None:
        if self._head and not self._transport.is_closing():
            self.write(b"")

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._send_head()
        self._protocol.end_after_answer(self)
