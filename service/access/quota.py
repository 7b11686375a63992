"""Usage of a quota over a sliding window of one minute, and how long its key has to wait.

Usage is counted per minute. The count of the previous minute is weighted by the share of it that lies within the last
60 seconds: a caller cannot use twice its quota around the boundary of two minutes, and only two numbers are kept for
this.

Tokens are known only once they are used, and one request may use many times the quota of tokens. What exceeds the quota
is carried over to the next minute, and so on: a caller who sends one large list after another keeps to the quota, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.access.principal import Quota

WINDOW_SECONDS = 60


@dataclass(frozen=True, slots=True)
class WindowCount:
    """Usage in the previous minute, and in the current one, of which `elapsed` seconds have passed. `drained`: usage
    that leaves the window with each further minute, while the rest is carried over; None: all of it leaves."""

    before: int
    present: int
    elapsed: float
    drained: int | None = None

    @property
    def used(self) -> float:
        """Estimated usage in the last minute."""
        return self.before * (1 - self.elapsed / WINDOW_SECONDS) + self.present

    def seconds_until(self, allowed: float) -> float:
        """Return the seconds until usage is at most `allowed`, if nothing is used meanwhile; 0 if it is already."""
        if self.used <= allowed:
            return 0.0
        left = WINDOW_SECONDS - self.elapsed
        if self.present <= allowed:  # so the excess is in `before`
            return left - WINDOW_SECONDS * (allowed - self.present) / self.before
        minutes = math.ceil((self.present - allowed) / (self.drained or self.present))
        before, present = carry_over(self.present, minutes, self.drained)
        return left + WINDOW_SECONDS * (minutes - (allowed - present) / before)


def carry_over(use: int, minutes: int, drained: int | None = None) -> tuple[int, int]:
    """Return the usage of the previous and of the current minute, `minutes` after a minute with usage `use`, if nothing
    was used since. `drained`: as in WindowCount."""
    leaving = use if drained is None else drained
    present = max(0, use - minutes * leaving)
    return max(0, use - (minutes - 1) * leaving) - present, present


@dataclass(frozen=True, slots=True)
class Usage:
    """Requests and tokens of a key in the last minute, this request included where it is `allowed`."""

    allowed: bool
    requests: WindowCount
    tokens: WindowCount

    def waits(self, quota: Quota, requests: int = 1, *, spends_tokens: bool = True) -> dict[str, float]:
        """Return the seconds until each part of a quota allows `requests` more requests, at most the quota, if the key
        uses nothing meanwhile. `spends_tokens`: whether they can use tokens; if not, those of the quota need not
        suffice."""
        waits = {}
        if quota.requests_per_minute is not None:
            waits["requests"] = self.requests.seconds_until(quota.requests_per_minute - requests)
        if spends_tokens and quota.tokens_per_minute is not None:
            waits["model tokens"] = self.tokens.seconds_until(quota.tokens_per_minute - 1)
        return waits

    def seconds_to_wait(self, quota: Quota, requests: int = 1, *, spends_tokens: bool = True) -> float:
        """Return the longest of `waits`; 0 for a quota without parts."""
        return max(self.waits(quota, requests, spends_tokens=spends_tokens).values(), default=0.0)


class OwnUse:
    """Usage of a key by the requests of this process, over the same window as the store's counts of all replicas."""

    def __init__(self) -> None:
        self._minute = 0.0
        self._requests = self._tokens = (0, 0)
        """Requests and tokens of the previous and of the current minute."""

    def count(self, now: float, quota: Quota, requests: int, tokens: int, *, spends_tokens: bool = True) -> Usage:
        """Count as QuotaStore.count does. `now`: seconds of a monotonic clock."""
        minute, elapsed = divmod(now, WINDOW_SECONDS)
        if minutes := int(minute - self._minute):
            self._minute = minute
            self._requests = carry_over(self._requests[1], minutes)
            self._tokens = carry_over(self._tokens[1], minutes, quota.tokens_per_minute)
        so_far = self._usage(True, elapsed, quota)
        allowed = so_far.seconds_to_wait(quota, max(1, requests), spends_tokens=spends_tokens) == 0
        self._requests = (self._requests[0], self._requests[1] + (requests if allowed else 0))
        self._tokens = (self._tokens[0], self._tokens[1] + tokens)
        return self._usage(allowed, elapsed, quota)

    def _usage(self, allowed: bool, elapsed: float, quota: Quota) -> Usage:
        requests, tokens = self._requests, self._tokens
        return Usage(allowed, WindowCount(*requests, elapsed), WindowCount(*tokens, elapsed, quota.tokens_per_minute))
