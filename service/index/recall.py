"""RecallSampler: measures the recall of searches in production, by repeating a sample of them exactly."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from service.index.state import IndexState
from service.index.threads import run_in
from service.records import Hit

SAMPLE_SECONDS = 5.0
"""Time between two samples: an exact search compares every row."""
SAMPLES = 100
"""Number of latest samples over which the mean is taken."""
SAME_SCORE = 1e-6
"""Scores that differ by less count as equal: two ways of computing them round differently."""


class RecallSampler:
    """Repeats a search exactly every SAMPLE_SECONDS, and records the share of the true neighbours that it found."""

    def __init__(self, state: IndexState, searchers: ThreadPoolExecutor) -> None:
        self.task: asyncio.Task[None] | None = None
        """The running comparison, or the last one."""
        self._state = state
        self._searchers = searchers
        self._recalls: deque[float] = deque(maxlen=SAMPLES)
        self._sampled_at = -math.inf

    @property
    def mean(self) -> float:
        """Mean recall of the last samples, NaN before the first."""
        return float(np.mean(self._recalls)) if self._recalls else math.nan

    def offer(self, hits: Sequence[Hit], position: str, search_exactly: Callable[[], list[Hit]]) -> None:
        """Compare `hits`, found at the log position `position`, with an exact search, if a sample is due."""
        idle = self.task is None or self.task.done()
        if hits and idle and time.monotonic() > self._sampled_at + SAMPLE_SECONDS:
            self._sampled_at = time.monotonic()
            self.task = asyncio.create_task(self._compare(hits, position, search_exactly), name="sample-recall")

    async def _compare(self, hits: Sequence[Hit], position: str, search_exactly: Callable[[], list[Hit]]) -> None:
        exact = await run_in(self._searchers, search_exactly)
        unchanged = position == self._state.position  # else a write may explain the difference
        if unchanged and exact:
            lowest_score = exact[-1].score - SAME_SCORE
            neighbours = sum(hit.score >= lowest_score for hit in hits)
            self._recalls.append(min(1.0, neighbours / len(exact)))
