"""EventStore on Redis: the stream of what readers did with the notes of one tenant.

Each entry has the fields type, note, reader, at (milliseconds) and more (JSON), always in this order, so that Redis
stores the names once for many entries. An entry whose type begins with "-" is no event: see CONTROL. `reader` is a
pseudonym, a digest under the tenant's salt: the names of users are nowhere in the store. redis_keys.py has the
names of the keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping, Sequence
from types import NoneType
from typing import Any, Literal
from uuid import uuid4

import orjson
import structlog

from service.errors import StoreUnavailable, TenantRemoved
from service.events import Event, EventBounds, EventEntry, EventOutcome, EventStreamEnd
from service.records import ORIGIN
from service.store.change_log import fields_of, stream_entries
from service.store.connection import Command, Connection
from service.store.document import END_SECOND, FIRST_SECOND
from service.store.idempotency import REMOVED
from service.store.known_position import KnownPosition
from service.store.purge_claim import PurgeClaim
from service.store.redis_keys import DEFAULT_KEYS, RedisKeys
from service.store.scripts import FIRST_WRITE, LOG_END

CONTROL: Mapping[bytes, Literal["note", "reader", "purge"]] = {
    b"-note": "note",
    b"-reader": "reader",
    b"-purge": "purge",
}
"""Types of entries that are no events, and the kinds that they are read as."""
PLAIN = (str, int, float, bool, NoneType)
"""Types of the values of an event's details."""
NEW_STREAM = b":new"
"""Suffix of the name of a stream that a purge writes (event_purge.py)."""
READER_BYTES = 10
"""Bytes of a reader's pseudonym: among a billion readers two share one with a probability of one in a million."""
ID_BYTES = 9
"""Bytes that are kept of an event's id, as 12 letters: of a million ids two share one with a probability of one in ten
billion."""
ADD_BATCH_SIZE = 200
"""Number of events that one script adds: it blocks the server for 1.5 ms; 1,000 events would for 7 ms (one core of an
AMD EPYC). With any number from 50 to 1,000 an event takes 7 to 8 us; each script is a round trip and an fsync."""
MAX_ADDS = 2
"""Maximum number of scripts with several events of one tenant that a process sends concurrently: any other command
waits for all that arrived before it. Scripts with a single event are not limited, since they take little of the
server's time."""
BATCH_SIZE = 1000
"""Entries that one script looks through: a few milliseconds of the server."""
ADD_ATTEMPTS = 3
"""Attempts at one script where the salt changes meanwhile, which happens only when the store was emptied."""
OTHER_SALT = b"salt"
OUTCOMES: tuple[EventOutcome, ...] = ("accepted", "duplicate", "unknown_note")
"""Meanings of the numbers that ADD answers."""

