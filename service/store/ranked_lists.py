"""ListStore on Redis: ranked lists that are kept for a time.

    <prefix>list:<id>  list    the header as JSON, then each note as JSON
    <prefix>lists      zset    key of each list -> when it ends, in seconds since the epoch

They are not appended to the append-only file, which a server with `appendfsync always` would sync for each list: after
a restart of the server callers have to begin a new list. But each rewrite of the file includes the lists that are kept
at that time, which stay in it until the next rewrite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson

from service.errors import TenantRemoved
from service.records import Explanation, RankedList, RankedNote
from service.store.connection import Connection
from service.store.idempotency import REMOVED
from service.store.redis_keys import RedisKeys

MAX_LISTS = 1000
"""Bound on the lists that are kept of one tenant, published at GET /limits; beyond it the oldest one is dropped."""
MAX_LIST_BYTES = 256 * 2**10
"""Bound on the size of one list as it is stored, published at GET /limits: notes that do not fit are cut off its
end."""

# KEYS list, lists, identity; ARGV seconds, bound on lists, the identity that the store must have or "", header, notes.
# RPUSH comes first: a server out of memory refuses it, and would let it pass after a write that takes no memory.
SAVE = """
if ARGV[3] ~= '' and redis.call('GET', KEYS[3]) ~= ARGV[3] then return 'removed' end
redis.set_repl(redis.REPL_NONE)
for i = 4, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[1] * 1000))
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
while redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[2]) do
  redis.call('DEL', redis.call('ZPOPMIN', KEYS[2])[1])
end
redis.call('ZADD', KEYS[2], now + math.ceil(ARGV[1]), KEYS[1])
redis.call('PEXPIRE', KEYS[2], math.ceil(ARGV[1] * 1000))
return true
"""


class RedisLists:
    """ListStore on Redis. `connection` and `identity`: those of the tenant's notes. `seconds`: how long a list is
    kept."""

    def __init__(self, connection: Connection, keys: RedisKeys, seconds: float, identity: str = "") -> None:
        self._connection = connection
        self._keys = keys
        self._seconds = seconds
        self._identity = identity

    async def save(self, ranked: RankedList) -> RankedList:
        notes = list(_fitting(ranked))
        kept = ranked if len(notes) == ranked.total else _cut(ranked, len(notes))
        keys = [self._keys.list + ranked.id, self._keys.lists, self._keys.identity]
        arguments = (self._seconds, MAX_LISTS, self._identity, _encode_header(kept), *notes)
        async with self._connection.call("hold list"):
            answer = await self._connection.redis.eval(SAVE, len(keys), *keys, *arguments)
        if answer == REMOVED:
            raise TenantRemoved
        return kept

    async def read(self, list_id: str, start: int, count: int) -> RankedList | None:
        key = self._keys.list + list_id
        async with self._connection.call("read list"):
            pipeline = self._connection.redis.pipeline(transaction=True)  # else it may expire in between
            pipeline.lindex(key, 0)
            pipeline.lrange(key, 1 + start, start + count)
            header, notes = await pipeline.execute()
        return None if header is None else _decode(list_id, orjson.loads(header), notes)


def _fitting(ranked: RankedList) -> Iterator[bytes]:
    """Yield the first notes of a list, as JSON, as many as fit into MAX_LIST_BYTES."""
    size = 0
    for note in ranked.notes:
        encoded = orjson.dumps((note.id, note.score, note.duplicates, note.explanation))
        size += len(encoded)
        if size > MAX_LIST_BYTES:
            return
        yield encoded


def _cut(ranked: RankedList, count: int) -> RankedList:
    """Return the first notes of a list. It is no longer complete."""
    return replace(ranked, notes=ranked.notes[:count], total=count, complete=False)


def _encode_header(ranked: RankedList) -> bytes:
    header = (
        ranked.fingerprint,
        ranked.total,
        ranked.complete,
        ranked.log_position,
        ranked.missing,
        dict(ranked.removed),
    )
    return orjson.dumps(header)


def _decode(list_id: str, header: Any, notes: list[bytes]) -> RankedList:
    fingerprint, total, complete, log_position, missing, removed = header
    return RankedList(
        list_id,
        fingerprint,
        tuple(map(_decode_note, notes)),
        total,
        complete,
        log_position,
        tuple(missing),
        removed,
    )


def _decode_note(encoded: bytes) -> RankedNote:
    note_id, score, duplicates, explanation = orjson.loads(encoded)
    return RankedNote(note_id, score, tuple(duplicates), None if explanation is None else Explanation(**explanation))
