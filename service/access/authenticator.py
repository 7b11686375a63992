"""Authentication: the principal of an Authorization header, from keys that the process holds in memory.

The keys are read again after CACHE_SECONDS, or slightly earlier, at the cost of one round trip for all requests in that
time. Every replica therefore honours a revocation within CACHE_SECONDS. While the store is unavailable, the keys that
were last read stay in use for up to STALE_SECONDS.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from hmac import compare_digest

from service.access.api_key import ApiKey, KeyTable, digest_of, parse_token
from service.access.ports import KeyReader
from service.access.principal import ANONYMOUS, BOOTSTRAP, Principal
from service.errors import Starting, StoreUnavailable, Unauthenticated
from service.interfaces import Clock

CACHE_SECONDS = 2.0
"""Maximum time that a change of the keys takes to reach a replica."""
AHEAD_SECONDS = 1.0
"""Age from which on `authenticate_nowait` reads the keys again in the background. If they reached CACHE_SECONDS, every
request would take the path through FastAPI, several times as slow, until they were read again, and many such requests
would delay that."""
RETRY_SECONDS = 0.1
"""Least time between two reads of the keys for tokens that match none of them: another replica may just have created
such a key."""
WAIT_SECONDS = 0.5
"""Maximum wait of a request for the keys to be read, at the beginning of an outage."""
STALE_SECONDS = 600.0
"""Time for which keys that cannot be read again are accepted: a replica that is cut off from the store learns of no
revocation."""
USED_SECONDS = 60.0
"""Minimum time between two records of a key's last use."""


KEYS_NOT_OPEN = "the store of the API keys is not open yet"


