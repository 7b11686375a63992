"""TenantDirectory on Redis: which tenants there are beside the default one.

    {notes}:tenants         hash    name -> identity of the tenant's store, with REMOVING before it while the tenant is
                                    being removed
    {notes}:removed:<name>  string  the tenant was removed on purpose; ends by itself

A tenant's identity is also a key of its own (redis_keys.py), made and removed in one step with the entry here: the
scripts of its writes check it, so that no replica writes to a tenant that was removed, however late it learns of that.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import structlog

from service.errors import TenantNotFound, TenantRemoved, TooManyTenants
from service.store.connection import Command, Connection
from service.store.redis_keys import HASH_TAG, RedisKeys
from service.store.scripts import FIRST_WRITE

TENANTS = f"{HASH_TAG}tenants"
REMOVING = "removing:"
REMOVED_PREFIX = f"{HASH_TAG}removed:"
REMEMBERED_SECONDS = 86_400
"""Time for which the removal of a tenant on purpose is remembered: longer than any replica takes to learn of it."""
SCAN_COUNT = 1000
"""Keys that one SCAN looks at, and so about the maximum number that one script removes, which can unpack some
thousands."""
FULL = b"full"
"""Answer of OPEN where the maximum number of tenants is reached."""

# KEYS tenants, identity; ARGV name, a new identity, how many tenants there may be.
OPEN = """
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known then return known end
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return 'full' end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[2])
return ARGV[2]
"""
# KEYS tenants, identity; ARGV name, REMOVING. From now on nothing is written to the tenant. The DEL comes
# first for the reason that FIRST_WRITE gives.
BEGIN_REMOVAL = """
local known = redis.call('HGET', KEYS[1], ARGV[1])
if not known then return false end
redis.call('DEL', KEYS[2])
if string.sub(known, 1, #ARGV[2]) ~= ARGV[2] then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. known) end
return known
"""
# KEYS tenants, keys of the tenant; ARGV name, the entry of the removal. Answers how many keys were removed; false where
# another process has ended this removal, after which the keys may be those of a tenant that was made anew.
UNLINK = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return false end
return redis.call('UNLINK', unpack(KEYS, 2))
"""
# KEYS tenants, removed; ARGV name, the entry of the removal, seconds. A tenant that was created again meanwhile stays
# in the list.
END_REMOVAL = (
    FIRST_WRITE
    + """
redis.call('SET', KEYS[2], '1', 'EX', ARGV[3])
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return true
"""
)
log = structlog.get_logger(__name__)


class RedisTenants:
    """TenantDirectory on Redis. `max_tenants` counts the default tenant. `on_removal` is called with the name and the
    identity of a tenant that is being removed, once nothing can be written to it."""

    def __init__(
        self,
        connection: Connection,
        max_tenants: int,
        on_removal: Callable[[str, str], object] | None = None,
    ) -> None:
        self._connection = connection
        self._max_tenants = max_tenants
        self._on_removal = on_removal

    async def known(self) -> dict[str, str | None]:
        async with self._connection.call("tenants"):
            entries = await self._connection.redis.hgetall(TENANTS)
        identities = {name.decode(): identity.decode() for name, identity in entries.items()}
        return {name: None if identity.startswith(REMOVING) else identity for name, identity in identities.items()}

    async def open(self, name: str) -> str:
        keys = [TENANTS, RedisKeys(name).identity]
        (answer,) = await self._connection.write([Command(OPEN, keys, (name, uuid4().hex, self._max_tenants - 1))])
        if answer == FULL:
            raise TooManyTenants(self._max_tenants)
        identity = str(answer, "ascii")
        if identity.startswith(REMOVING):
            raise TenantRemoved
        return identity

    async def remove(self, name: str) -> str:
        keys = RedisKeys(name)
        (known,) = await self._connection.write([Command(BEGIN_REMOVAL, [TENANTS, keys.identity], (name, REMOVING))])
        if known is None:
            raise TenantNotFound(name)
        identity: str = known.decode().removeprefix(REMOVING)
        await self._go_on_removing(name, identity)
        return identity

    async def finish_removal(self, name: str) -> None:
        async with self._connection.call("tenants"):
            entry = (await self._connection.redis.hget(TENANTS, name) or b"").decode()
        if entry.startswith(REMOVING):
            await self._go_on_removing(name, entry.removeprefix(REMOVING))

    async def _go_on_removing(self, name: str, identity: str) -> None:
        """Remove the keys of a tenant whose removal has begun; stop where another process has ended it."""
        if self._on_removal:
            self._on_removal(name, identity)
        entry, removed, cursor = REMOVING + identity, 0, None
        while cursor != 0:
            async with self._connection.call("remove tenant"):
                redis = self._connection.redis
                cursor, batch = await redis.scan(cursor or 0, match=f"{RedisKeys(name).prefix}*", count=SCAN_COUNT)
                count = await redis.eval(UNLINK, 1 + len(batch), TENANTS, *batch, name, entry) if batch else 0
            if count is None:
                return
            removed += count
        arguments = name, entry, REMEMBERED_SECONDS
        await self._connection.write([Command(END_REMOVAL, [TENANTS, REMOVED_PREFIX + name], arguments)])
        log.info("tenant_removed", tenant=name, keys=removed)

    async def was_removed(self, name: str) -> bool:
        async with self._connection.call("removed tenant"):
            return bool(await self._connection.redis.exists(REMOVED_PREFIX + name))
