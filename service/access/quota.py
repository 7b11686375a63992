"""Use of a quota, and how long its key has to wait: a sliding window of one minute.

Usage is counted in whole minutes. Of the minute before the present one, the share counts that still lies within the
last 60 seconds: a caller cannot use twice its quota around the turn of a minute, and two numbers are kept for it.

Tokens are known once they are used, and one request may use many times the quota of them. What exceeds the quota is
carried over to the next minute, and so on: whoever sends one large list after the other keeps to the quota, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.access.principal import Quota

WINDOW_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Counted:
    """Use in the minute before, and in the present one, of which `elapsed` seconds are over. `drained`: use that leaves
    the window with each further minute, the rest is carried over; None: all of it leaves."""

    before: int
    present: int
    elapsed: float
    drained: int | None = None

    @property
    def used(self) -> float:
        """Use in the last minute, as it is estimated."""
        return self.before * (1 - self.elapsed / WINDOW_SECONDS) + self.present

    def seconds_until(self, allowed: float) -> float:
        """Seconds until no more than `allowed` is used, if nothing is used meanwhile; 0 where that is so."""
        if self.used <= allowed:
            return 0.0
        left = WINDOW_SECONDS - self.elapsed
        if self.present <= allowed:  # so `before` is what is too much
            return left - WINDOW_SECONDS * (allowed - self.present) / self.before
        minutes = math.ceil((self.present - allowed) / (self.drained or self.present))
        before, present = carry_over(self.present, minutes, self.drained)
        return left + WINDOW_SECONDS * (minutes - (allowed - present) / before)


def carry_over(use: int, minutes: int, drained: int | None = None) -> tuple[int, int]:
    """Return the use of the minute before and of the present one, `minutes` after a minute with that `use`, if nothing
    was used since. `drained`: as in Counted."""
    leaving = use if drained is None else drained
    present = max(0, use - minutes * leaving)
    return max(0, use - (minutes - 1) * leaving) - present, present


@dataclass(frozen=True, slots=True)
class Usage:
    """Requests and tokens of a key in the last minute, this request included where it is `allowed`."""

    allowed: bool
    requests: Counted
    tokens: Counted

    def seconds_to_wait(self, quota: Quota, requests: int = 1) -> float:
        """Seconds until `requests` further ones are allowed, no more than the quota has, if the key uses nothing
        meanwhile."""
        waits = [0.0]
        if quota.requests_per_minute is not None:
            waits.append(self.requests.seconds_until(quota.requests_per_minute - requests))
        if quota.tokens_per_minute is not None:
            waits.append(self.tokens.seconds_until(quota.tokens_per_minute - 1))
        return max(waits)


class OwnUse:
    """Use of a key by the requests of this process, over the window by which the store counts those of all."""

    def __init__(self) -> None:
        self._minute = 0.0
        self._requests = self._tokens = (0, 0)
        """Requests, and tokens, of the minute before and of the present one."""

    def count(self, now: float, quota: Quota, requests: int, tokens: int) -> Usage:
        """Count as QuotaStore.count does. `now`: seconds of a clock that does not go back."""
        minute, elapsed = divmod(now, WINDOW_SECONDS)
        if minutes := int(minute - self._minute):
            self._minute = minute
            self._requests = carry_over(self._requests[1], minutes)
            self._tokens = carry_over(self._tokens[1], minutes, quota.tokens_per_minute)
        allowed = self._usage(True, elapsed, quota).seconds_to_wait(quota, max(1, requests)) == 0
        self._requests = (self._requests[0], self._requests[1] + (requests if allowed else 0))
        self._tokens = (self._tokens[0], self._tokens[1] + tokens)
        return self._usage(allowed, elapsed, quota)

    def _usage(self, allowed: bool, elapsed: float, quota: Quota) -> Usage:
        requests, tokens = self._requests, self._tokens
        return Usage(allowed, Counted(*requests, elapsed), Counted(*tokens, elapsed, quota.tokens_per_minute))
