"""KeyStore on Redis.

    {access}:keys     hash    prefix -> what is kept of the key, as JSON
    {access}:version  string  random, another one with each change of the keys
    {access}:used     hash    prefix -> when it was last used, in seconds since the epoch
    {access}:audit    stream  what was done by those who manage the service

All share the hash tag {access}: one slot on Redis Cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from uuid import uuid4

import orjson
import structlog

from service.access.api_key import MAX_KEYS, Act, ApiKey, KeyTable, OldSecret
from service.access.principal import ANONYMOUS, BOOTSTRAP, Quota, Scope
from service.errors import TooManyApiKeys, Unauthenticated
from service.records import ORIGIN, position_key
from service.store.connection import Command, Connection
from service.store.scripts import FIRST_WRITE

KEYS = "{access}:keys"
VERSION = "{access}:version"
USED = "{access}:used"
AUDIT = "{access}:audit"
NO_KEY = "-"
"""Actor without a key, who may act as long as there are no keys. No prefix has this form."""
MAX_ACTS = 10_000
"""About how many acts are kept."""
DECODED_TOGETHER = 500
"""Keys that are decoded before the event loop runs other tasks: a few milliseconds."""

log = structlog.get_logger(__name__)

# KEYS keys, version, used, audit; ARGV prefix, old document or "", new document or "", new version, act, bounds on keys
# and acts, prefix of the actor's key, NO_KEY, or "" for the bootstrap key. A revocation removes before it records,
# for the reason that FIRST_WRITE gives.
REPLACE = """
if ARGV[8] == '-' then
  if redis.call('HLEN', KEYS[1]) > 0 then return 'closed' end
elseif ARGV[8] ~= '' and redis.call('HEXISTS', KEYS[1], ARGV[8]) == 0 then return 'revoked' end
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 'changed' end
if ARGV[2] == '' and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[6]) then return 'full' end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[3], ARGV[1])
end
redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[7], '*', 'act', ARGV[5])
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
redis.call('SET', KEYS[2], ARGV[4])
return 'done'
"""
# KEYS audit; ARGV act, bound on acts.
RECORD = FIRST_WRITE + "redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'act', ARGV[1])"
# KEYS used; ARGV prefixes and times in turns. It must work where memory is full, too: after it `load` reads the keys
# again, and so learns of revocations.
RECORD_USES = (
    FIRST_WRITE
    + """
for i = 1, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
"""
)


class RedisKeyStore:
    """KeyStore on Redis."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.redis
        self._call = connection.call

    async def load(self, known: KeyTable | None, used: Mapping[str, float]) -> KeyTable:
        async with self._call("load keys"):
            if used:
                words = [word for entry in used.items() for word in entry]
                await self._redis.eval(RECORD_USES, 1, USED, *words)
            if known and (await self._redis.get(VERSION) or b"").decode() == known.version:
                return known
            pipeline = self._redis.pipeline(transaction=True)
            version, documents, times = await pipeline.get(VERSION).hgetall(KEYS).hgetall(USED).execute()
            if revoked := times.keys() - documents.keys():  # a use was noted after the key had been revoked
                await self._redis.hdel(USED, *revoked)
        keys: dict[str, ApiKey] = {}
        for number, (prefix, document) in enumerate(documents.items(), 1):
            if key := _decode(prefix, document, times.get(prefix)):
                keys[key.prefix] = key
            if number % DECODED_TOGETHER == 0:
                await asyncio.sleep(0)
        return KeyTable((version or b"").decode(), keys, unreadable=len(documents) - len(keys))

    async def replace(self, prefix: str, old: ApiKey | None, new: ApiKey | None, act: Act) -> bool:
        actor = {ANONYMOUS.key: NO_KEY, BOOTSTRAP.key: ""}.get(act.key, act.key)
        arguments = (prefix, _encode(old), _encode(new), uuid4().hex, _encode_act(act), MAX_KEYS, MAX_ACTS, actor)
        (answer,) = await self._connection.write([Command(REPLACE, (KEYS, VERSION, USED, AUDIT), arguments)])
        if answer == b"full":
            raise TooManyApiKeys(MAX_KEYS)
        if answer == b"revoked":
            raise Unauthenticated("unknown_key", "Your API key was revoked while this request was under way.")
        if answer == b"closed":
            raise Unauthenticated("no_key", "This service has keys since this request began.")
        return bool(answer == b"done")

    async def record(self, act: Act) -> None:
        await self._connection.write([Command(RECORD, (AUDIT,), (_encode_act(act), MAX_ACTS))])

    async def acts(self, count: int, before: str = "") -> list[Act]:
        if before and position_key(before) == position_key(ORIGIN):
            return []  # Redis refuses to look for what comes before all
        async with self._call("read acts"):
            entries = await self._redis.xrevrange(AUDIT, f"({before}" if before else "+", count=count)
        return [_decode_act(position.decode(), fields[b"act"]) for position, fields in entries]


def _encode(key: ApiKey | None) -> bytes:
    """Encode what is kept of a key, always in the same way; b"" for no key. When it was last used is kept apart."""
    if key is None:
        return b""
    newest, *older = key.old_secrets or (None,)
    document = {
        "digest": key.digest,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "requests_per_minute": key.quota.requests_per_minute,
        "tokens_per_minute": key.quota.tokens_per_minute,
        "old_digest": newest.digest if newest else None,
        "old_until": newest.until if newest else None,
    }
    if older:
        document["older_secrets"] = [(old.digest, old.until) for old in older]
    return orjson.dumps(document)


def _decode(prefix: bytes, document: bytes, used: bytes | None) -> ApiKey | None:
    """Decode a key. One that cannot be decoded opens nothing: it is logged and left out."""
    try:
        fields = orjson.loads(document)
        old_secrets = [(fields["old_digest"], fields["old_until"])] if fields["old_digest"] else []
        old_secrets += fields.get("older_secrets", [])
        return ApiKey(
            prefix=prefix.decode(),
            digest=str(fields["digest"]),
            name=fields["name"],
            tenant=fields["tenant"],
            scopes=frozenset(map(Scope, fields["scopes"])),
            created_at=fields["created_at"],
            expires_at=fields["expires_at"],
            quota=Quota(fields["requests_per_minute"], fields["tokens_per_minute"]),
            old_secrets=tuple(OldSecret(*old) for old in old_secrets),
            last_used_at=float(used) if used else None,
        )
    except (ValueError, KeyError, TypeError) as error:
        log.error(
            "key_unreadable",
            key=repr(prefix),
            reason=type(error).__name__,
            detail="it opens nothing, and keeps the service closed",
        )
        return None


def _encode_act(act: Act) -> bytes:
    fields = {"key": act.key, "tenant": act.tenant, "name": act.name, "target": act.target, "at": act.at}
    return orjson.dumps(fields | {"details": dict(act.details)})


def _decode_act(position: str, text: bytes) -> Act:
    return Act(**orjson.loads(text), position=position)
