"""Purge of a Redis: what was removed leaves its change logs, events, remembered answers and append-only file.

A removed note is gone from memory at once, and stays in the append-only file until that is rewritten. Its id stays in
the change log, in the answers that are remembered for repeated requests, and in ranked lists that are kept for pages.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import orjson
import structlog
from redis.exceptions import RedisError, ResponseError

from service.store.change_log import PURGE
from service.store.clients import client_of
from service.store.event_purge import purge_events
from service.store.keys import HASH_TAG, TENANT_PATTERN
from service.store.purge_claim import PurgeClaim, PurgeError
from service.store.scripts import FIRST_WRITE

PREFIX = re.compile(re.escape(HASH_TAG.encode()) + TENANT_PATTERN)
"""Prefix of the keys of one tenant."""
FOLLOW_SECONDS = 1.0
"""How long replicas have to read the entry of the purge, which takes them milliseconds. One that has not read it then
builds its index anew."""
CHECK_SECONDS = 0.05
"""Pause between two looks whether the server has rewritten its file."""
SCAN_COUNT = 1000
"""Keys that are looked at in one round trip."""
T = TypeVar("T")
LAST = f"{HASH_TAG}purged"
"""Key of the time of the last purge on schedule."""
COMPRESSION = f"{HASH_TAG}purge:compression"
"""Key of the server's own setting rdbcompression, while a purge has changed it."""
log = structlog.get_logger(__name__)

# KEYS log; ARGV PURGE. Appends the entry of the purge; nothing where there is no log any more.
MARK = FIRST_WRITE + "return redis.call('XADD', KEYS[1], 'NOMKSTREAM', '*', 'id', '', 'op', ARGV[1])"
# KEYS of a string; ARGV its value.
SET = FIRST_WRITE + "redis.call('SET', KEYS[1], ARGV[1])"
# KEYS log, another key; ARGV position. Rewrites the log without what is before the position: XTRIM and XDEL leave the
# bytes of single entries where they were.
CUT = """
local info = redis.call('XINFO', 'STREAM', KEYS[1])
local last, added
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then last = info[i + 1] end
  if info[i] == 'entries-added' then added = info[i + 1] end
end
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], '+')
if #entries == 0 then return 0 end
redis.call('DEL', KEYS[2])
for _, entry in ipairs(entries) do redis.call('XADD', KEYS[2], entry[1], unpack(entry[2])) end
if added then redis.call('XSETID', KEYS[2], last, 'ENTRIESADDED', added) end
redis.call('UNLINK', KEYS[1])
redis.call('RENAME', KEYS[2], KEYS[1])
return #entries
"""


@dataclass(frozen=True, slots=True)
class PurgedLog:
    """A change log that begins at `position` now, and the identity of its store."""

    prefix: str
    identity: str
    position: str


def purge_store(url: str, ids: Collection[str] = ()) -> list[PurgedLog]:
    """Purge all tenants of the Redis at `url`, beside services that use it, after any purge that is under way. `ids`:
    notes whose remembered answers are forgotten too. Raises PurgeError."""
    with _client(url) as client:
        claim = PurgeClaim(client)
        claim.wait()
        try:
            return _purge(client, claim, ids)
        finally:
            claim.release()


def last_purge(url: str, now: float) -> float:
    """Return the time of the last purge on schedule; before the first one, that of the first call of this function,
    which it stores. It also replaces a stored time after `now`, which a clock that was ahead has left: no purge would
    be due before that time. Raises PurgeError."""
    with _client(url) as client:
        last = float(client.get(LAST) or math.inf)
        if last > now:
            client.eval(SET, 1, LAST, now)
        return min(last, now)


def purge_store_if_due(url: str, seconds: float, now: float) -> tuple[float, bool]:
    """Purge the store if the last purge was `seconds` ago and no process is at it. Return the time of the
    last purge, as `last_purge` does, and whether this call made it. Where no purge is due, restore the server's setting
    that an interrupted purge has changed. Raises PurgeError."""
    last = last_purge(url, now)
    with _client(url) as client:
        claim = PurgeClaim(client)
        if (now < last + seconds and not client.exists(COMPRESSION)) or not claim.take():
            return last, False
        try:
            _restore_compression(client)
            if now < (last := float(client.get(LAST))) + seconds:  # another replica has just done it
                return last, False
            _purge(client, claim, ())
            client.eval(SET, 1, LAST, now)
        finally:
            claim.release()
        return now, True


@contextlib.contextmanager
def _client(url: str) -> Iterator[Any]:
    """Yield a client of a store, whose failures are a PurgeError."""
    try:
        with client_of(url) as client:
            yield client
    except (RedisError, OSError, ValueError) as error:
        raise PurgeError(f"the store was not purged: {error}") from error


def _purge(client: Any, claim: PurgeClaim, ids: Collection[str]) -> list[PurgedLog]:
    logs = list(_logs(client))
    _refuse_stored(client, claim, logs, ids)
    _forget_answers(client, claim, frozenset(ids))
    _forget_lists(client, claim)
    marks = [(log, client.eval(MARK, 1, log, PURGE)) for log in logs]
    begun = [(log, position) for log, position in marks if position]  # else its tenant was removed just now
    time.sleep(FOLLOW_SECONDS if begun else 0)
    for log, position in begun:
        claim.renew()
        client.eval(CUT, 2, log, log + b":new", position)
        purge_events(client, log.removesuffix(b"log"), claim)
    _rewrite_file(client, claim)
    return [_purged(client, log, position) for log, position in begun]


