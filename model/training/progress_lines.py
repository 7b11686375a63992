"""Lines of progress of a long training command, at most one a minute."""

from __future__ import annotations

import math
import time

SECONDS = 60.0
"""Minimum time between two lines."""


class ProgressLines:
    """Prints how far a run is: after its first step, and then once a minute."""

    def __init__(self) -> None:
        self._said_at = -math.inf

    def tell(self, step: int, loss: float, seconds: float) -> None:
        """Print the number and the loss of a step, and the seconds that all steps of the run have taken."""
        if time.monotonic() - self._said_at >= SECONDS:
            self._said_at = time.monotonic()
            print(f"step {step}: loss {loss:.3f}, {seconds / 60:.0f} minutes of training", flush=True)