# KEYS salt, identity; ARGV a new salt or "", the identity that the store must have or "". Answers the salt, "" without
# one.
SALT = """
if ARGV[2] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[2] then return 'removed' end
local salt = redis.call('GET', KEYS[1])
if salt or ARGV[1] == '' then return salt or '' end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
"""
# `key` is that of a stream; `kept` and `bytes`: milliseconds and bytes that it may hold. `cut` is '=' to remove every
# older entry, or '~' to cut only whole blocks of about a hundred entries, which is faster. Where the stream has too
# many bytes, whole blocks are cut.
TRIM_FUNCTION = """
local function trim(key, kept, bytes, cut)
  local now = redis.call('TIME')
  redis.call('XTRIM', key, 'MINID', cut, string.format('%.0f', math.max(0, now[1] * 1000 - kept)))
  local used = redis.call('MEMORY', 'USAGE', key) or 0
  if used > tonumber(bytes) then
    redis.call('XTRIM', key, 'MAXLEN', '~', math.floor(redis.call('XLEN', key) * bytes / used))
  end
  return redis.call('MEMORY', 'USAGE', key) or 0
end
"""
# KEYS events, new events, claim of a purge; ARGV milliseconds and bytes that the stream may hold. Also removes the new
# stream of a purge by an earlier version that was killed: it has no time to live.
TRIM = (
    TRIM_FUNCTION
    + """
if redis.call('EXISTS', KEYS[3]) == 0 and redis.call('TTL', KEYS[2]) == -1 then redis.call('UNLINK', KEYS[2]) end
local used = trim(KEYS[1], ARGV[1], ARGV[2], '=')
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
return {used, first and first[1] or false}
"""
)
# KEYS events, identity. Answers the position of the last entry ever written, how many were ever written (from Redis 7
# on), and the identity.
STREAM_END = (
    LOG_END
    + """
local added = false
for i = 1, #info, 2 do if info[i] == 'entries-added' then added = info[i + 1] end end
return {last, added, redis.call('GET', KEYS[2])}
"""
)
# KEYS log, events, ids, old ids, identity, salt, notes; ARGV identity or "", salt, milliseconds and bytes that the
# stream may hold, milliseconds that an id is known, ids of one generation, and the events as one JSON list: of each the
# digest of its id, the place of its note among the keys, type, note, reader, at, more. Passed as separate arguments
# they would take a third more computing in all.
# An id goes into the younger of two sets, and is looked for in both. The younger becomes the older one when it is full,
# or as old as ids are known, and an event is added. XADD comes first, as in scripts.py.
# Answers the end of the log of notes, which covers the notes that it found and missed, and the outcomes.
ADD = (
    TRIM_FUNCTION
    + LOG_END
    + """
if ARGV[1] ~= '' and redis.call('GET', KEYS[5]) ~= ARGV[1] then return 'removed' end
if redis.call('GET', KEYS[6]) ~= ARGV[2] then return 'salt' end
local events, ids, old, known = KEYS[2], KEYS[3], KEYS[4], tonumber(ARGV[5])
local left = redis.call('PTTL', ids)
local is_full = left >= 0 and (left <= known or redis.call('SCARD', ids) >= tonumber(ARGV[6]))
local stored, outcomes = {}, {}
for i = 7, #KEYS do stored[i] = redis.call('EXISTS', KEYS[i]) == 1 end
for i, event in ipairs(cjson.decode(ARGV[7])) do
  local id, outcome = event[1], 0
  if redis.call('SISMEMBER', old, id) == 1 or redis.call('SISMEMBER', ids, id) == 1 then
    outcome = 1
  elseif not stored[event[2]] then
    outcome = 2
  else
    redis.call('XADD', events, '*', 'type', event[3], 'note', event[4], 'reader', event[5], 'at', event[6],
      'more', event[7])
    if is_full then
      redis.call('RENAME', ids, old)
      is_full, left = false, -2
    end
    redis.call('SADD', ids, id)
  end
  outcomes[i] = outcome
end
if left < 0 then redis.call('PEXPIRE', ids, 2 * known) end
trim(events, ARGV[3], ARGV[4], '~')
return {last, outcomes}
"""
)
# KEYS events, identity; ARGV identity or "", reader.
MARK_FORGOTTEN = (
    FIRST_WRITE
    + """
if ARGV[1] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'removed' end
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
return redis.call('XADD', KEYS[1], '*', 'type', '-reader', 'note', '', 'reader', ARGV[2], 'at', '0', 'more', '')
"""
)
# KEYS events, new events; ARGV reader, first and last position, how many to look through. Answers how many were
# removed, and the position of the last one that was looked at, where more may follow.
REMOVE_EVENTS = """
local entries, removed = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[3], 'COUNT', ARGV[4]), 0
for _, entry in ipairs(entries) do
  if entry[2][6] == ARGV[1] and string.sub(entry[2][2], 1, 1) ~= '-' then
    removed = removed + redis.call('XDEL', KEYS[1], entry[1])
    redis.call('XDEL', KEYS[2], entry[1])
  end
end
return {removed, #entries == tonumber(ARGV[4]) and entries[#entries][1] or false}
"""

# KEYS events; ARGV reader, first position, how many to look through. Answers the reader's events, and the position of
# the last entry that was looked at, where more may follow.
READ_EVENTS = """
local entries, of_reader = redis.call('XRANGE', KEYS[1], ARGV[2], '+', 'COUNT', ARGV[3]), {}
for _, entry in ipairs(entries) do
  if entry[2][6] == ARGV[1] and string.sub(entry[2][2], 1, 1) ~= '-' then of_reader[#of_reader + 1] = entry end
end
return {of_reader, #entries == tonumber(ARGV[3]) and entries[#entries][1] or false}
"""

