"""Use of a quota, and how long its key has to wait: a sliding window of one minute.

Usage is counted in whole minutes. Of the minute before the present one, the share counts that still lies within the
last 60 seconds: a caller cannot use twice its quota around the turn of a minute, and two numbers are kept for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.access.principal import Quota

WINDOW_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Counted:
    """Use in the minute before, and in the present one, of which `elapsed` seconds are over."""

    before: int
    present: int
    elapsed: float

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
        return left + WINDOW_SECONDS * (1 - allowed / self.present)


@dataclass(frozen=True, slots=True)
class Usage:
    """Requests and tokens of a key in the last minute, this request included where it is `allowed`."""

    allowed: bool
    requests: Counted
    tokens: Counted

    def seconds_to_wait(self, quota: Quota, requests: int = 1) -> float:
        """Seconds until so many further requests are allowed, no more than the quota has, if the key uses nothing
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
        self._before, self._present = (0, 0), (0, 0)
        """Requests and tokens of the minute before, and of the present one."""

    def count(self, now: float, quota: Quota, requests: int, tokens: int) -> Usage:
        """Count as QuotaStore.count does. `now`: seconds of a clock that does not go back."""
        minute, elapsed = divmod(now, WINDOW_SECONDS)
        if minute > self._minute:
            self._before = self._present if minute == self._minute + 1 else (0, 0)
            self._minute, self._present = minute, (0, 0)
        allowed = self._usage(True, elapsed).seconds_to_wait(quota, max(1, requests)) == 0
        self._present = (self._present[0] + (requests if allowed else 0), self._present[1] + tokens)
        return self._usage(allowed, elapsed)

    def _usage(self, allowed: bool, elapsed: float) -> Usage:
        requests, tokens = (Counted(*counts, elapsed) for counts in zip(self._before, self._present, strict=True))
        return Usage(allowed, requests, tokens)
