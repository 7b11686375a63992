"""KeyStore on Redis.

    {access}:keys     hash    prefix -> what is kept of the key, as JSON
    {access}:older    hash    prefix -> its replaced secrets that are accepted, but for the newest one, as JSON
    {access}:version  string  random, another one with each change of the keys
    {access}:used     hash    prefix -> when it was last used, in seconds since the epoch
    {access}:audit    stream  what was done by those who manage the service

All share the hash tag {access}: one slot on Redis Cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import lru_cache
from typing import Any
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
OLDER_SECRETS = "{access}:older"
VERSION = "{access}:version"
USED = "{access}:used"
AUDIT = "{access}:audit"
NO_KEY = "-"
"""Actor without a key, which may act as long as there are no keys. No prefix has this form."""
MAX_STORED_ACTS = 10_000
"""Approximate number of acts that are kept."""
DECODE_BATCH_SIZE = 500
"""Keys that are decoded before the event loop runs other tasks: a few milliseconds."""
MAX_CACHED_DOCUMENTS = 2 * MAX_KEYS
"""Number of decoded documents that are cached: after any change all keys are read again, most of them unchanged."""

log = structlog.get_logger(__name__)

# Keys of CHECK_ACTOR, REPLACE and REVOKE: keys, version, used, audit, older secrets. Their first arguments: prefix of
# the actor's key, NO_KEY, or "" for the bootstrap key; new version; bound on acts.
CHECK_ACTOR = """
if ARGV[1] == '-' then
  if redis.call('HLEN', KEYS[1]) > 0 then return 'closed' end
elseif ARGV[1] ~= '' and redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 'revoked' end
"""
# ARGV further: bound on keys, prefix, old document or "", new document, act, older secrets of the new key or "".
REPLACE = (
    CHECK_ACTOR
    + """
if (redis.call('HGET', KEYS[1], ARGV[5]) or '') ~= ARGV[6] then return 'changed' end
if ARGV[6] == '' and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then return 'full' end
redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[3], '*', 'act', ARGV[8])
redis.call('HSET', KEYS[1], ARGV[5], ARGV[7])
if ARGV[9] ~= '' then redis.call('HSET', KEYS[5], ARGV[5], ARGV[9]) else redis.call('HDEL', KEYS[5], ARGV[5]) end
redis.call('SET', KEYS[2], ARGV[2])
return 'done'
"""
)
# ARGV further: prefix, document and act of each key. Answers the prefixes of those that still had that document.
# It removes before it records, for the reason that FIRST_WRITE gives.
REVOKE = (
    CHECK_ACTOR
    + """
