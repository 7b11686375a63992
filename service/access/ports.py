"""Ports: the store of API keys and the counter of their use, as access control sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Protocol

from service.access.api_key import Act, ApiKey, KeyTable
from service.access.principal import Quota
from service.access.quota import Usage


class KeyReader(Protocol):
    """API keys, read to authenticate callers."""

    async def load(self, known: KeyTable | None, used: Mapping[str, float]) -> KeyTable:
        """Record when keys were last `used`, by prefix; then return all keys without their last uses, or `known` if
        they have not changed since. Raises StoreUnavailable."""


class KeyStore(KeyReader, Protocol):
    """API keys and the acts of those who manage them. Every method raises StoreUnavailable when the store is
    unavailable."""

    async def find(self, prefix: str) -> ApiKey | None:
        """Return a key with its last use; None if there is none."""

    async def with_last_uses(self, keys: Sequence[ApiKey]) -> list[ApiKey]:
        """Return keys with their last uses."""

    async def replace(self, prefix: str, old: ApiKey | None, new: ApiKey, act: Act) -> bool:
        """Replace `old` by `new` under a prefix, and record the act, in one atomic step, durably. `old`: None if there
        is no key. Return False, and do nothing, if the key is no longer `old`. Raises TooManyApiKeys; and
        Unauthenticated if the actor's key no longer exists, or if the actor has none and there are keys."""

    async def revoke(self, keys: Sequence[tuple[ApiKey, Act]]) -> Set[str]:
        """Remove keys for ever, and record the act of each, in one atomic step, durably. All acts have the same actor.
        Return the prefixes of the removed keys: one that has changed meanwhile stays. Raises Unauthenticated, as
        `replace` does."""

    async def record(self, act: Act) -> None:
        """Record an act that changes no key. The oldest acts are dropped if there are too many."""

    async def acts(self, count: int, before: str = "") -> list[Act]:
        """Return up to `count` acts before the position `before`, newest first."""


class QuotaStore(Protocol):
    """Usage of keys in the last minute, counted over all replicas."""

    async def count(self, key: str, quota: Quota, requests: int, tokens: int, *, spends_tokens: bool = True) -> Usage:
        """Count the requests if the quota has room for all of them, and for at least one; count the tokens in any case.
        `spends_tokens`: whether the requests can use tokens; if not, those of the quota need not suffice. Return the
        key's usage afterwards. Raises StoreUnavailable."""
