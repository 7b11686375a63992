"""The gate of a process: who may come in, what for, and how often."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from service.access.authenticator import Authenticator
from service.access.manager import Manager
from service.access.meter import Meter
from service.access.ports import KeyStore, QuotaStore
from service.access.principal import ANONYMOUS, Principal, Scope
from service.access.quota import Usage
from service.errors import Forbidden, Starting, StoreUnavailable, Unauthenticated
from service.interfaces import Clock
from service.telemetry import Telemetry


class Gate:
    """Lets callers in, and counts those that it refuses. `bootstrap`: the bootstrap key; None for none. `any_host`:
    callers without a key may name any host."""

    def __init__(self, bootstrap: str | None, clock: Clock, telemetry: Telemetry, *, any_host: bool = False) -> None:
        self._authenticator = Authenticator(bootstrap, clock)
        self._refused = telemetry.refused
        self._any_host = any_host
        self.clock = clock
        self.manager = Manager(self._authenticator)
        self.meter = Meter(telemetry)

    async def open(self, keys: KeyStore, quotas: QuotaStore) -> None:
        """Use the keys of a store from now on. They are read now, since it may be away when the first request comes."""
        self._authenticator.connect(keys)
        self.meter.connect(quotas)
        await self._authenticator.refresh()

    async def close(self) -> None:
        await self._authenticator.close()

    async def authenticate(self, authorization: str | None) -> Principal:
        """Return who sends this Authorization header. Raises what Authenticator.authenticate raises."""
        try:
            return await self._authenticator.authenticate(authorization)
        except Unauthenticated as error:
            self._refused.labels(error.reason).inc()
            raise

    async def check_again(self, principal: Principal, *, anew: bool = False) -> None:
        """Raise what Authenticator.check_again raises."""
        try:
            await self._authenticator.check_again(principal, anew=anew)
        except Unauthenticated as error:
            self._refused.labels(error.reason).inc()
            raise

    async def go_on(self, principal: Principal, tokens: int) -> None:
        """Let a long request go on, which has used so many tokens meanwhile. Raises Unauthenticated where its key opens
        nothing any more, and QuotaExceeded where that has used up its tokens."""
        await self.check_again(principal)
        self.meter.charge(principal, tokens)
        await self.meter.check_tokens(principal)

    def at_hand(self, authorization: str | None) -> Principal | None:
        """Return who sends this Authorization header where Authenticator.at_hand does."""
        return self._authenticator.at_hand(authorization)

    async def recognise(self, authorization: str | None) -> Principal | None:
        """Return who sends this Authorization header; None for somebody without a valid key, who is not refused here,
        and where the keys are not known."""
        try:
            return await self._authenticator.authenticate(authorization)
        except (Unauthenticated, StoreUnavailable, Starting):
            return None

    def check_host(self, principal: Principal, host: str) -> None:
        """Raise Forbidden where `allows_host` is False."""
        if not self.allows_host(principal, host):
            self._refused.labels("host").inc()
            raise Forbidden(
                "A service without keys answers at an IP address or localhost, and not at the name in your Host "
                "header, which a web page could have chosen. Use http://127.0.0.1, set NOTELLM_BOOTSTRAP_KEY, or "
                "NOTELLM_INSECURE=1 where a proxy decides who may call."
            )

    def allows_host(self, principal: Principal, host: str) -> bool:
        """Return whether a request to a host may be answered. A web page may have its own name resolved to this machine
        (DNS rebinding), and a browser then takes the service for a part of it; a page has no key."""
        return self._any_host or principal is not ANONYMOUS or is_address(host)

    def check_scope(self, principal: Principal, scopes: frozenset[Scope]) -> None:
        """Raise Forbidden for a caller who has none of `scopes`."""
        if principal.scopes.isdisjoint(scopes):
            self._refused.labels("scope").inc()
            names = sorted(scopes)
            raise Forbidden(f"Your key {principal.key} lacks the scope {' or '.join(names)}, which this takes.", names)

    async def count(self, principal: Principal) -> Usage | None:
        """Count a request. Return the use of its key, which says whether its quota allows the request; None for a key
        without a quota, or where that is not counted."""
        if not principal.quota:
            return None
        usage = await self.meter.take(principal)
        if usage and not usage.allowed:
            self._refused.labels("quota").inc()
        return usage


def is_address(host: str) -> bool:
    """Return whether a Host header is an IP address or localhost, with or without a port, or empty."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in ("", "localhost") or name.endswith(".localhost") or bool(ip_address(name))
    except ValueError:
        return False
