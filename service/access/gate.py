"""The gate of a process: authentication, scopes, allowed hosts and origins, and quotas."""

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

MAX_CACHED_HOSTS = 64
"""Parsed Host headers that are cached: parsing one takes longer than the rest of the gate."""


class Gate:
    """Admits or refuses callers, and counts refusals. `bootstrap`: the bootstrap key; None for none. `hosts`: names in
    the Host header at which callers without a key are answered, "*" for any. `origins`: those of web pages that may
    call the service."""

    def __init__(
        self,
        bootstrap: str | None,
        clock: Clock,
        telemetry: Telemetry,
        hosts: Collection[str] = (),
        origins: Collection[str] = (),
    ) -> None:
        self._authenticator = Authenticator(bootstrap, clock)
        self._refused = telemetry.refused
        self._hosts = frozenset(host.lower().removesuffix(".") for host in hosts)
        self._origins = frozenset(origins)
        self.clock = clock
        self.manager = Manager(self._authenticator)
        self.meter = Meter(telemetry)

    async def open(self, keys: KeyStore, quotas: QuotaStore) -> None:
        """Use the keys and quotas of a store from now on. The keys are read at once, since the store may be unavailable
        when the first request comes."""
        self._authenticator.connect(keys)
        self.manager.connect(keys)
        self.meter.connect(quotas)
        await self._authenticator.refresh()

    async def close(self) -> None:
        await self._authenticator.close()

    async def authenticate(self, authorization: str | None) -> Principal:
        """Return the principal of an Authorization header. Raises what Authenticator.authenticate raises."""
        try:
            return await self._authenticator.authenticate(authorization)
        except Unauthenticated as error:
            self._refused.labels(error.reason).inc()
            raise

    async def check_again(self, principal: Principal, *, refresh: bool = False) -> Principal:
        """Return what Authenticator.check_again returns. Raises what it raises."""
        try:
            return await self._authenticator.check_again(principal, refresh=refresh)
        except Unauthenticated as error:
            self._refused.labels(error.reason).inc()
            raise

    def authenticate_nowait(self, authorization: str | None) -> Principal | None:
        """Return what Authenticator.authenticate_nowait returns."""
        return self._authenticator.authenticate_nowait(authorization)

    async def recognise(self, authorization: str | None, host: str) -> Principal | None:
        """Return the principal of an Authorization header that was sent to a host. Unlike `authenticate`, refuse
        nobody: return None for a caller without a valid key or at a host that is not allowed, and if the keys are not
        known."""
        try:
            principal = await self._authenticator.authenticate(authorization)
        except (Unauthenticated, StoreUnavailable, Starting):
            return None
        return principal if self.allows_host(principal, host) else None

    def check_host(self, principal: Principal, host: str) -> None:
        """Raise Forbidden if `allows_host` is False."""
        if not self.allows_host(principal, host):
            self._refused.labels("host").inc()
            raise Forbidden(
                "Without API keys, the service accepts only requests to an IP address, localhost or a host in "
                "NOTELLM_ALLOWED_HOSTS, since a web page could have chosen the name in your Host header. Use "
                "http://127.0.0.1, add the host to NOTELLM_ALLOWED_HOSTS, or set NOTELLM_BOOTSTRAP_KEY."
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

    def check_origin(self, principal: Principal, host: str, origin: str | None, site: str | None) -> None:
        """Raise Forbidden for a change that a web page of another origin sends to a service without keys: browsers send
        one that has no body without a preflight request. `origin`, `site`: values of the headers Origin and
        Sec-Fetch-Site."""
        if principal is ANONYMOUS and not self._allows_origin(host, origin, site):
            self._refused.labels("origin").inc()
            raise Forbidden(
                "Without API keys, the service refuses changes from web pages of other origins. Add the page's origin "
                "to NOTELLM_CORS_ORIGINS, or set NOTELLM_BOOTSTRAP_KEY."
            )

    def _allows_origin(self, host: str, origin: str | None, site: str | None) -> bool:
        """Return whether a request comes from a page of the service itself, from a page of an origin in `origins`, or
        from no browser. `site` is tested before the host, since behind a proxy the Host header may not be the one that
        the browser knows."""
        if origin in self._origins:
            return True
        if site is not None:
            return site in ("same-origin", "none")
        return origin is None or origin.partition("://")[2] == host

    def check_scope(self, principal: Principal, scopes: frozenset[Scope], option: str = "") -> None:
        """Raise Forbidden for a caller who has none of `scopes`. `option`: the part of the request that needs one of
        them, if that is not the whole request."""
        if principal.scopes.isdisjoint(scopes):
            self._refused.labels("scope").inc()
            names = sorted(scopes)
            requires = f"{option or 'this request'} requires; use a key that has it"
            raise Forbidden(f"Your key {principal.key} lacks the scope {' or '.join(names)}, which {requires}.", names)

    async def count(self, principal: Principal, requests: int = 1, *, spends_tokens: bool = True) -> Usage | None:
        """Count requests. `spends_tokens`: whether they can use tokens. Return the usage of their key, which says
        whether its quota allows them; None for a key without a quota, or if the store did not count them."""
        if not principal.quota:
            return None
        usage = await self.meter.take(principal, requests, spends_tokens=spends_tokens)
        if usage and not usage.allowed:
            self._refused.labels("quota").inc()
        return usage


@lru_cache(MAX_CACHED_HOSTS)
def host_name(host: str) -> str | None:
    """Return the name or address in a Host header without its port, in lower case; None for one that is not valid."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return None


@lru_cache(MAX_CACHED_HOSTS)
def is_own(name: str) -> bool:
    """Return whether a host is an IP address, localhost or empty: DNS rebinding needs another name."""
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