def _logs(client: Any) -> Iterator[bytes]:
    for key in set(client.scan_iter(match=f"{HASH_TAG}*log", count=SCAN_COUNT, _type="stream")):
        if PREFIX.fullmatch(key.removesuffix(b"log")):
            yield key


def _refuse_stored(client: Any, claim: PurgeClaim, logs: Collection[bytes], ids: Collection[str]) -> None:
    notes = ((log.removesuffix(b"log") + b"note:" + note_id.encode(), note_id) for log in logs for note_id in ids)
    for page in _pages(notes, claim):
        pipeline = client.pipeline(transaction=False)
        for key, _ in page:
            pipeline.exists(key)
        for (_, note_id), stored in zip(page, pipeline.execute(), strict=True):
            if stored:
                raise PurgeError(f"the note {note_id!r} is stored; delete it first")


def _forget_answers(client: Any, claim: PurgeClaim, ids: frozenset[str]) -> None:
    """Forget the answers about some notes that are remembered for repeated requests."""
    if not ids:
        return
    for page in _pages(client.scan_iter(match=f"{HASH_TAG}*once:*", count=SCAN_COUNT, _type="hash"), claim):
        pipeline = client.pipeline(transaction=False)
        for key in page:
            pipeline.hget(key, "answer")
        for key, answer in zip(page, pipeline.execute(), strict=True):
            if not ids.isdisjoint(_ids_in(answer)):
                client.delete(key)


def _ids_in(remembered: bytes | None) -> list[str]:
    """Return the ids of notes that a remembered answer names."""
    try:
        answer = orjson.loads(remembered or b"null")
        return [answer.get("id"), *(answer.get("ids") or ()), *(answer.get("missing") or ())]
    except (ValueError, TypeError, AttributeError):  # no answer yet, or that of one removal
        return []


def _forget_lists(client: Any, claim: PurgeClaim) -> None:
    """Remove the lists that are kept for their pages: they name notes that may have been removed since."""
    for page in _pages(client.scan_iter(match=f"{HASH_TAG}*list:*", count=SCAN_COUNT, _type="list"), claim):
        client.delete(*page)


def _pages(items: Iterable[T], claim: PurgeClaim) -> Iterator[list[T]]:
    """Yield SCAN_COUNT items at a time, and hold the claim meanwhile."""
    left = iter(items)
    while page := list(islice(left, SCAN_COUNT)):
        claim.renew()
        yield page


def _purged(client: Any, log: bytes, position: bytes) -> PurgedLog:
    prefix = log.removesuffix(b"log")
    return PurgedLog(prefix.decode(), (client.get(prefix + b"identity") or b"").decode(), position.decode())


def _rewrite_file(client: Any, claim: PurgeClaim) -> None:
    """Have the server write its files anew, and return once it has: the append-only file, and the dump where it makes
    one. They are not compressed, so that they can be searched."""
    with _compressing_nothing(client):
        _wait(client, claim, "aof_rewrite_in_progress", "aof_rewrite_scheduled")
        if client.info("persistence").get("aof_enabled"):
            client.bgrewriteaof()
            status = _wait(client, claim, "aof_rewrite_in_progress", "aof_rewrite_scheduled")[
                "aof_last_bgrewrite_status"
            ]
            if status != "ok":
                raise PurgeError("the server could not rewrite its append-only file; see its log")
        if client.info("persistence").get("rdb_last_save_time") and _dumps(client):
            client.bgsave()
            if _wait(client, claim, "rdb_bgsave_in_progress")["rdb_last_bgsave_status"] != "ok":
                raise PurgeError("the server could not write its dump; see its log")


@contextlib.contextmanager
def _compressing_nothing(client: Any) -> Iterator[None]:
    """Have the server compress none of the files that it writes until the block is left. The store has its own setting
    meanwhile, so that the next purge, or look whether one is due, restores it where this one is broken off."""
    try:
        with contextlib.suppress(ResponseError, KeyError):  # a server that forbids CONFIG
            compression = client.config_get("rdbcompression")["rdbcompression"]
            if compression not in (b"no", "no"):
                client.eval(SET, 1, COMPRESSION, compression)
                try:
                    client.config_set("rdbcompression", "no")
                except ResponseError:  # a server that forbids CONFIG SET alone
                    client.delete(COMPRESSION)
        yield
    finally:
        _restore_compression(client)


def _restore_compression(client: Any) -> None:
    """Give the server back the setting that a purge has changed; once, since later purges must not depend on a server
    that has come to forbid CONFIG SET."""
    if compression := client.get(COMPRESSION):
        try:
            client.config_set("rdbcompression", compression)
        except ResponseError as error:
            detail = f"before a purge rdbcompression was {compression.decode()}, which the server refuses: {error}"
            log.error("compression_not_restored", detail=detail)
        client.delete(COMPRESSION)


def _dumps(client: Any) -> bool:
    """Whether the server dumps its data now and then."""
    with contextlib.suppress(ResponseError, KeyError):
        return bool(client.config_get("save")["save"])
    return False


def _wait(client: Any, claim: PurgeClaim, *fields: str) -> Any:
    """Return what the server says of its files once none of these fields is set."""
    while True:
        persistence = client.info("persistence")
        if not any(persistence.get(field) for field in fields):
            return persistence
        claim.renew()
        time.sleep(CHECK_SECONDS)
