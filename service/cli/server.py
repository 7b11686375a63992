"""Server of a process of the service: uvicorn, and the interpreter settings for it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from service.cli.address import http_url
from service.cli.certificate import Certificate
from service.lifecycle import Lifecycle
from service.reader_processes import ReaderProcesses

SWITCH_SECONDS = 0.0005
"""Seconds that a thread keeps the GIL while others want it. A request releases it at each of its system calls, and
waits that long to get it back from a thread that computes. With Python's default of 5 ms a request took 47 ms beside
such a thread, with this value 7 ms (docs/log/reads.md)."""


TICKS_A_SECOND = 10
GC_THRESHOLDS = (700, 5, 3000)
"""Garbage collection thresholds; Python's defaults are (700, 10, 10). The event loop stops during a collection: for 50
ms with 10,000 young objects of new connections, so that few are collected at a time. A full collection walks through
all connections, for 160 ms with 10,000 of them; few objects of a request are in a cycle, so that it is rarely needed
(docs/log/operations.md)."""


@contextlib.contextmanager
def import_uncollected() -> Iterator[None]:
    """Suspend garbage collection during an import, and exempt what was imported from later collections.

    torch and transformers make about a million objects that live as long as the process. Collections during the import
    take a tenth of the start, and each later full collection would walk through all of them again.
    """
    gc.disable()
    try:
        yield
    finally:
        exempt_imports()
        gc.enable()


def exempt_imports() -> None:
    """Exempt what was imported from garbage collection, and set GC_THRESHOLDS."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def end_by_sigterm_as_first_process() -> None:
    """Have SIGTERM end this process if it is the first one of a container, with the exit status that other processes
    get from it. The kernel delivers to a first process only signals for which it has a handler. Otherwise SIGTERM would
    be dropped before uvicorn installs its own handler, and so would the signal with which uvicorn ends the process
    after it has restored this one."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))


class Server(uvicorn.Server):
    """Serves on sockets that are already bound, and drains before it ends. `at_start` is called with its URL once the
    app has started.

    After SIGTERM requests are served for `drain_seconds` more, while /readyz tells load balancers to send no more; a
    second signal, or Ctrl-C, skips that. A failed start ends the server. `at_end` is called last: uvicorn then ends the
    process by the signal that it received, so that no other clean-up runs. `certificate`: for HTTPS; None for HTTP.
    `readers` drain together with the server, and end before it, so that it answers what they forward.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: Lifecycle,
        drain_seconds: float,
        certificate: Certificate | None,
        at_start: Callable[[str], None],
        at_end: Callable[[], None],
        readers: ReaderProcesses,
    ) -> None:
        super().__init__(config)
        self._certificate = certificate
        self._lifecycle = lifecycle
        self._drain_seconds = drain_seconds
        self._at_start = at_start
        self._at_end = at_end
        self._readers = readers
        self._said_where = False
        self._close_at = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if sig == signal.SIGTERM and self._lifecycle.started and not self._lifecycle.draining:
            self.should_exit = False
            self._lifecycle.draining = True
            self._readers.drain()
            self._close_at = time.monotonic() + self._drain_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if listener := self._readers.listen():
            loop = asyncio.get_running_loop()
            serving = await loop.create_unix_server(self._connection, sock=listener, backlog=self.config.backlog)
            self.servers.append(serving)

    def _connection(self) -> asyncio.Protocol:
        """Return the protocol of a reader process's connection, made as uvicorn makes that of a caller's."""
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(self.config, self.server_state, self.lifespan.state)
        return protocol

    async def on_tick(self, counter: int) -> bool:
        """Run ten times a second; return whether to close the listener and end."""
        if self._lifecycle.started and not self._said_where:
            self._said_where = True
            host, port, *_ = self.servers[0].sockets[0].getsockname()
            self._at_start(http_url(host, port, tls=self._certificate is not None))
        if self._certificate and counter % TICKS_A_SECOND == 0:
            self._certificate.reload_if_changed()
        self.should_exit |= self._lifecycle.failure is not None or time.monotonic() >= self._close_at
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._lifecycle.draining = True
        seconds, began = self.config.timeout_graceful_shutdown or 0, time.monotonic()
        await self._readers.stop(seconds)
        self.config.timeout_graceful_shutdown = max(1, seconds - int(time.monotonic() - began))
        await super().shutdown(sockets)
        self._at_end()
