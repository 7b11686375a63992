"""Purge of a stream of events: rewrites it without the events of removed notes and forgotten readers.

XDEL and XTRIM leave the bytes of single entries where they were. So the stream is copied page by page while services
use it, and replaced by the copy in one step; the last entry of the copy tells followers to read it from its beginning.
"""

from __future__ import annotations

from typing import Any

from service.records import PositionKey, position_key
from service.store.events import CONTROL, NEW_STREAM
from service.store.purge_claim import CLAIM_SECONDS, PurgeClaim
from service.store.scripts import FIRST_WRITE, LOG_END

FIELDS = {b"type", b"note", b"reader"}
"""Fields that the entry of every event and of every removal has."""

PAGE_SIZE = 1000
"""Entries that are copied in one round trip."""
NEW_STREAM_SECONDS = 2 * CLAIM_SECONDS
"""Time to live of the new stream, for the case that its purge is killed. Each page sets it again after renewing the
claim, so that the stream outlives the claim of a running purge."""
# KEYS events, new events; ARGV seconds that the new stream stays, positions. Copies the entries that are still there: a
# reader may have been forgotten since they were read.
COPY = (
    FIRST_WRITE
    + """
for i = 2, #ARGV do
  local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  if entry then redis.call('XADD', KEYS[2], entry[1], unpack(entry[2])) end
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
"""
)
# KEYS events, new events, claim; ARGV last position that was copied, the claim's token. New positions come after the
# last one that the old stream assigned, even if that entry is left out or the clock was set back: a follower at that
# position would not see an entry before it.
EXCHANGE = (
    FIRST_WRITE
    + LOG_END
    + """
if redis.call('GET', KEYS[3]) ~= ARGV[2] then return redis.error_reply('another purge has taken over') end
if redis.call('EXISTS', KEYS[1]) == 0 then return redis.call('DEL', KEYS[2]) end
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], '+')) do
  redis.call('XADD', KEYS[2], entry[1], unpack(entry[2]))
end
redis.call('XGROUP', 'CREATE', KEYS[2], 'none', '$', 'MKSTREAM')
redis.call('XGROUP', 'DESTROY', KEYS[2], 'none')
redis.call('XSETID', KEYS[2], last)
redis.call('XADD', KEYS[2], '*', 'type', '-purge', 'note', '', 'reader', '', 'at', '0', 'more', '')
redis.call('PERSIST', KEYS[2])
redis.call('UNLINK', KEYS[1])
return redis.call('RENAME', KEYS[2], KEYS[1])
"""
)
Removals = dict[tuple[bytes, bytes], PositionKey]
"""Position of the last removal of each note and reader, by the name of the field of an event and its value."""


def purge_events(client: Any, prefix: bytes, claim: PurgeClaim) -> None:
    """Purge the events under the prefix of a tenant. Raises redis.exceptions.RedisError, and PurgeError where the claim
    was lost."""
    events = prefix + b"events"
    if not client.exists(events):
        return
    new = events + NEW_STREAM
    client.delete(new)
    removals, seen = _removals(client, events, claim)
    first = b"-"
    while True:
        claim.renew()
        entries = client.xrange(events, first, count=PAGE_SIZE)
        _copy(client, prefix, entries, removals, seen)
        first = b"(" + entries[-1][0] if entries else first
        if len(entries) < PAGE_SIZE:
            break
    client.eval(EXCHANGE, 3, events, new, PurgeClaim.KEY, first, claim.token)


def _removals(client: Any, events: bytes, claim: PurgeClaim) -> tuple[Removals, PositionKey]:
    """Return the removals that a stream records, and the position of the last entry that was read for them."""
    removals: Removals = {}
    first = b"-"
    seen: PositionKey = (0, 0)
    while entries := client.xrange(events, first, count=PAGE_SIZE):
        claim.renew()
        for position, fields in entries:
            seen = position_key(position.decode())
            kind = CONTROL.get(fields.get(b"type", b""))
            if kind in ("note", "reader") and (name := fields.get(kind.encode())) is not None:
                removals[kind.encode(), name] = seen
        first = b"(" + entries[-1][0]
    return removals, seen


def _copy(client: Any, prefix: bytes, entries: list[Any], removals: Removals, seen: PositionKey) -> None:
    """Copy the events whose note exists and that no later removal in `removals` covers. Control entries up to `seen`
    are in `removals`, so they have been applied and are left out. Later ones are copied: events that they remove may
    have been copied, too, and followers must apply them. An entry without a field that every event has is left out."""
    entries = [entry for entry in entries if entry[1].keys() >= FIELDS]
    events = [entry for entry in entries if entry[1][b"type"] not in CONTROL]
    notes = list(dict.fromkeys(fields[b"note"] for _, fields in events))
    pipeline = client.pipeline(transaction=False)
    for note in notes:
        pipeline.exists(prefix + b"note:" + note)
    stored = dict(zip(notes, pipeline.execute(), strict=True))
    to_copy: list[bytes] = []
    for position, fields in entries:
        at = position_key(position.decode())
        if fields[b"type"] in CONTROL:
            is_kept = at > seen
        else:
            removed = [removals.get((name, fields[name]), (0, 0)) for name in (b"note", b"reader")]
            is_kept = stored[fields[b"note"]] and at > max(removed)
        if is_kept:
            to_copy.append(position)
    events_key = prefix + b"events"
    client.eval(COPY, 2, events_key, events_key + NEW_STREAM, NEW_STREAM_SECONDS, *to_copy)
