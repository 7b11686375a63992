"""The end of a training run by a signal: the run saves its state first, and the same command resumes it."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGTERM and on the first SIGINT (Ctrl-C) inside the context; a second SIGINT raises
    KeyboardInterrupt. The former handlers are restored afterwards.

    `stop` must only note that the run has to end: a signal arrives between any two instructions. SIGTERM may arrive
    after a SIGINT: torchrun sends it to its processes when it gets a Ctrl-C, which they have received, too.
    """

    def handle(number: int, _: object) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("the run saves after this step and ends; Ctrl-C again ends it at once", file=sys.stderr, flush=True)
        stop()

    former = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
