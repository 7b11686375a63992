"""Lifecycle: the phases of a process (starting, serving, draining), as its probes report them."""

from __future__ import annotations

from collections.abc import Callable


class Lifecycle:
    """Phase of one process. `show` is called with each step of the start, to display it.

    `started`: requests are served. `draining`: requests are still served, but no new ones should be sent. `failure`:
    the error with which the start failed.
    """

    def __init__(self, show: Callable[[str], None] = lambda step: None) -> None:
        self.started = False
        self.draining = False
        self.failure: BaseException | None = None
        self._show = show
        self.step = "Starting"
        """Current step of the start, without numbers."""
        self._how_far: Callable[[], str] | None = None

    def report(self, step: str, progress: Callable[[], str] | None = None) -> None:
        """Set the current step of the start. `progress`: returns its progress as a text, whenever that is queried."""
        self.step, self._how_far = step, progress
        self._show(step)

    @property
    def progress(self) -> str:
        """Current step of the start, with its progress."""
        return f"{self.step}: {self._how_far()}" if self._how_far else self.step
