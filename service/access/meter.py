"""Quotas of keys: each request of a key that has one is counted, and so are the tokens that it has used.

While the store is away, and where it answers a count late, requests go on as far as what this process has counted of
their key allows: a quota is not worth an outage, and how busy the store is depends on callers, too. Once it does not
answer for the time-out of its connection, 5 s, it counts as away. Tokens are known when a request ends: it may exceed
the quota, and the key waits for it afterwards.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from service.access.api_key import MAX_KEYS
from service.access.ports import QuotaStore
from service.access.principal import Principal, Quota
from service.access.quota import OwnUse, Usage
from service.errors import QuotaExceeded, StoreUnavailable
from service.telemetry import Telemetry

COUNT_SECONDS = 0.25
"""How long a request waits to be counted."""
RETRY_SECONDS = 1.0
"""Seconds for which the store is asked for no count after it was away, or did not answer one before the time-out."""


class Meter:
    """Counts what the callers of a process use."""

    def __init__(self, telemetry: Telemetry, now: Callable[[], float] = time.monotonic) -> None:
        self._telemetry = telemetry
        self._now = now
        self._store: QuotaStore | None = None
        self._away_until = -math.inf
        self._counting: set[asyncio.Task[Usage]] = set()
        """Counts that are under way: the event loop alone would not keep them."""
        self._late: set[str] = set()
        """Keys of which the store owes a count for longer than COUNT_SECONDS; it is not asked for another meanwhile."""
        self._own: dict[str, OwnUse] = {}
        """Use of keys by the requests of this process."""

    def connect(self, store: QuotaStore) -> None:
        """Count in a store from now on; before that this process alone counts."""
        self._store = store

    async def take(self, principal: Principal, requests: int = 1) -> Usage | None:
        """Count requests of a key that has a quota, if that allows all of them; return the key's use, None where they
        go on without an answer of the store."""
        usage = await self._usage(principal, requests)
        if usage is None:
            self._telemetry.uncounted.inc()
        return usage

    async def check(self, principal: Principal) -> None:
        """Raise QuotaExceeded where a key has used up its quota. No request is counted."""
        if not principal.quota:
            return
        usage = await self._usage(principal)
        if usage and not usage.allowed:
            raise QuotaExceeded(usage.seconds_to_wait(principal.quota))

    async def check_tokens(self, principal: Principal) -> None:
        """Raise QuotaExceeded where a key has used up its tokens. No request is counted."""
        await self.check(replace(principal, quota=Quota(tokens_per_minute=principal.quota.tokens_per_minute)))

    async def _usage(self, principal: Principal, requests: int = 0) -> Usage | None:
        """Count requests, and return what the store says of their key. Where it is away or late, return what this
        process has counted if that refuses them. None: they go on."""
        key, quota = principal.key, principal.quota
        if key is None:
            return None
        own = self._own_use(key).count(self._now(), quota, requests, 0)
        if self._counts and key not in self._late:
            counting = self._begin(key, quota, requests, 0)
            await asyncio.wait({counting}, timeout=COUNT_SECONDS)
            if not counting.done():
                self._late.add(key)
                counting.add_done_callback(lambda _: self._late.discard(key))
            elif not _failed(counting):
                return counting.result()
        return None if own.allowed else own

    def charge(self, principal: Principal, tokens: int) -> None:
        """Count tokens that a key has used. Nobody waits for it."""
        key, quota = principal.key, principal.quota
        if not tokens or key is None or quota.tokens_per_minute is None:
            return
        self._own_use(key).count(self._now(), quota, 0, tokens)
        if self._counts and key not in self._late:
            self._begin(key, quota, 0, tokens)
        else:
            self._telemetry.uncounted.inc()

    @property
    def _counts(self) -> bool:
        """Whether there is a store, which has not been away in the last RETRY_SECONDS."""
        return self._store is not None and self._now() >= self._away_until

    def _own_use(self, key: str) -> OwnUse:
        if key not in self._own and len(self._own) >= MAX_KEYS:
            del self._own[next(iter(self._own))]  # keys come and go: that of the key that was met first
        return self._own.setdefault(key, OwnUse())

    def _begin(self, key: str, quota: Quota, requests: int, tokens: int) -> asyncio.Task[Usage]:
        """Begin to count in the store."""
        assert self._store is not None
        counting = asyncio.create_task(self._store.count(key, quota, requests, tokens), name="count-use")
        self._counting.add(counting)
        counting.add_done_callback(partial(self._end_count, tokens))
        return counting

    def _end_count(self, tokens: int, counting: asyncio.Task[Usage]) -> None:
        self._counting.discard(counting)
        if _failed(counting):
            self._away_until = self._now() + RETRY_SECONDS
            if tokens:  # nobody waits for a count of tokens; `take` tells of one of requests
                self._telemetry.uncounted.inc()


def _failed(counting: asyncio.Task[Usage]) -> bool:
    """Return whether a count, which is done, failed because the store is away."""
    return not counting.cancelled() and isinstance(counting.exception(), StoreUnavailable)
