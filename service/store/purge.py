"""Purge of a Redis: erases removed data from its change logs, events, remembered answers and append-only file.

A removed note is gone from memory at once, and stays in the append-only file until that is rewritten. Its id stays in
the change log, in the answers that are remembered for repeated requests, and in ranked lists that are kept for pages.
"""

from __future__ import annotations

import contextlib
import math
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import orjson
import structlog
from redis.exceptions import RedisError, ResponseError

from service.access.principal import DEFAULT_TENANT
from service.records import ORIGIN
from service.store.change_log import PURGE
from service.store.clients import client_of
from service.store.event_purge import purge_events
from service.store.purge_claim import PurgeClaim, PurgeError
from service.store.redis_keys import HASH_TAG, TENANT_PATTERN, RedisKeys
from service.store.scripts import FIRST_WRITE

PREFIX = re.compile(re.escape(HASH_TAG.encode()) + TENANT_PATTERN)
"""Prefix of the keys of one tenant."""
FOLLOW_SECONDS = 1.0
"""Time that replicas have to read the entry of the purge, which takes them milliseconds. A replica that has not read it
by then rebuilds its index."""
CHECK_SECONDS = 0.05
"""Pause between two checks whether the server has rewritten its file."""
CHILD_RUNS = re.compile("already in progress|child process")
"""Matches the server's refusals of a dump or a rewrite while it makes another one."""
REWRITES = ("aof_rewrite_in_progress", "aof_rewrite_scheduled")
"""Fields of INFO persistence that are set while the server rewrites its append-only file, or is about to."""
SCAN_COUNT = 1000
"""Keys that are looked at in one round trip."""
T = TypeVar("T")
LAST = f"{HASH_TAG}purged"
"""Key of the time of the last purge on schedule."""
CUT_AT = f"{HASH_TAG}purge:cut"
"""Key of the time at which a purge on schedule cut the logs, until the server has rewritten its file."""
FAILED = f"{HASH_TAG}purge:failed"
"""Key that exists until a purge on schedule that has failed may be tried again."""
FAILING_SINCE = f"{HASH_TAG}purge:failing"
"""Key of the time of the first purge on schedule that failed since the last one that was done."""
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 60.0, 3600.0
"""Bounds on the back-off between these attempts, which is as long as they have been failing. Until the streams of
events were replaced, each attempt copies them; after that it costs a fork, and the space of a second file until it
fails."""
COMPRESSION = f"{HASH_TAG}purge:compression"
"""Key of the server's own setting rdbcompression, while a purge has changed it."""
CANARY = f"{HASH_TAG}purge:canary:"
"""Prefix of the key of a text by which the store's files are recognised."""
CANARY_REPETITIONS = 8
"""Repetitions in the text, so that a server which compresses its files compresses it."""
CANARY_SECONDS = 86_400
"""Time to live of the text, for the case that a purge is killed."""
log = structlog.get_logger(__name__)

# KEYS log; ARGV PURGE. Appends the entry of the purge; nothing where there is no log any more.
MARK = FIRST_WRITE + "return redis.call('XADD', KEYS[1], 'NOMKSTREAM', '*', 'id', '', 'op', ARGV[1])"
# KEYS of a string; ARGV its value, and for SET_FOR the seconds for which it is there.
SET = FIRST_WRITE + "redis.call('SET', KEYS[1], ARGV[1])"
SET_FOR = FIRST_WRITE + "redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])"
# KEYS log, another key; ARGV position. Rewrites the log without what is before the position: XTRIM and XDEL leave the
# bytes of single entries where they were. Answers false where there is no log any more.
CUT = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
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
    """A change log that begins at `position`, and the identity of its store."""

    prefix: str
    identity: str
    position: str


def purge_store(url: str, ids: Collection[str] = (), tenant: str = DEFAULT_TENANT) -> list[PurgedLog]:
    """Purge all tenants of the Redis at `url`, while services use it, once any running purge has ended. `ids`: removed
    notes of `tenant`, whose remembered answers are forgotten too. Raises PurgeError."""
    with _client(url) as client:
        claim = PurgeClaim(client)
        claim.wait()
        try:
            _refuse_stored(client, claim, RedisKeys(tenant), ids)
            _forget_answers(client, claim, RedisKeys(tenant), frozenset(ids))
            logs = _purge_streams(client, claim)
            _rewrite_file(client, claim)
            return logs
        finally:
            claim.release()


def logs_of_store(url: str) -> list[PurgedLog]:
    """Return the change logs of all tenants as they begin now; one without entries begins at ORIGIN. Raises
    PurgeError."""
    with _client(url) as client:
        firsts = [(key, client.xrange(key, count=1)) for key in _log_keys(client)]
        return [_read_log(client, key, entries[0][0] if entries else ORIGIN.encode()) for key, entries in firsts]