log = structlog.get_logger(__name__)


class RedisEventStore:
    """EventStore on Redis. `identity`, `known`: the identity that the store must have and the known position of its
    log, as in RedisNoteStore."""

    def __init__(
        self,
        connection: Connection,
        bounds: EventBounds,
        keys: RedisKeys = DEFAULT_KEYS,
        identity: str = "",
        known: KnownPosition | None = None,
    ) -> None:
        self._connection = connection
        self._bounds = bounds
        self._keys = keys
        self._identity = identity
        self._known = known
        self._salt = b""
        """Salt of the readers' pseudonyms; empty before it was read."""
        self._slots = asyncio.Semaphore(MAX_ADDS)

    async def add(self, events: Sequence[Event]) -> list[EventOutcome]:
        outcomes: list[EventOutcome] = []
        for begin in range(0, len(events), ADD_BATCH_SIZE):
            outcomes += await self._add(events[begin : begin + ADD_BATCH_SIZE])
        if events:
            await self._connection.wait_for_disk()
        return outcomes

    async def _add(self, events: Sequence[Event]) -> list[EventOutcome]:
        """Add events by one script; they are durable after `wait_for_disk`. Raises TenantRemoved."""
        for _ in range(ADD_ATTEMPTS):
            command = self._add_command(events, await self._read_salt())
            slot = self._slot() if len(events) > 1 else contextlib.nullcontext()
            async with slot, self._connection.call("add events"):
                (answer,) = await self._connection.send(command.words)
            if answer == REMOVED:
                raise TenantRemoved
            if answer != OTHER_SALT:
                log_end, outcomes = answer
                if self._known:  # before a caller learns which notes exist
                    self._known.advance_to(log_end.decode())
                return [OUTCOMES[number] for number in outcomes]
            self._salt = b""
        raise StoreUnavailable("it keeps being emptied")

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Hold one of the MAX_ADDS slots during the block. Raises StoreUnavailable where earlier scripts take longer
        than a call may."""
        try:
            async with asyncio.timeout(self._connection.timeout_seconds):
                await self._slots.acquire()
        except TimeoutError as error:
            raise StoreUnavailable("it is still storing earlier events") from error
        try:
            yield
        finally:
            self._slots.release()

    def _add_command(self, events: Sequence[Event], salt: bytes) -> Command:
        keys = self._keys
        fixed = [keys.log, keys.events, keys.event_ids, keys.old_event_ids, keys.identity, keys.event_salt]
        places = {note_id: place for place, note_id in enumerate(dict.fromkeys(event.note_id for event in events), 7)}
        bounds = self._bounds
        rows = [
            (
                _digest(event.id),
                places[event.note_id],
                event.type,
                event.note_id,
                _pseudonym(event.reader, salt),
                str(int(event.at * 1000)),
                event.details.decode(),
            )
            for event in events
        ]
        arguments = (
            *(self._identity, salt, int(bounds.seconds * 1000), bounds.bytes),
            *(int(bounds.id_seconds * 1000), bounds.ids // 2, orjson.dumps(rows)),
        )
        return Command(ADD, [*fixed, *(keys.note + note_id for note_id in places)], arguments)

    async def read(self, after: str, count: int, block_seconds: float) -> tuple[list[EventEntry], EventStreamEnd]:
        block = max(1, int(min(block_seconds, self._connection.timeout_seconds / 2) * 1000))
        async with self._connection.call("read events"):
            read = ("XREAD", "COUNT", count, "BLOCK", block, "STREAMS", self._keys.events, after)
            end_of = Command(STREAM_END, [self._keys.events, self._keys.identity], ())
            answer, (last, added, identity) = await self._connection.send(read, end_of.words)
        end = EventStreamEnd(last.decode(), added, str(identity or b"", "ascii"))
        if self._identity not in ("", end.store):
            raise TenantRemoved
        return [decode_entry(*entry) for entry in stream_entries(answer)], end

    async def last(self) -> str:
        async with self._connection.call("last event"):
            entries = await self._connection.redis.xrevrange(self._keys.events, count=1)
        return entries[0][0].decode() if entries else ORIGIN

    async def read_events_of(self, reader: str) -> AsyncIterator[list[EventEntry]]:
        salt = await self._current_salt()
        pseudonym, first = _pseudonym(reader, salt), b"-" if salt else b""
        while first:
            async with self._connection.call("read a reader's events"):
                entries, last = await self._connection.redis.eval(
                    READ_EVENTS, 1, self._keys.events, pseudonym, first, BATCH_SIZE
                )
            yield [decode_entry(*entry) for entry in entries]
            first = b"(" + last if last else b""

    async def forget(self, reader: str) -> int:
        if not (salt := await self._current_salt()):
            return 0
        pseudonym = _pseudonym(reader, salt)
        keys = (self._keys.events, self._keys.identity)
        mark = await self._write(Command(MARK_FORGOTTEN, keys, (self._identity, pseudonym)))
        removed, first = 0, b"-"
        while mark and first:
            arguments = (pseudonym, first, mark, BATCH_SIZE)
            streams = (self._keys.events, self._keys.events + NEW_STREAM.decode())
            count, last = await self._write(Command(REMOVE_EVENTS, streams, arguments))
            removed += count
            first = b"(" + last if last else b""
        return removed

    async def trim(self) -> tuple[int, str]:
        arguments = (int(self._bounds.seconds * 1000), self._bounds.bytes)
        streams = (self._keys.events, self._keys.events + NEW_STREAM.decode())
        used, first = await self._write(Command(TRIM, [*streams, PurgeClaim.KEY], arguments))
        return int(used), first.decode() if first else ORIGIN

    async def _current_salt(self) -> bytes:
        """Return the store's salt, which is another one after a restore; b"" if there was never an event. Nothing is
        written, so a full store answers too."""
        keys = (self._keys.event_salt, self._keys.identity)
        self._salt = await self._write(Command(SALT, keys, ("", self._identity)))
        return self._salt

    async def _read_salt(self) -> bytes:
        if not self._salt:
            keys = (self._keys.event_salt, self._keys.identity)
            self._salt = await self._write(Command(SALT, keys, (uuid4().hex, self._identity)))
        return self._salt

    async def _write(self, command: Command) -> Any:
        """Run a script durably, and return its answer. Raises TenantRemoved."""
        (answer,) = await self._connection.write([command])
        if answer == REMOVED:
            raise TenantRemoved
        return answer


def _digest(event_id: str) -> str:
    return b64encode(hashlib.blake2b(event_id.encode(), digest_size=ID_BYTES).digest()).decode()


def _pseudonym(reader: str, salt: bytes) -> str:
    return hashlib.blake2b(reader.encode(), key=salt, digest_size=READER_BYTES).hexdigest()


def decode_entry(position: bytes, values: Sequence[bytes]) -> EventEntry:
    """Decode an entry, given its fields as alternating names and values; one that this module has not written is
    logged."""
    try:
        fields = fields_of(values)
        kind, note, reader, at, more = (fields[name] for name in (b"type", b"note", b"reader", b"at", b"more"))
        if control := CONTROL.get(kind):
            return EventEntry(position.decode(), control, note_id=note.decode(), reader=reader.decode())
        details = orjson.loads(more) if more else {}
        if not isinstance(details, dict) or not all(isinstance(value, PLAIN) for value in details.values()):
            raise ValueError("its details are not a JSON object of plain values")
        time = int(at) / 1000
        if not FIRST_SECOND <= time < END_SECOND:
            raise ValueError("its time is not within the years 1 to 9999")
        return EventEntry(position.decode(), "event", kind.decode(), note.decode(), reader.decode(), time, more)
    except (KeyError, ValueError, ArithmeticError) as error:
        log.error("event_unreadable", position=repr(position), reason=type(error).__name__, detail="it is ignored")
        return EventEntry(position.decode(), "unreadable")
