"""The process of `notellm serve`: uvicorn, and how Python is set up for it."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from service.cli.address import http_url
from service.cli.terminal import err

SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter while others want it. A request gives it up at each of its system calls, and
waits that long to get it back from a thread that computes. With Python's default of 5 ms it took 47 ms beside such a
thread, with this value 7 ms (docs/log/reads.md)."""


@contextlib.contextmanager
def import_uncollected() -> Iterator[None]:
    """Suspend garbage collection during an import, and exempt what was imported from later collections.

    torch and transformers make about a million objects that live as long as the process. Collections while they are
    made take a tenth of the start, and each full collection afterwards would walk through all of them again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class Server(uvicorn.Server):
    """Says where it listens once it does, and calls `at_end` as the last thing: after its shutdown uvicorn ends the
    process by the signal that asked for it, so that no other clean-up runs."""

    def __init__(self, config: uvicorn.Config, at_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._at_end = at_end

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            url = http_url(*self.servers[0].sockets[0].getsockname()[:2])
            err.print(f"NoteLLM serves on {url}  (documentation: /docs, end: Ctrl-C)", highlight=False)

    async def shutdown(self, sockets: Any = None) -> None:
        await super().shutdown(sockets)
        self._at_end()