def last_purge(url: str, now: float) -> float:
    """Return the time of the last purge on schedule; before the first one, that of the first call of this function,
    which it stores, but not a time after the server's. It also replaces a stored time that is after the server's, whose
    clock was set back: no purge would be due before that time. Raises PurgeError."""
    with _client(url) as client:
        last = float(client.get(LAST) or math.inf)
        if last > _time(client):
            last = min(now, _time(client))
            client.eval(SET, 1, LAST, last)
        return last


def purge_store_if_due(url: str, seconds: float, now: float) -> tuple[float, bool]:
    """Purge the store if the last purge was `seconds` ago and no other process is purging it. `now`: this replica's
    time; if its clock is ahead, the server's time counts, since it would purge at each check beside a replica that has
    the right time. Return the time of the last purge, as `last_purge` does, and whether this call made it. Where no
    purge is due, restore the server's setting that an interrupted purge has changed. Raises PurgeError."""
    last = last_purge(url, now)
    with _client(url) as client:
        claim, now = PurgeClaim(client), min(now, _time(client))
        if not (_is_due(client, seconds, now) or client.exists(COMPRESSION)) or not claim.take():
            return last, False
        try:
            _restore_compression(client)
            if not _is_due(client, seconds, now):  # another replica has just done it
                return float(client.get(LAST)), False
            return _purge_on_schedule(client, claim, seconds, now), True
        finally:
            claim.release()


def _time(client: Any) -> float:
    """Return the server's time."""
    seconds, microseconds = client.time()
    return float(seconds + microseconds / 1e6)


def _is_due(client: Any, seconds: float, now: float) -> bool:
    """Return whether the last purge was `seconds` ago, and no back-off after a failed attempt is running."""
    return now >= float(client.get(LAST)) + seconds and not client.exists(FAILED)


