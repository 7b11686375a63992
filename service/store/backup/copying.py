"""Copying all keys of one database into another, with commands that every version of Redis has.

DUMP and RESTORE would be shorter, but an older server refuses what a newer one dumps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any
from uuid import uuid4

from service.records import ORIGIN, position_key
from service.store.backup.contents import BOOKKEEPING_KEY, IDENTITY_KEY, LOG_KEY, pages
from service.store.backup.manifest import BackupError
from service.store.change_log import RESTORE

COPIED_KEYS = 200
"""Keys that are copied in one round trip: bounds the memory that long notes take."""
STREAM_ENTRIES = 1000
"""Entries of a stream that are copied in one round trip."""
CUT_OFF, EARLIEST = "0-1", "0-2"
"""Positions in a restored change log: that of an entry which is written and removed at once, so that the log counts as
trimmed; and the lowest one that its first entry may have."""
TENANTS = b"}:tenants"
"""End of the key that lists the identities of all tenants' stores."""
READERS: dict[bytes, Callable[[Any, bytes], object]] = {
    b"string": lambda source, key: source.get(key),
    b"hash": lambda source, key: source.hgetall(key),
    b"set": lambda source, key: source.smembers(key),
    b"zset": lambda source, key: source.zrange(key, 0, -1, withscores=True),
    b"list": lambda source, key: source.lrange(key, 0, -1),
}
WRITERS: dict[bytes, Callable[[Any, bytes, Any], object]] = {
    b"string": lambda target, key, value: target.set(key, value),
    b"hash": lambda target, key, value: target.hset(key, mapping=value),
    b"set": lambda target, key, value: target.sadd(key, *value),
    b"zset": lambda target, key, value: target.zadd(key, dict(value)),
    b"list": lambda target, key, value: target.rpush(key, *value),
}


def copy_all(source: Any, target: Any, on_keys: Callable[[int], object]) -> None:
    """Copy all keys of `source`, which nobody changes, into an empty database. Raises BackupError for a key of a type
    that no version of this service writes.

    The copy is a new store: it has a new identity, so that no replica uses its snapshot of the old store with it, and
    its change logs begin at their last positions, so that positions keep rising.
    """
    names = {
        source.get(key): uuid4().hex.encode()
        for key in source.scan_iter(match=b"*:identity", count=COPIED_KEYS)
        if IDENTITY_KEY.fullmatch(key)
    }
    for page in pages(source):
        for begin in range(0, len(page), COPIED_KEYS):
            _copy_keys(source, target, page[begin : begin + COPIED_KEYS], names)
        on_keys(len(page))


def _copy_keys(source: Any, target: Any, keys: Sequence[bytes], names: Mapping[bytes, bytes]) -> None:
    """Copy some keys. `names`: new identities by those in the source."""
    asking = source.pipeline(transaction=False)
    for key in keys:
        asking.type(key).pexpiretime(key)
    answers = asking.execute()
    described = list(zip(keys, answers[::2], answers[1::2], strict=True))
    for key, kind, expiry in described:
        if kind == b"stream" and LOG_KEY.fullmatch(key):
            _begin_log(target, key, source.xinfo_stream(key)["last-generated-id"].decode())
        elif kind == b"stream":
            _copy_stream(source, target, key)
            _expire(target, key, expiry)
        elif kind not in (*READERS, b"none"):  # none: it has expired meanwhile
            raise BackupError(f"the data set has the key {key!r} of the unknown type {kind.decode()}")
        if IDENTITY_KEY.fullmatch(key) and not source.exists(log := key.removesuffix(b"identity") + b"log"):
            _begin_log(target, log, ORIGIN)
    plain = [entry for entry in described if entry[1] in READERS and not BOOKKEEPING_KEY.fullmatch(entry[0])]
    reading, writing = source.pipeline(transaction=False), target.pipeline(transaction=False)
    for key, kind, _ in plain:
        READERS[kind](reading, key)
    for (key, kind, expiry), value in zip(plain, reading.execute(), strict=True):
        if value is None or (kind != b"string" and not value):  # it has expired meanwhile
            continue
        WRITERS[kind](writing, key, _renamed(key, value, names))
        _expire(writing, key, expiry)
    writing.execute()


def _renamed(key: bytes, value: Any, names: Mapping[bytes, bytes]) -> Any:
    """Return the value of a key with new identities in place of the old ones."""
    if IDENTITY_KEY.fullmatch(key):
        return names[value]
    if key.endswith(TENANTS):  # an entry may have a mark before the identity
        return {
            tenant: reduce(lambda entry, name: entry.replace(*name), names.items(), entry)
            for tenant, entry in value.items()
        }
    return value


def _expire(target: Any, key: bytes, expiry: int) -> None:
    if expiry > 0:
        target.pexpireat(key, expiry)


def begin_of_log(last: str) -> str:
    """Return the first position in the copy of a change log whose last position is `last`."""
    return max(last, EARLIEST, key=position_key)


def _begin_log(target: Any, key: bytes, last: str) -> None:
    """Begin the copy of a change log with one entry at the last position: a follower that has reached this position
    goes on from there. An entry that is removed at once makes the log count as trimmed before it."""
    entry: dict[Any, Any] = {"id": "", "op": RESTORE}
    target.xadd(key, entry, id=CUT_OFF)
    target.xdel(key, CUT_OFF)
    target.xadd(key, entry, id=begin_of_log(last))


def _copy_stream(source: Any, target: Any, key: bytes) -> None:
    first = "-"
    while entries := source.xrange(key, first, count=STREAM_ENTRIES):
        writing = target.pipeline(transaction=False)
        for position, fields in entries:
            writing.xadd(key, fields, id=position)
        writing.execute()
        first = b"(" + entries[-1][0]
