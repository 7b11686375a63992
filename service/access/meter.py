"""Quotas of keys: each request of a key that has one is counted, and so are the tokens that it has used.

Where the store does not answer in time, requests go on uncounted: a quota protects from too much use, and is not worth
an outage. Tokens are known when a request ends; requests that run side by side may so exceed the quota once, and the
key waits for it afterwards.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace

from service.access.ports import QuotaStore
from service.access.principal import Principal, Quota
from service.access.quota import Usage
from service.errors import QuotaExceeded, StoreUnavailable
from service.telemetry import Telemetry

COUNT_SECONDS = 0.25
"""How long a request waits to be counted."""
RETRY_SECONDS = 1.0
"""How long nothing is counted after the store did not answer."""


class Meter:
    """Counts what the callers of a process use."""

    def __init__(self, telemetry: Telemetry, now: Callable[[], float] = time.monotonic) -> None:
        self._telemetry = telemetry
        self._now = now
        self._store: QuotaStore | None = None
        self._away_until = -math.inf
        self._counting: set[asyncio.Task[Usage]] = set()
        """Counts that are under way: the event loop alone would not keep them."""

    def connect(self, store: QuotaStore) -> None:
        """Count in a store from now on; before that nothing is counted."""
        self._store = store

    async def take(self, principal: Principal, requests: int = 1) -> Usage | None:
        """Count requests of a key that has a quota, if that allows all of them; return the key's use, None where the
        store is away."""
        usage = await self._usage(self._count(principal, requests=requests))
        if usage is None:
            self._telemetry.uncounted.inc()
        return usage

    async def check(self, principal: Principal) -> None:
        """Raise QuotaExceeded where a key has used up its quota. No request is counted."""
        if not principal.quota:
            return
        usage = await self._usage(self._count(principal))
        if usage and not usage.allowed:
            raise QuotaExceeded(usage.seconds_to_wait(principal.quota))

    async def check_tokens(self, principal: Principal) -> None:
        """Raise QuotaExceeded where a key has used up its tokens. No request is counted."""
        await self.check(replace(principal, quota=Quota(tokens_per_minute=principal.quota.tokens_per_minute)))

    async def _usage(self, counting: asyncio.Task[Usage] | None) -> Usage | None:
        """Return what a count says; None where nothing is counted, or the store does not answer in time."""
        if counting is None:
            return None
        await asyncio.wait({counting}, timeout=COUNT_SECONDS)
        if not counting.done() or isinstance(counting.exception(), StoreUnavailable):
            self._away_until = self._now() + RETRY_SECONDS
            return None
        return counting.result()

    def charge(self, principal: Principal, tokens: int) -> None:
        """Count tokens that a key has used. Nobody waits for it."""
        if tokens and principal.quota.tokens_per_minute is not None and not self._count(principal, tokens=tokens):
            self._telemetry.uncounted.inc()

    def _count(self, principal: Principal, requests: int = 0, tokens: int = 0) -> asyncio.Task[Usage] | None:
        """Begin to count; None where nothing is counted at present."""
        if self._store is None or principal.key is None or self._now() < self._away_until:
            return None
        count = self._store.count(principal.key, principal.quota, requests, tokens)
        counting = asyncio.create_task(count, name="count-use")
        self._counting.add(counting)
        counting.add_done_callback(self._end_count)
        return counting

    def _end_count(self, counting: asyncio.Task[Usage]) -> None:
        self._counting.discard(counting)
        if not counting.cancelled():
            counting.exception()  # marks it as retrieved
