"""Lifecycle: the phases of a process, as its probes tell them: it starts, serves, drains and ends."""

from __future__ import annotations

from collections.abc import Callable


class Lifecycle:
    """Phase of one process. `show` is called with each step of the start, for people who watch it.

    `started`: requests are served. `draining`: they still are, and no new ones should be sent. `failure`: why the start
    failed.
    """

    def __init__(self, show: Callable[[str], None] = lambda step: None) -> None:
        self.started = False
        self.draining = False
        self.failure: BaseException | None = None
        self._show = show
        self.step = "Starting"
        """The present step of the start, without numbers."""
        self._how_far: Callable[[], str] | None = None

    def report(self, step: str, how_far: Callable[[], str] | None = None) -> None:
        """Take note of the next step of the start. `how_far` tells what of it is done, whenever somebody asks."""
        self.step, self._how_far = step, how_far
        self._show(step)

    @property
    def progress(self) -> str:
        """The present step of the start, and how far it is."""
        return f"{self.step}: {self._how_far()}" if self._how_far else self.step
