"""A rolling restart of two services, one with a reader process, behind a balancer that asks /readyz: no request is
refused."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.service.conftest import DebianRedis
from tests.service.process import Process, running, wait_until

pytestmark = pytest.mark.slow

CALLERS = 4
CALL_PAUSE = 0.02
"""Seconds between two calls of a caller: without a pause the callers would leave the starts little processor time."""
POLL_SECONDS = 0.05
DRAIN_SECONDS = "5"
"""Long enough for many polls, since the machine of the tests may be busy."""


class Balancer:
    """Sends each call to a process that was ready at the last poll, over keep-alive connections."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes
        self._ready: list[Process] = []
        self._ending = threading.Event()
        self.answers: list[int] = []
        """Status of each call; 0 if the connection was refused or broken."""

    def knows(self, *ready: Process) -> bool:
        return set(self._ready) == set(ready)

    @contextlib.contextmanager
    def under_load(self) -> Iterator[None]:
        with ThreadPoolExecutor(CALLERS + 1) as threads:
            threads.submit(self._poll)
            try:
                wait_until(lambda: self.knows(*self._processes))
                callers = [threads.submit(self._call, seed) for seed in range(CALLERS)]
                yield
            finally:
                self._ending.set()
        for caller in callers:
            caller.result()

    def _poll(self) -> None:
        while not self._ending.wait(POLL_SECONDS):
            self._ready = [process for process in self._processes if self._is_ready(process)]

    @staticmethod
    def _is_ready(process: Process) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(f"{process.url}/readyz", timeout=5).status_code == 200
        return False

    def _call(self, seed: int) -> None:
        rng = random.Random(seed)
        with httpx2.Client(timeout=60) as client:
            while not self._ending.wait(CALL_PAUSE):
                url = rng.choice(self._ready).url
                try:
                    answer = client.post(f"{url}/notes", json={"title": f"rolling {rng.random()}"})
                    self.answers.append(answer.status_code)
                except httpx2.TransportError:
                    self.answers.append(0)


def test_rolling_restart_refuses_no_request(tiny_checkpoint: Path, guarded_redis: DebianRedis) -> None:
    settings = {"NOTELLM_REDIS_URL": guarded_redis.url, "NOTELLM_DRAIN_SECONDS": DRAIN_SECONDS}
    with (
        running(tiny_checkpoint, **settings) as one,
        running(tiny_checkpoint, **settings, NOTELLM_READERS="1") as other,
    ):
        balancer = Balancer([one, other])
        with balancer.under_load():
            for process in (one, other):
                process.end(signal.SIGTERM)
                process.start()
                wait_until(lambda: balancer.knows(one, other))
        assert len(balancer.answers) > 100
        assert set(balancer.answers) == {201}
