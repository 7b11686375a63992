"""PurgeClaim: the right to purge a store, which one process has at a time."""

from __future__ import annotations

import secrets
import time
from typing import Any

from service.store.redis_keys import HASH_TAG
from service.store.scripts import FIRST_WRITE

CLAIM_SECONDS = 60
"""Time for which a claim holds after it was renewed: longer than any one step of a purge. After a process has died
during its purge, the next purge waits that long."""
WAIT_SECONDS = 900.0
"""Maximum wait of a purge for another one. Rewriting the file of a large store takes minutes."""
CHECK_SECONDS = 0.05
"""Pause between two attempts at the claim."""
# KEYS claim; ARGV token, seconds. Answers whether no other purge has it.
TAKE = f"""
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
{FIRST_WRITE}
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""
# KEYS claim; ARGV token, seconds. Answers whether the claim is still this one's.
RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('EXPIRE', KEYS[1], ARGV[2])"
RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])"


class PurgeError(RuntimeError):
    """A purge cannot be done; the message says why, and what to do."""


class PurgeClaim:
    """The claim of one purge. Two purges at the same time would write the same new stream of events."""

    KEY = f"{HASH_TAG}purging"

    def __init__(self, client: Any) -> None:
        self.token = secrets.token_hex(8)
        self._client = client

    def take(self) -> bool:
        """Take the claim, and return whether no other purge has it."""
        return bool(self._client.eval(TAKE, 1, self.KEY, self.token, CLAIM_SECONDS))

    def wait(self) -> None:
        """Take the claim once the purge that has it is done. Raises PurgeError after WAIT_SECONDS."""
        until = time.monotonic() + WAIT_SECONDS
        while not self.take():
            if time.monotonic() > until:
                raise PurgeError("another purge of this store is running; try again when it has ended")
            time.sleep(CHECK_SECONDS)

    def renew(self) -> None:
        """Hold the claim for CLAIM_SECONDS from now on. Raises PurgeError where it was lost."""
        if not self._client.eval(RENEW, 1, self.KEY, self.token, CLAIM_SECONDS):
            raise PurgeError(
                f"a step of the purge took longer than {CLAIM_SECONDS} s, and another purge may have begun; purge again"
            )

    def release(self) -> None:
        """Release the claim for the next purge."""
        self._client.eval(RELEASE, 1, self.KEY, self.token)