local revoked = {}
for i = 4, #ARGV, 3 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    redis.call('HDEL', KEYS[1], ARGV[i])
    redis.call('HDEL', KEYS[3], ARGV[i])
    redis.call('HDEL', KEYS[5], ARGV[i])
    redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[3], '*', 'act', ARGV[i + 2])
    revoked[#revoked + 1] = ARGV[i]
  end
end
if #revoked > 0 then redis.call('SET', KEYS[2], ARGV[2]) end
return revoked
"""
)
# KEYS audit; ARGV act, bound on acts.
RECORD = FIRST_WRITE + "redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'act', ARGV[1])"
# KEYS used, keys; ARGV prefixes and times alternate. A use may be recorded after its key was revoked. The script must
# work where memory is full, too: only after it does `load` read the keys again, and so learn of revocations.
RECORD_USES = (
    FIRST_WRITE
    + """
for i = 1, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1 then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
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
                await self._redis.eval(RECORD_USES, 2, USED, KEYS, *words)
            if known and (await self._redis.get(VERSION) or b"").decode() == known.version:
                return known
            pipeline = self._redis.pipeline(transaction=True)
            version, documents, older = await pipeline.get(VERSION).hgetall(KEYS).hgetall(OLDER_SECRETS).execute()
        keys: dict[str, ApiKey] = {}
        for number, (prefix, document) in enumerate(documents.items(), 1):
            if key := _decode(prefix, document, older.get(prefix)):
                keys[key.prefix] = key
            if number % DECODE_BATCH_SIZE == 0:
                await asyncio.sleep(0)
        return KeyTable((version or b"").decode(), keys, unreadable=len(documents) - len(keys))

    async def find(self, prefix: str) -> ApiKey | None:
        async with self._call("read key"):
            pipeline = self._redis.pipeline(transaction=True)
            document, older = await pipeline.hget(KEYS, prefix).hget(OLDER_SECRETS, prefix).execute()
        key = document and _decode(prefix.encode(), document, older)
        return (await self.with_last_uses([key]))[0] if key else None

    async def with_last_uses(self, keys: Sequence[ApiKey]) -> list[ApiKey]:
        if not keys:
            return []
        async with self._call("read uses"):
            times = await self._redis.hmget(USED, [key.prefix for key in keys])
        return [
            replace(key, last_used_at=None if used is None else float(used))
            for key, used in zip(keys, times, strict=True)
        ]

    async def replace(self, prefix: str, old: ApiKey | None, new: ApiKey, act: Act) -> bool:
        old_document = _encode(old) if old else b""
        words = (MAX_KEYS, prefix, old_document, _encode(new), _encode_act(act), _encode_older_secrets(new))
        answer = await self._change(REPLACE, act, *words)
        if answer == b"full":
            raise TooManyApiKeys(MAX_KEYS)
        return bool(answer == b"done")

    async def revoke(self, keys: Sequence[tuple[ApiKey, Act]]) -> Set[str]:
        words = [word for key, act in keys for word in (key.prefix, _encode(key), _encode_act(act))]
        return {prefix.decode() for prefix in await self._change(REVOKE, keys[0][1], *words)}

    async def _change(self, script: str, act: Act, *words: bytes | str | int) -> Any:
        """Run REPLACE or REVOKE for the actor of `act`, and return its answer. Raises Unauthenticated where CHECK_ACTOR
        refuses the actor."""
        actor = {ANONYMOUS.key: NO_KEY, BOOTSTRAP.key: ""}.get(act.key, act.key)
        arguments = (actor, uuid4().hex, MAX_STORED_ACTS, *words)
        (answer,) = await self._connection.write(
            [Command(script, (KEYS, VERSION, USED, AUDIT, OLDER_SECRETS), arguments)]
        )
        if answer == b"revoked":
            raise Unauthenticated("unknown_key", "Your API key was revoked during this request.")
        if answer == b"closed":
            raise Unauthenticated("no_key", "API keys became required during this request.")
        return answer

    async def record(self, act: Act) -> None:
        await self._connection.write([Command(RECORD, (AUDIT,), (_encode_act(act), MAX_STORED_ACTS))])

    async def acts(self, count: int, before: str = "") -> list[Act]:
        if before and position_key(before) == position_key(ORIGIN):
            return []  # nothing comes before it, and Redis refuses the range
        async with self._call("read acts"):
            entries = await self._redis.xrevrange(AUDIT, f"({before}" if before else "+", count=count)
        return [_decode_act(position.decode(), fields[b"act"]) for position, fields in entries]


def _encode(key: ApiKey) -> bytes:
    """Encode the stored document of a key, always to the same bytes: a change compares them with the stored ones. The
    last use is stored apart, and so are older secrets, so that a version of the service without these writes the same
    document."""
    newest = key.old_secrets[0] if key.old_secrets else None
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
    return orjson.dumps(document)


def _encode_older_secrets(key: ApiKey) -> bytes:
    """Encode the replaced secrets of a key except the newest one, with the digest of the newest one; b"" for none."""
    older = [(old.digest, old.until) for old in key.old_secrets[1:]]
    return orjson.dumps([key.old_secrets[0].digest, older]) if older else b""


@lru_cache(MAX_CACHED_DOCUMENTS)
def _decode(prefix: bytes, document: bytes, older_secrets: bytes | None) -> ApiKey | None:
    """Decode a key, without its last use. A key that cannot be decoded gives no access: it is logged and left out.

    Older secrets are accepted only while the newest replaced secret is the one that they were written with, and no
    longer than that one: a version of the service without older secrets may have rotated the key, or ended that secret,
    since.
    """
    try:
        fields = orjson.loads(document)
        old_secrets = [OldSecret(fields["old_digest"], fields["old_until"])] if fields["old_digest"] else []
        if old_secrets and older_secrets:
            newest, older = orjson.loads(older_secrets)
            if newest == old_secrets[0].digest:
                old_secrets += [OldSecret(digest, min(until, old_secrets[0].until)) for digest, until in older]
        return ApiKey(
            prefix=prefix.decode(),
            digest=str(fields["digest"]),
            name=fields["name"],
            tenant=fields["tenant"],
            scopes=frozenset(map(Scope, fields["scopes"])),
            created_at=fields["created_at"],
            expires_at=fields["expires_at"],
            quota=Quota(fields["requests_per_minute"], fields["tokens_per_minute"]),
            old_secrets=tuple(old_secrets),
        )
    except (ValueError, KeyError, TypeError) as error:
        log.error(
            "key_unreadable",
            key=repr(prefix),
            reason=type(error).__name__,
            detail="it gives no access; the service still requires keys",
        )
        return None


def _encode_act(act: Act) -> bytes:
    fields = {"key": act.key, "tenant": act.tenant, "name": act.name, "target": act.target, "at": act.at}
    return orjson.dumps(fields | {"details": dict(act.details)})


def _decode_act(position: str, text: bytes) -> Act:
    return Act(**orjson.loads(text), position=position)
