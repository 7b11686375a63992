"""Metering of quotas: counts the requests, and the tokens, of each key that has a quota.

While the store is unavailable or late with a count, requests are admitted as far as this process's own counts of their
key allow: a quota is not worth an outage, and the callers themselves can make the store slow. The store counts as
unavailable once it has not answered within the time-out of its connection, 5 s. Tokens are known only when a request
ends: it may exceed the quota, and the key has to wait afterwards.
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
"""Maximum wait of a request to be counted."""
RETRY_SECONDS = 1.0
"""Seconds for which nothing is counted in the store after it was unavailable, or did not answer before the time-out."""


class Meter:
    """Counts the requests and tokens of a process's callers."""

    def __init__(self, telemetry: Telemetry, now: Callable[[], float] = time.monotonic) -> None:
        self._telemetry = telemetry
        self._now = now
        self._store: QuotaStore | None = None
        self._unavailable_until = -math.inf
        self._counting: set[asyncio.Task[Usage]] = set()
        """Counts in progress: the event loop holds only weak references to tasks."""
        self._late: set[str] = set()
        """Keys with a count that the store has not answered for longer than COUNT_SECONDS. Until it answers, no further
        count of such a key is sent to it."""
        self._own: dict[str, OwnUse] = {}
        """Usage of keys by the requests of this process."""

    def connect(self, store: QuotaStore) -> None:
        """Count in a store from now on; before, only this process counts."""
        self._store = store

    async def take(self, principal: Principal, requests: int = 1, *, spends_tokens: bool = True) -> Usage | None:
        """Count requests of a key that has a quota, if that allows all of them. `spends_tokens`: whether they can use
        tokens. Return the key's usage; None if the requests are admitted without an answer of the store."""
        usage = await self._usage(principal, requests, spends_tokens=spends_tokens)
        if usage is None:
            self._telemetry.uncounted.inc()
        return usage

    async def check(self, principal: Principal, *, spends_tokens: bool = True) -> None:
        """Raise QuotaExceeded if the quota of a key has no room for a request. `spends_tokens`: whether it can use
        tokens. No request is counted."""
        if not principal.quota:
            return
        usage = await self._usage(principal, spends_tokens=spends_tokens)
        if usage and not usage.allowed:
            raise QuotaExceeded(usage.waits(principal.quota, spends_tokens=spends_tokens))

    async def check_tokens(self, principal: Principal) -> None:
        """Raise QuotaExceeded if a key has used up its tokens. No request is counted."""
        await self.check(replace(principal, quota=Quota(tokens_per_minute=principal.quota.tokens_per_minute)))

    async def _usage(self, principal: Principal, requests: int = 0, *, spends_tokens: bool = True) -> Usage | None:
        """Count requests, and return the key's usage in the store. If the store is unavailable or late, return the
        usage in this process if that refuses the requests, and None if they are admitted."""
        key, quota = principal.key, principal.quota
        if key is None:
            return None
        own = self._own_use(key).count(self._now(), quota, requests, 0, spends_tokens=spends_tokens)
        if self._counts and key not in self._late:
            counting = self._begin(key, quota, requests, 0, spends_tokens=spends_tokens)
            await asyncio.wait({counting}, timeout=COUNT_SECONDS)
            if not counting.done():
                self._late.add(key)
                counting.add_done_callback(lambda _: self._late.discard(key))
            elif not _failed(counting):
                return counting.result()
        return None if own.allowed else own

    def charge(self, principal: Principal, tokens: int) -> None:
        """Count tokens that a key has used, without waiting for the store."""
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
        """Whether a store is connected and has not been unavailable in the last RETRY_SECONDS."""
        return self._store is not None and self._now() >= self._unavailable_until

    def _own_use(self, key: str) -> OwnUse:
        if key not in self._own and len(self._own) >= MAX_KEYS:
            del self._own[next(iter(self._own))]  # keys come and go: drops the one that was used first
        return self._own.setdefault(key, OwnUse())

    def _begin(
        self, key: str, quota: Quota, requests: int, tokens: int, *, spends_tokens: bool = True
    ) -> asyncio.Task[Usage]:
        """Start a count in the store; return its task."""
        assert self._store is not None
        count = self._store.count(key, quota, requests, tokens, spends_tokens=spends_tokens)
        counting = asyncio.create_task(count, name="count-use")
        self._counting.add(counting)
        counting.add_done_callback(partial(self._end_count, tokens))
        return counting

    def _end_count(self, tokens: int, counting: asyncio.Task[Usage]) -> None:
        self._counting.discard(counting)
        if _failed(counting):
            self._unavailable_until = self._now() + RETRY_SECONDS
            if tokens:  # nobody waits for a count of tokens; `take` reports one of requests
                self._telemetry.uncounted.inc()


def _failed(counting: asyncio.Task[Usage]) -> bool:
    """Return whether a count, which is done, failed because the store is unavailable."""
    return not counting.cancelled() and isinstance(counting.exception(), StoreUnavailable)