def _purge_on_schedule(client: Any, claim: PurgeClaim, seconds: float, now: float) -> float:
    """Purge the store, and return the time such that everything removed before it is erased. Once the logs are cut,
    only the rewrite of the file is tried again, until `seconds` have passed: if each attempt cut the logs, followers
    would lose their place in them."""
    cut_at = float(client.get(CUT_AT) or -math.inf)
    try:
        if not cut_at <= now < cut_at + seconds:
            _purge_streams(client, claim)
            client.eval(SET, 1, CUT_AT, cut_at := now)
        _rewrite_file(client, claim)
    except Exception:
        since = float(client.get(FAILING_SINCE) or now)
        client.eval(SET, 1, FAILING_SINCE, since)
        client.eval(SET_FOR, 1, FAILED, now, int(min(max(now - since, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)))
        raise
    client.eval(SET, 1, LAST, cut_at)
    client.delete(CUT_AT, FAILING_SINCE)
    return cut_at


@contextlib.contextmanager
def canary_in_store(url: str) -> Iterator[str]:
    """Keep a text in the store during the block, and yield the text: files that have it are the store's, and are not
    compressed, which would shorten it. Raises PurgeError."""
    token = secrets.token_hex(8)
    text = token * CANARY_REPETITIONS
    with _client(url) as client:
        client.eval(SET_FOR, 1, CANARY + token, text, CANARY_SECONDS)
    try:
        yield text
    finally:
        with contextlib.suppress(PurgeError), _client(url) as client:
            client.delete(CANARY + token)


@contextlib.contextmanager
def _client(url: str) -> Iterator[Any]:
    """Yield a client of a store; its failures are raised as PurgeError."""
    try:
        with client_of(url) as client:
            yield client
    except (RedisError, OSError, ValueError) as error:
        raise PurgeError(f"the store was not purged: {error}") from error


def _purge_streams(client: Any, claim: PurgeClaim) -> list[PurgedLog]:
    """Rewrite the streams of events and the change logs of all tenants without what was removed. Events come first:
    they need the most memory, and where it does not suffice, no log is cut."""
    _forget_lists(client, claim)
    log_keys = list(_log_keys(client))
    for key in log_keys:
        claim.renew()
        purge_events(client, key.removesuffix(b"log"), claim)
    marks = [(key, client.eval(MARK, 1, key, PURGE)) for key in log_keys]
    begun = [(key, position) for key, position in marks if position]  # else its tenant was removed just now
    time.sleep(FOLLOW_SECONDS if begun else 0)
    purged = []
    for key, position in begun:
        claim.renew()
        if client.eval(CUT, 2, key, key + b":new", position) is not None:
            purged.append(_read_log(client, key, position))
    return purged


def _log_keys(client: Any) -> Iterator[bytes]:
    """Yield the keys of the change logs of all tenants, each once."""
    for key in set(client.scan_iter(match=f"{HASH_TAG}*log", count=SCAN_COUNT, _type="stream")):
        if PREFIX.fullmatch(key.removesuffix(b"log")):
            yield key


def _refuse_stored(client: Any, claim: PurgeClaim, keys: RedisKeys, ids: Collection[str]) -> None:
    for page in _pages(ids, claim):
        pipeline = client.pipeline(transaction=False)
        for note_id in page:
            pipeline.exists(keys.note + note_id)
        for note_id, stored in zip(page, pipeline.execute(), strict=True):
            if stored:
                raise PurgeError(f"note {note_id!r} of tenant {keys.tenant!r} is still stored; delete it first")


def _forget_answers(client: Any, claim: PurgeClaim, keys: RedisKeys, ids: frozenset[str]) -> None:
    """Forget the answers about some notes that are remembered for repeated requests."""
    if not ids:
        return
    for page in _pages(client.scan_iter(match=f"{keys.record}*", count=SCAN_COUNT, _type="hash"), claim):
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
    """Yield SCAN_COUNT items at a time, and renew the claim before each page."""
    left = iter(items)
    while page := list(islice(left, SCAN_COUNT)):
        claim.renew()
        yield page


def _read_log(client: Any, log_key: bytes, position: bytes) -> PurgedLog:
    """Return the tenant and the identity of a change log, which begins at `position`."""
    prefix = log_key.removesuffix(b"log")
    return PurgedLog(prefix.decode(), (client.get(prefix + b"identity") or b"").decode(), position.decode())


def _rewrite_file(client: Any, claim: PurgeClaim) -> None:
    """Have the server rewrite its files, and return once it has: the append-only file, and the dump where it makes one.
    They are not compressed, so that they can be searched."""
    with _compressing_nothing(client):
        if _wait(client, claim, *REWRITES).get("aof_enabled"):
            _begin(client.bgrewriteaof, client, claim, *REWRITES)
            if _wait(client, claim, *REWRITES)["aof_last_bgrewrite_status"] != "ok":
                raise PurgeError("the server could not rewrite its append-only file; see the log of the server")
        if client.info("persistence").get("rdb_last_save_time") and _dumps(client):
            _dump(client, claim)


def _dump(client: Any, claim: PurgeClaim) -> None:
    """Have the server make a dump that begins after this call, and return once it is written."""
    dump = partial(client.bgsave, schedule=False)  # a scheduled one would begin after the wait
    _begin(dump, client, claim, "rdb_bgsave_in_progress", *REWRITES)
    if _wait(client, claim, "rdb_bgsave_in_progress")["rdb_last_bgsave_status"] != "ok":
        raise PurgeError("the server could not write its dump; see the log of the server")


@contextlib.contextmanager
def _compressing_nothing(client: Any) -> Iterator[None]:
    """Turn off the compression of the server's files during the block. The server's own setting is kept in the store
    meanwhile, so that the next purge, or check whether one is due, restores it where this one is interrupted."""
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
    """Restore the server's setting that a purge has changed. This is tried only once: later purges must not depend on a
    server that now forbids CONFIG SET."""
    if compression := client.get(COMPRESSION):
        try:
            client.config_set("rdbcompression", compression)
        except ResponseError as error:
            detail = f"rdbcompression could not be set back to {compression.decode()} after a purge: {error}"
            log.error("compression_not_restored", detail=detail)
        client.delete(COMPRESSION)


def _dumps(client: Any) -> bool:
    """Return whether the server is set to dump its data at intervals."""
    with contextlib.suppress(ResponseError, KeyError):
        return bool(client.config_get("save")["save"])
    return False


def _begin(command: Callable[[], object], client: Any, claim: PurgeClaim, *fields: str) -> None:
    """Send a command for a dump or a rewrite once none of these fields is set, and again where the server has begun
    another one meanwhile."""
    while True:
        _wait(client, claim, *fields)
        try:
            command()
            return
        except ResponseError as error:
            if not CHILD_RUNS.search(str(error)):
                raise
            claim.renew()
            time.sleep(CHECK_SECONDS)


def _wait(client: Any, claim: PurgeClaim, *fields: str) -> Any:
    """Wait until none of `fields` is set in the server's INFO persistence; return this INFO."""
    while True:
        persistence = client.info("persistence")
        if not any(persistence.get(field) for field in fields):
            return persistence
        claim.renew()
        time.sleep(CHECK_SECONDS)
