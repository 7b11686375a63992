"""Management of keys: create, change, rotate and revoke. Each act is recorded and logged.

Nobody can grant what they do not have: a key has no scope, and no tenant, that its creator lacks. The same holds for
changing or rotating a key, since a new secret is as good as the key.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence, Set

import structlog

from service.access.api_key import MAX_KEYS_OF_TENANT, Act, ApiKey, new_prefix, new_token
from service.access.authenticator import KEYS_NOT_OPEN, Authenticator
from service.access.ports import KeyStore
from service.access.principal import UNLIMITED, Principal, Quota, Scope
from service.errors import (
    ApiKeyNotFound,
    FieldError,
    Forbidden,
    InvalidInput,
    NoteLLMError,
    Starting,
    StoreUnavailable,
    TooManyApiKeys,
    TryLater,
)

MAX_ATTEMPTS = 10
"""Attempts at a change that conflicts with concurrent ones."""
KEY_BATCH_SIZE = 1000
"""Keys that are listed or revoked in one call of the store, which takes some milliseconds."""

log = structlog.get_logger(__name__)


class Manager:
    """Management of keys by principals who have the scope for it. All methods raise Starting before the keys' store is
    open."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._connected: KeyStore | None = None
        self._clock = authenticator.clock
        self._creating = asyncio.Lock()
        """Held from counting a tenant's keys to storing a new one: keys made at the same time in one process do not
        exceed the bound; each further process may add one beyond it."""

    def connect(self, store: KeyStore) -> None:
        """Manage the keys of a store from now on."""
        self._connected = store

    @property
    def _store(self) -> KeyStore:
        """The store of the keys. Raises Starting before it is open."""
        if self._connected is None:
            raise Starting(KEYS_NOT_OPEN)
        return self._connected

    async def create(
        self,
        by: Principal,
        *,
        name: str,
        scopes: Collection[Scope],
        tenant: str | None = None,
        expires_at: float | None = None,
        quota: Quota = UNLIMITED,
    ) -> tuple[ApiKey, str]:
        """Create a key; return it with its token, which cannot be read again later. `tenant`: by default the creator's.

        Raises Forbidden, TooManyApiKeys, StoreUnavailable; and InvalidInput for a key that has already expired, or for
        a first key without the scope to manage keys, after which nobody could.
        """
        prefix = new_prefix()
        token, digest = new_token(prefix)
        tenant = tenant or by.tenant
        key = ApiKey(prefix, digest, name, tenant, frozenset(scopes), self._clock(), expires_at, quota)
        if tenant != by.tenant and Scope.ADMIN not in by.scopes:
            raise Forbidden(f"Creating a key for another tenant requires the scope {Scope.ADMIN}.", [Scope.ADMIN])
        check_has_scopes_of(by, key)
        if by.key is None and Scope.KEYS_MANAGE not in key.scopes:
            detail = f"must include {Scope.KEYS_MANAGE}: with the first key, keys become required to create others"
            raise InvalidInput([FieldError("/scopes", detail)])
        if key.expired(self._clock()):
            raise InvalidInput([FieldError("/expires_at", "must be in the future")])
        details: dict[str, object] = {
            "name": name,
            "tenant": tenant,
            "scopes": sorted(scope.value for scope in key.scopes),
        }
        async with self._creating:
            # A caller without `admin` sees only the keys of its own tenant.
            if Scope.ADMIN not in by.scopes and len(await self._visible(by)) >= MAX_KEYS_OF_TENANT:
                raise TooManyApiKeys(MAX_KEYS_OF_TENANT, "max_keys_of_tenant")
            await self._replace(by, prefix, None, key, "keys.create", details)
        return key, token

    async def keys(self, by: Principal) -> list[ApiKey]:
        """Return the keys of the caller's tenant, or of all tenants for an admin, the oldest first."""
        keys, listed = sorted(await self._visible(by), key=lambda key: (key.created_at, key.prefix)), list[ApiKey]()
        for start in range(0, len(keys), KEY_BATCH_SIZE):
            listed += await self._store.with_last_uses(keys[start : start + KEY_BATCH_SIZE])
        return listed

    async def change(
        self, by: Principal, prefix: str, edit: Callable[[ApiKey], ApiKey], act: str, details: Mapping[str, object]
    ) -> ApiKey:
        """Apply `edit` to a key, and return the result. Raises ApiKeyNotFound, Forbidden, StoreUnavailable."""
        for _ in range(MAX_ATTEMPTS):
            key = await self._find(by, prefix)
            edited = edit(key)
            if edited == key or await self._replace(by, prefix, key, edited, act, details):
                return edited
        raise StoreUnavailable("concurrent requests keep changing the key")

    async def rotate(self, by: Principal, prefix: str, overlap_seconds: float) -> tuple[ApiKey, str]:
        """Give a key a new secret, and return the key with its token. See ApiKey.rotated for how long replaced secrets
        are accepted. Raises what `change` raises."""
        token, digest = new_token(prefix)
        now = self._clock()

        def edit(key: ApiKey) -> ApiKey:
            return key.rotated(digest, now, now + overlap_seconds)

        key = await self.change(by, prefix, edit, "keys.rotate", {"overlap_seconds": overlap_seconds})
        return key, token

    async def revoke(self, by: Principal, prefix: str) -> None:
        """Remove a key for ever. Raises what `change` raises."""
        for _ in range(MAX_ATTEMPTS):
            if await self._revoke(by, [await self._find(by, prefix)]):
                return
        raise StoreUnavailable("concurrent requests keep changing the key")

    async def revoke_all(self, by: Principal, tenant: str) -> int:
        """Remove the keys of a tenant repeatedly until it has none, since one of them may create another meanwhile;
        return how many there were. Raises Forbidden and removes none if the caller lacks a scope of a key that exists
        at the beginning; if it lacks a scope of a key that is created meanwhile, Forbidden is raised after others were
        removed. Raises what `change` raises."""
        count = 0
        for _ in range(MAX_ATTEMPTS):
            keys = [key for key in await self._visible(by) if key.tenant == tenant]
            if not keys:
                return count
            for key in keys:
                check_has_scopes_of(by, key)
            keys.sort(key=lambda key: key.prefix == by.key)  # without its own key the caller could revoke no other
            for start in range(0, len(keys), KEY_BATCH_SIZE):
                await self._revoke(by, keys[start : start + KEY_BATCH_SIZE])
            count += len(keys)
        raise StoreUnavailable("new keys of the tenant keep being created")

    @contextlib.asynccontextmanager
    async def recorded(self, by: Principal, act: str, target: str = "", **details: object) -> AsyncIterator[None]:
        """Record and log the start and the end of an act that changes no key. `outcome` is "begun", then "done" or
        "refused". An act without a second entry was interrupted: it may have been done, fully or partly, and so may one
        that was refused for something that came up meanwhile. Raises StoreUnavailable."""
        await self._record(self._act(by, act, target, {**details, "outcome": "begun"}))
        try:
            yield
        except TryLater:
            raise  # what was done until then is not known
        except NoteLLMError:
            with contextlib.suppress(StoreUnavailable):  # the caller is to learn why the act was refused
                await self._record(self._act(by, act, target, {**details, "outcome": "refused"}))
            raise
        await self._record(self._act(by, act, target, {**details, "outcome": "done"}))

    async def acts(self, count: int, before: str = "") -> list[Act]:
        """Return recorded acts, the newest first, of those before the position `before`."""
        return await self._store.acts(count, before)

    async def _record(self, act: Act) -> None:
        await self._store.record(act)
        _log(act)

    async def _visible(self, by: Principal) -> list[ApiKey]:
        """Return the keys of the caller's tenant, or of all tenants for an admin, without their last uses."""
        table = await self._store.load(self._authenticator.table, {})
        return [key for key in table.keys.values() if _sees(by, key)]

    async def _find(self, by: Principal, prefix: str) -> ApiKey:
        """Return a key that the caller may change."""
        key = await self._store.find(prefix)
        if key is None or not _sees(by, key):
            raise ApiKeyNotFound(prefix)
        check_has_scopes_of(by, key)
        return key

    async def _replace(
        self,
        by: Principal,
        prefix: str,
        old: ApiKey | None,
        new: ApiKey,
        act: str,
        details: Mapping[str, object],
    ) -> bool:
        entry = self._act(by, act, prefix, details)
        if not await self._store.replace(prefix, old, new, entry):
            return False
        _log(entry)
        await self._authenticator.refresh()
        return True

    async def _revoke(self, by: Principal, keys: Sequence[ApiKey]) -> Set[str]:
        """Remove keys that have not changed meanwhile, in one step; return their prefixes."""
        acts = [self._act(by, "keys.revoke", key.prefix, {"name": key.name, "tenant": key.tenant}) for key in keys]
        revoked = await self._store.revoke(list(zip(keys, acts, strict=True)))
        for act in acts:
            if act.target in revoked:
                _log(act)
        if revoked:
            await self._authenticator.refresh()
        return revoked

    def _act(self, by: Principal, name: str, target: str, details: Mapping[str, object]) -> Act:
        return Act(by.key, by.tenant, name, target, self._clock(), details)


def check_has_scopes_of(by: Principal, key: ApiKey) -> None:
    """Raise Forbidden if a key has scopes that the caller lacks."""
    missing = sorted(key.scopes - by.scopes)
    if missing:
        detail = (
            f"The key has scopes that yours lacks: {', '.join(missing)}. Only a key with all scopes of another key can "
            "create, change or revoke it."
        )
        raise Forbidden(detail, missing)


def _sees(by: Principal, key: ApiKey) -> bool:
    return key.tenant == by.tenant or Scope.ADMIN in by.scopes


def _log(act: Act) -> None:
    log.info("audit", act=act.name, by=act.key, tenant=act.tenant, target=act.target, **{"details": dict(act.details)})
