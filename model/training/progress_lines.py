"""Lines of progress of a long training command, at most one a minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

SECONDS = 60.0
"""Minimum time between two lines."""


class ProgressLines:
    """Tells how far a run is, by `say`: after its first step, and then once a minute."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._said_at = -math.inf

    def tell(self, step: int, loss: float, seconds: float) -> None:
        """Tell the number and the loss of a step, and the seconds that all steps of the run have taken."""
        if time.monotonic() - self._said_at >= SECONDS:
            self._said_at = time.monotonic()
            self._say(f"step {step}: loss {loss:.3f}, {seconds / 60:.0f} minutes of training")
