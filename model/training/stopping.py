"""The end of a training run by a signal: it saves first, and the same command resumes it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGTERM and on the first SIGINT (Ctrl-C) from now on; a second SIGINT raises KeyboardInterrupt.

    `stop` must only note that the run has to end: a signal arrives between any two instructions. SIGTERM may come
    again, as torchrun sends it to its processes after a Ctrl-C that they have had, too.
    """

    def handle(number: int, _: object) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            said = "stopping after this step, with a saved state; Ctrl-C again stops without saving"
            print(said, file=sys.stderr, flush=True)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
