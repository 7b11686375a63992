"""The gate of a process: who may come in, what for, and how often."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
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

KEPT_HOSTS = 64
"""Host headers of which it is kept what they say: to parse one takes longer than the rest of the gate."""


class Gate:
    """Lets callers in, and counts those that it refuses. `bootstrap`: the bootstrap key; None for none. `hosts`: names
    in the Host header at which callers without a key are answered, "*" for any."""

    def __init__(self, bootstrap: str | None, clock: Clock, telemetry: Telemetry, hosts: Collection[str] = ()) -> None:
        self._authenticator = Authenticator(bootstrap, clock)
        self._refused = telemetry.refused
        self._hosts = frozenset(host.lower().removesuffix(".") for host in hosts)
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
                "header, which a web page could have chosen. Use http://127.0.0.1, name the host in "
                "NOTELLM_ALLOWED_HOSTS, or set NOTELLM_BOOTSTRAP_KEY."
            )

    def allows_host(self, principal: Principal, host: str) -> bool:
        """Return whether a request to a host may be answered.

        A web page may have its own name resolved to this machine (DNS rebinding): the browser then lets it read the
        service's answers. Callers with a key are exempt, since a page does not know one.
        """
        if principal is not ANONYMOUS or "*" in self._hosts:
            return True
        name = host_name(host)
        return name is not None and (name in self._hosts or is_own(name))

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


@lru_cache(KEPT_HOSTS)
def host_name(host: str) -> str | None:
    """Return the name or address of a Host header without its port, in lower case; None for one that is not valid."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return None


@lru_cache(KEPT_HOSTS)
def is_own(name: str) -> bool:
    """Return whether a host is an IP address or localhost, or none is named: no web page has that as its name."""
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
