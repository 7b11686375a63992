"""UnsentAnswers: bounds on how slowly a caller takes its answers, and on what waits for all callers together.

An answer may have megabytes, which wait in memory. What the service writes counts as taken once the system has it; the
caller may have it later. Under the service's own TLS an answer that is written in one piece counts as taken at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import ClassVar

ANSWER_SECONDS = 30.0
"""How long a caller may take nothing of an answer that waits for it."""
MIN_ANSWER_RATE = 4096
"""Bytes a second at which a caller must take an answer that waits for it: each byte taken moves the deadline by
1 / MIN_ANSWER_RATE seconds, to at most ANSWER_SECONDS from now. Bytes are taken in steps, of 95 KB between two systems
with buffers as they are at first, and of up to 400 KB where the caller's grew to 6 MB while it took much; a step must
come within ANSWER_SECONDS."""
MAX_UNSENT_BYTES = 2**28
"""Bound on the bytes beyond FREE_UNSENT_BYTES of each connection that wait for the callers of all connections. Over it
a connection ends if more than FREE_UNSENT_BYTES of it have waited since its last check; checks are a second apart. Not
counted are the first FREE_UNSENT_BYTES of each connection, and what was written since its last check."""
FREE_UNSENT_BYTES = 2**17
"""Unsent bytes of a connection that are never too many: twice as many as after which a stream waits for its caller;
under the service's own TLS it waits after 512 KiB."""
MAX_SYSTEM_BYTES = 2**16
"""Bytes that the system takes before it sends them. By itself it would take up to 4 MB, and more once all that has
gone, so that a slow caller would seem to take nothing for minutes."""


class UnsentAnswers:
    """Bytes of answers that one connection has not sent yet, and the time that its caller has left to take them."""

    beyond_free: ClassVar[int] = 0
    """Bytes beyond FREE_UNSENT_BYTES of each connection, when each was last checked."""
    __slots__ = ("_beyond_free", "_deadline", "_transport", "_waiting", "_written")

    def __init__(self, transport: asyncio.Transport, now: float) -> None:
        self._transport = transport
        self._written = 0
        """Bytes that were written since the last check."""
        self._waiting = 0
        """Bytes that waited at the last check."""
        self._beyond_free = 0
        """This connection's part of `beyond_free`."""
        self._deadline = now + ANSWER_SECONDS
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError):  # a unix socket; and elsewhere than on Linux, one whose caller has left
                option = (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
                transport.get_extra_info("socket").setsockopt(*option, MAX_SYSTEM_BYTES)

    def written(self, size: int) -> None:
        """Count bytes that were written to the transport."""
        self._written += size

    def check(self, now: float) -> bool:
        """Return whether the connection is to end: its caller has used up its time, or has left more than
        FREE_UNSENT_BYTES since the last check while the sum over all callers is above MAX_UNSENT_BYTES. An ending
        connection no longer counts in the sum, so no more end than needed."""
        waiting = self._transport.get_write_buffer_size()
        taken = max(0, self._waiting + self._written - waiting)
        left = waiting - self._written
        self._waiting, self._written = waiting, 0
        self._count(max(0, waiting - FREE_UNSENT_BYTES))
        latest = now + ANSWER_SECONDS
        self._deadline = min(latest, self._deadline + taken / MIN_ANSWER_RATE) if waiting else latest
        too_many = left > FREE_UNSENT_BYTES and UnsentAnswers.beyond_free > MAX_UNSENT_BYTES
        ends = now >= self._deadline or too_many
        if ends:
            self.close()
        return ends

    def close(self) -> None:
        """Count nothing of the connection any more."""
        self._count(0)

    def _count(self, beyond_free: int) -> None:
        UnsentAnswers.beyond_free += beyond_free - self._beyond_free
        self._beyond_free = beyond_free
