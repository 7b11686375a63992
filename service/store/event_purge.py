"""Purge of a stream of events: it is written anew without the events of removed notes and forgotten readers.

XDEL and XTRIM leave the bytes of single entries where they were. The stream is copied page by page beside services that
use it, and exchanged in one step, whose last entry tells followers to read it from its beginning.
"""

from __future__ import annotations

from typing import Any

from service.records import PositionKey, position_key
from service.store.events import CONTROL, NEW_STREAM

PAGE_SIZE = 1000
"""Entries that are copied in one round trip."""
# KEYS events, new events; ARGV last position that was copied.
EXCHANGE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return redis.call('DEL', KEYS[2]) end
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], '+')) do
  redis.call('XADD', KEYS[2], entry[1], unpack(entry[2]))
end
redis.call('XADD', KEYS[2], '*', 'type', '-purge', 'note', '', 'reader', '', 'at', '0', 'more', '')
redis.call('UNLINK', KEYS[1])
return redis.call('RENAME', KEYS[2], KEYS[1])
"""


def purge_events(client: Any, prefix: bytes) -> None:
    """Purge the events below the prefix of a tenant. Raises redis.exceptions.RedisError."""
    events = prefix + b"events"
    if not client.exists(events):
        return
    new = events + NEW_STREAM
    client.delete(new)
    ended = _removals(client, events)
    first = b"-"
    while True:
        entries = client.xrange(events, first, count=PAGE_SIZE)
        _copy(client, prefix, new, entries, ended)
        first = b"(" + entries[-1][0] if entries else first
        if len(entries) < PAGE_SIZE:
            break
    client.eval(EXCHANGE, 2, events, new, first)


def _removals(client: Any, events: bytes) -> dict[bytes, PositionKey]:
    """Return the position of the last removal of each note that was removed."""
    removals: dict[bytes, PositionKey] = {}
    first = b"-"
    while entries := client.xrange(events, first, count=PAGE_SIZE):
        for position, fields in entries:
            if CONTROL.get(fields[b"type"]) == "note":
                removals[fields[b"note"]] = position_key(position.decode())
        first = b"(" + entries[-1][0]
    return removals


def _copy(client: Any, prefix: bytes, new: bytes, entries: list[Any], removals: dict[bytes, PositionKey]) -> None:
    """Copy the events among some entries whose notes are there and were not removed since."""
    events = [entry for entry in entries if entry[1][b"type"] not in CONTROL]
    notes = list(dict.fromkeys(fields[b"note"] for _, fields in events))
    pipeline = client.pipeline(transaction=False)
    for note in notes:
        pipeline.exists(prefix + b"note:" + note)
    stored = dict(zip(notes, pipeline.execute(), strict=True))
    for position, fields in events:
        if stored[fields[b"note"]] and position_key(position.decode()) > removals.get(fields[b"note"], (0, 0)):
            pipeline.xadd(new, fields, id=position)
    pipeline.execute()
