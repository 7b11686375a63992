"""UnsentAnswers: bounds on how slowly a caller takes its answers, and on the unsent bytes of all callers together.

An answer may have megabytes, which wait in memory. Bytes count as taken once the operating system has them; the caller
may get them later. Under the service's own TLS an answer that is written in one piece counts as taken at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import ClassVar

ANSWER_SECONDS = 30.0
"""Seconds for which a caller may take nothing of an answer that waits for it."""
MIN_ANSWER_RATE = 4096
"""Minimum rate at which a caller must take an answer that waits for it, in bytes a second: each byte taken moves the
deadline by 1 / MIN_ANSWER_RATE seconds, to at most ANSWER_SECONDS from now. Bytes are taken in steps: of 95 KB between
two systems with initial buffers, and of up to 400 KB if the caller's buffer grew to 6 MB while it read fast; each step
must come within ANSWER_SECONDS."""
MAX_UNSENT_BYTES = 2**28
"""Bound on the unsent bytes of all connections together, beyond FREE_UNSENT_BYTES of each; bytes written since the last
check of their connection do not count. Over it, a connection is closed if more than FREE_UNSENT_BYTES of it have waited
since its last check; checks are a second apart."""
FREE_UNSENT_BYTES = 2**17
"""Unsent bytes of a connection that do not count: twice the number after which a stream waits for its caller; under the
service's own TLS it waits after 512 KiB."""
MAX_SYSTEM_BYTES = 2**16
"""Unsent bytes that the operating system accepts from a connection. By default it would accept up to 4 MB, and more
once all of it is sent, so that a slow caller would seem to take nothing for minutes."""


class UnsentAnswers:
    """Unsent bytes of the answers of one connection, and the time that its caller has left to take them."""

    beyond_free: ClassVar[int] = 0
    """Sum of the unsent bytes beyond FREE_UNSENT_BYTES over all connections, each as of its last check."""
    __slots__ = ("_beyond_free", "_deadline", "_transport", "_waiting", "_written")

    def __init__(self, transport: asyncio.Transport, now: float) -> None:
        self._transport = transport
        self._written = 0
        """Bytes that were written since the last check."""
        self._waiting = 0
        """Bytes that were unsent at the last check."""
        self._beyond_free = 0
        """This connection's part of `beyond_free`."""
        self._deadline = now + ANSWER_SECONDS
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError):  # a Unix socket; except on Linux, also one whose caller has left
                option = (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
                transport.get_extra_info("socket").setsockopt(*option, MAX_SYSTEM_BYTES)

    def written(self, size: int) -> None:
        """Count bytes that were written to the transport."""
        self._written += size

    def check(self, now: float) -> bool:
        """Return whether to close the connection: its caller has used up its time, or more than FREE_UNSENT_BYTES have
        waited since the last check while the sum over all callers is above MAX_UNSENT_BYTES. A closed connection no
        longer counts in the sum, so that no more are closed than needed."""
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
        """Remove the connection from the sum over all connections."""
        self._count(0)

    def _count(self, beyond_free: int) -> None:
        UnsentAnswers.beyond_free += beyond_free - self._beyond_free
        self._beyond_free = beyond_free