class Authenticator:
    """Authentication by the keys that one process holds. `bootstrap`: a key with all scopes that is not in the store.
    `clock`: for expiry."""

    def __init__(self, bootstrap: str | None, clock: Clock, now: Callable[[], float] = time.monotonic) -> None:
        self._bootstrap = digest_of(bootstrap) if bootstrap else None
        self.clock = clock
        self._now = now
        self._store: KeyReader | None = None
        self._table: KeyTable | None = None
        self._read_at = self._tried_at = -math.inf
        self._reading: asyncio.Task[None] | None = None
        self._hangs = False
        """Whether a request has waited for the current read in vain, so that others do not wait for it."""
        self._used: dict[str, float] = {}
        """Times of last uses that are not recorded yet, by prefix."""
        self._recorded: dict[str, float] = {}
        """When the last use of each key was recorded, by prefix."""
        self._recording: asyncio.TimerHandle | None = None

    def connect(self, store: KeyReader) -> None:
        """Use the keys of a store from now on. Until then only the bootstrap key is known."""
        self._store = store

    @property
    def table(self) -> KeyTable | None:
        """The keys as they were last read; None before that."""
        return self._table

    async def close(self) -> None:
        """Record the last uses that are not recorded yet, if the store answers in time."""
        if self._recording:
            self._recording.cancel()
        if self._used or self._reading:
            await asyncio.wait({self._read()}, timeout=WAIT_SECONDS)

    async def authenticate(self, authorization: str | None) -> Principal:
        """Return the principal of an Authorization header. Raises Unauthenticated, and StoreUnavailable or Starting if
        the keys are not known.

        A service without keys ignores a header that was meant for a proxy in front of it.
        """
        token = _bearer_token(authorization)
        if self._is_bootstrap(token):
            return BOOTSTRAP
        parsed = parse_token(token)
        arrived = self._now()
        table = await self._current()
        if parsed is None:
            if not (self._bootstrap or table.requires_key):
                return ANONYMOUS
            if authorization is None:
                raise Unauthenticated("no_key", "This service requires an API key.")
            raise Unauthenticated("malformed_key", "This is not an API key of this service (nlm_<prefix>_<secret>).")
        prefix, digest = parsed
        key = table.authenticate(prefix, digest, self.clock())
        if key is None:
            key = (await self._read_after(arrived)).authenticate(prefix, digest, self.clock())
        if key is None:
            if self._read_at < arrived:  # it may be new
                raise StoreUnavailable("the API keys cannot be read")
            raise _unknown_key()
        self._refuse_expired(key)
        self._note_use(key)
        return key.principal(digest)

    def authenticate_nowait(self, authorization: str | None) -> Principal | None:
        """Return the principal of an Authorization header, without waiting. None if `authenticate` would refuse it or
        read the keys for it."""
        token, table = _bearer_token(authorization), self._table
        if self._is_bootstrap(token):
            return BOOTSTRAP
        if table is None or self._now() - self._read_at >= CACHE_SECONDS:
            return None
        self._read_ahead()
        parsed = parse_token(token)
        if parsed is None:
            return None if self._bootstrap or table.requires_key else ANONYMOUS
        prefix, digest = parsed
        key = table.authenticate(prefix, digest, self.clock())
        if key is None or key.expired(self.clock()):
            return None
        self._note_use(key)
        return key.principal(digest)

    def _read_ahead(self) -> None:
        """Start reading the keys again if they will soon be too old."""
        now = self._now()
        if now - max(self._read_at, self._tried_at) >= AHEAD_SECONDS:
            self._read()

    async def check_again(self, principal: Principal, *, refresh: bool = False) -> Principal:
        """Return the principal of a request that was authenticated before, with the current quota of its key: a request
        may take long, since its body arrives as slowly as the caller likes. Raises Unauthenticated if the request would
        be refused now: its key was revoked, has expired or has another secret, or it has none and the service needs
        keys by now. `refresh`: read the keys again first; else they may be CACHE_SECONDS old."""
        if principal.key == BOOTSTRAP.key:
            return principal
        if refresh:
            await self.refresh()
        table = await self._current()
        if principal.key is None:
            if self._bootstrap or table.requires_key:
                raise Unauthenticated("no_key", "API keys became required during this request.")
            return principal
        key = table.authenticate(principal.key, principal.digest, self.clock())
        if key is None:
            raise _unknown_key()
        self._refuse_expired(key)
        return key.principal(principal.digest)

    def _is_bootstrap(self, token: str) -> bool:
        return self._bootstrap is not None and compare_digest(digest_of(token), self._bootstrap)

    def _refuse_expired(self, key: ApiKey) -> None:
        if key.expired(self.clock()):
            detail = "This API key has expired; a key with the scope keys.manage can extend it."
            raise Unauthenticated("expired_key", detail)

    async def refresh(self) -> None:
        """Read the keys again after a change. If the store is unavailable, they are read later."""
        if self._reading and not self._reading.done():
            await asyncio.wait({self._reading})  # it may have begun before the change
        await self._read()

    async def _current(self) -> KeyTable:
        """Return the keys, at most CACHE_SECONDS old if the store answers. Raises Starting, StoreUnavailable."""
        now = self._now()
        if now - self._read_at >= CACHE_SECONDS:
            if now - self._tried_at >= CACHE_SECONDS:
                self._read()
            if self._reading and not self._hangs:
                await asyncio.wait({self._reading}, timeout=WAIT_SECONDS)
                self._hangs = not self._reading.done()
        if self._table is None and self._reading and not self._reading.done():
            raise Starting("loading the API keys")
        if self._table is None or (self._table.requires_key and now - self._read_at > STALE_SECONDS):
            raise StoreUnavailable("the API keys cannot be read")
        return self._table

    async def _read_after(self, moment: float) -> KeyTable:
        """Return the keys as read after `moment`, so that a new key or secret works as soon as its creation was
        answered. All waiting requests share one read per RETRY_SECONDS. If the store does not answer, return the keys
        at hand."""

        async def read() -> None:
            while self._read_at < moment:
                if self._reading is None or self._reading.done():
                    await asyncio.sleep(self._tried_at + RETRY_SECONDS - self._now())
                await asyncio.wait({self._read()})

        if not self._hangs:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(read(), WAIT_SECONDS)
        return await self._current()

    def _read(self) -> asyncio.Task[None]:
        """Start reading the keys, unless a read is in progress; return its task. Raises Starting."""
        if self._reading is None or self._reading.done():
            if self._store is None:
                raise Starting(KEYS_NOT_OPEN)
            self._tried_at = self._now()
            self._reading = asyncio.create_task(self._load(self._store, self._tried_at), name="read-keys")
        return self._reading

    async def _load(self, store: KeyReader, started: float) -> None:
        used, self._used = self._used, {}
        try:
            self._table = await store.load(self._table, used)
            self._read_at = started
            self._hangs = False
        except StoreUnavailable:
            self._used = used | self._used

    def _note_use(self, key: ApiKey) -> None:
        now = self._now()
        if now - self._recorded.get(key.prefix, -math.inf) >= USED_SECONDS:
            self._recorded[key.prefix] = now
            self._used[key.prefix] = self.clock()
            if self._recording is None:  # perhaps no other request will come
                self._recording = asyncio.get_running_loop().call_later(CACHE_SECONDS, self._record_uses)

    def _record_uses(self) -> None:
        self._recording = None
        if self._used:
            self._read()


def _bearer_token(authorization: str | None) -> str:
    """Return the token of an Authorization header; "" if it has none."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _unknown_key() -> Unauthenticated:
    return Unauthenticated("unknown_key", "This API key does not exist, or was revoked or replaced.")
