"""Ports: how the access to the service sees what keeps keys, and what counts their use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Protocol

from service.access.api_key import Act, ApiKey, KeyTable
from service.access.principal import Quota
from service.access.quota import Usage


class KeyReader(Protocol):
    """API keys, as they are read to let callers in."""

    async def load(self, known: KeyTable | None, used: Mapping[str, float]) -> KeyTable:
        """Return all keys without their last uses, or `known` where they have not changed since. Before that, record
        when keys were last `used`, by their prefixes. Raises StoreUnavailable."""


class KeyStore(KeyReader, Protocol):
    """API keys and the acts of those who manage them. Every method raises StoreUnavailable when the store is away."""

    async def find(self, prefix: str) -> ApiKey | None:
        """Return a key with its last use; None where there is none."""

    async def with_last_uses(self, keys: Sequence[ApiKey]) -> list[ApiKey]:
        """Return keys with their last uses."""

    async def replace(self, prefix: str, old: ApiKey | None, new: ApiKey, act: Act) -> bool:
        """Exchange what is kept of a key, and record the act, in one atomic step, durably. `old`: None for no key.
        False, and nothing is done, where it is not `old` any more. Raises TooManyApiKeys; and Unauthenticated where
        the key of whoever acts is no longer there, or who acts has none and there are keys."""

    async def revoke(self, keys: Sequence[tuple[ApiKey, Act]]) -> Set[str]:
        """Remove keys for ever, and record the act of each, in one atomic step, durably. All acts are of one actor.
        Return the prefixes of those that were removed: one that is no longer as it is given stays. Raises
        Unauthenticated, as `replace` does."""

    async def record(self, act: Act) -> None:
        """Record an act that changes no key. The oldest acts are forgotten where there are too many."""

    async def acts(self, count: int, before: str = "") -> list[Act]:
        """Return up to `count` acts, the newest first, of those before the position `before`."""


class QuotaStore(Protocol):
    """Use of keys in the last minute, counted for all replicas together."""

    async def count(self, key: str, quota: Quota, requests: int, tokens: int) -> Usage:
        """Count requests, where the quota leaves room for all of them, and for one at the least; and tokens in any
        case. Return what the key has used then. Raises StoreUnavailable."""
