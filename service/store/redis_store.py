"""NoteStore on Redis: notes, vectors, the change log of one tenant. It does not depend on the model or the index.

redis_keys.py has the names of its keys and what they hold.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import structlog

from service.errors import KeyInUse, NoteLLMError, PreconditionFailed, TenantRemoved
from service.interfaces import MAX_READ_BYTES, Clock
from service.records import (
    ORIGIN,
    Attempt,
    Claim,
    Condition,
    Durability,
    LogBounds,
    LogEntry,
    LogTail,
    Remembered,
    StoredNote,
    Unreadable,
    Write,
    Written,
    position_key,
)
from service.store.change_log import decode_bounds, decode_entries, decode_entry
from service.store.connection import MAX_CONNECTIONS, Command, Connection, ServerState
from service.store.document import UndecodableNote, decode, encode
from service.store.idempotency import (
    CLAIM,
    LOST,
    RELEASE,
    REMEMBER,
    REMOVED,
    decode_claims,
    record_arguments,
)
from service.store.known_position import KnownPosition
from service.store.redis_keys import DEFAULT_KEYS, RedisKeys
from service.store.scripts import BEGIN_SAMPLES, DELETE, GET, KEEP_LOG, LOG_BOUNDS, LOG_TAIL, PUT

LOADING, LOADED = "loading", "1"
CONDITION_FAILED = b"refused"
"""Answer of DELETE where its condition does not hold."""
LOG_ENTRIES = 1_000_000
"""Approximate maximum number of entries in the log: a replica that lags behind by more rebuilds its index from the
notes."""
REPLICA_SECONDS = 86_400.0
"""Time for which the log is kept for a replica that makes no newer snapshot."""
SCAN_COUNT = 500
"""Keys that one SCAN looks at, and so about the maximum number of notes that `scan` yields at a time."""
COUNT_SCAN_COUNT = 10_000
"""Keys that one SCAN looks at where keys are only counted: a few milliseconds of the server."""
OWN_WRITES = 1024
"""Maximum number of notes that this process wrote and caches, so that it need not read them when the log names them."""
OWN_CHARACTERS = 10_000
"""Characters of content beyond which such a note is not cached: bounds the memory that OWN_WRITES notes take."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _ScriptedWrite:
    """A write by one script, with the script's own arguments; those of FUNCTIONS follow them."""

    script: str
    note_id: str
    arguments: tuple[Any, ...]
    remembered: Remembered | None = None


class RedisNoteStore:
    """NoteStore on Redis.

    `url`: redis://, rediss:// or unix://. `dimensions`: dimension of the vectors of a space, by its name; a note whose
    vector has another one is unreadable. `on_error` is called with each call that fails. `keys`: those of the tenant.
    `log_seconds`: how long entries of the log are kept at least, as far as LOG_ENTRIES allows. `identity`: the one that
    the store must have, else every write and the method `identity` raise TenantRemoved; where it is empty, the store
    may have any, and one is created if it has none. `server`: shared by the stores of one server. `known`: the newest
    position that the processes of one machine know, where only they use the store.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        dimensions: Mapping[str, int] | None = None,
        timeout_seconds: float = 5.0,
        on_error: Callable[[], object] = lambda: None,
        keys: RedisKeys = DEFAULT_KEYS,
        identity: str = "",
        max_connections: int = MAX_CONNECTIONS,
        server: ServerState | None = None,
        log_seconds: float = 0.0,
        known: KnownPosition | None = None,
    ) -> None:
        self._log_seconds = log_seconds
        self._known = known
        self.connection = Connection(url, timeout_seconds, on_error, max_connections, server)
        self._redis = self.connection.redis
        self._call, self._send = self.connection.call, self.connection.send
        self._keys = keys
        self._identity = identity
        self._clock = clock
        self._dimensions = dimensions or {}
        self._unreadable: dict[str, str] = {}
        """Reason of each unreadable note that this process has found and logged, by id."""
        self._process = uuid4().hex[:12]
        self._numbers = itertools.count()
        self._own_writes: dict[str, StoredNote] = {}
        """Notes that this process wrote, by the `by` of their log entries."""

    async def close(self) -> None:
        await self.connection.close()

    async def get(
        self, ids: Sequence[str], *, with_vectors: bool = False, max_bytes: int | None = None
    ) -> list[StoredNote | Unreadable | None]:
        if max_bytes is not None:
            return await self._read(ids, with_vectors, max_bytes)
        return [note async for part in self.get_in_parts(ids, with_vectors=with_vectors) for note in part]

    async def get_in_parts(
        self, ids: Sequence[str], *, with_vectors: bool = False
    ) -> AsyncIterator[list[StoredNote | Unreadable | None]]:
        while ids:
            notes = await self._read(ids, with_vectors, MAX_READ_BYTES)
            yield notes
            ids = ids[len(notes) :]

    async def _read(
        self, ids: Sequence[str], with_vectors: bool, max_bytes: int
    ) -> list[StoredNote | Unreadable | None]:
        """Return the first of some notes: as many as have at most `max_bytes` together, but at least one."""
        if not ids:
            return []
        async with self._call("get"):
            keys = [self._keys.log, *(self._keys.note + note_id for note_id in ids)]
            mode = "vectors" if with_vectors else "lengths"
            ((end, *rows),) = await self._send(Command(GET, keys, (mode, max_bytes)).words)
        self._raise_known_position(end)
        now, notes = self._clock(), list[StoredNote | Unreadable | None]()
        for note_id, row in zip(ids[: len(rows)], rows, strict=True):
            try:
                note = decode(note_id, row, self._dimensions)
            except UndecodableNote as error:
                notes.append(self._quarantine(note_id, str(error)))
                continue
            if self._unreadable:
                self._unreadable.pop(note_id, None)
            notes.append(None if note is None or note.expired(now) else note)
        return notes

    def _quarantine(self, note_id: str, reason: str) -> Unreadable:
        if self._unreadable.get(note_id) != reason:
            log.error("note_unreadable", id=note_id, reason=reason, detail="answers omit it; write or delete it")
        self._unreadable[note_id] = reason
        return Unreadable(note_id, reason)

    @property
    def unreadable(self) -> Collection[str]:
        return self._unreadable.keys()

    async def put(self, writes: Sequence[Write]) -> list[Written | None]:
        commands, names = [], []
        for write in writes:
            arguments = _put(write)
            names.append(self._cache_own_write(write.stored))
            commands.append(_ScriptedWrite(PUT, write.stored.note.id, (*arguments, names[-1]), write.remembered))
        results = await self._write(commands)
        for write, by, result in zip(writes, names, results, strict=True):
            if result and result != LOST:
                self._unreadable.pop(write.stored.note.id, None)
                self._raise_known_position(result[1])
            else:
                self._own_writes.pop(by, None)
        if LOST in results:
            raise KeyInUse(0)
        return [Written(int(result[0]), result[1].decode()) if result else None for result in results]

    async def delete(
        self, note_id: str, condition: Condition | None = None, remembered: Remembered | None = None
    ) -> str | None:
        arguments = (_condition(condition), note_id, LOG_ENTRIES)
        (position,) = await self._write([_ScriptedWrite(DELETE, note_id, arguments, remembered)])
        if position == LOST:
            raise KeyInUse(0)
        if position == CONDITION_FAILED:
            assert condition, "only a condition fails"
            raise PreconditionFailed(note_id, condition.failure)
        self._unreadable.pop(note_id, None)
        if position:
            self._raise_known_position(position)
        return position.decode() if position else None

    async def delete_all(self, removals: Sequence[tuple[str, Condition | None]]) -> list[str | None]:
        commands = [
            _ScriptedWrite(DELETE, note_id, (_condition(condition), note_id, LOG_ENTRIES))
            for note_id, condition in removals
        ]
        positions = await self._write(commands)
        for (note_id, _), position in zip(removals, positions, strict=True):
            if position and position != CONDITION_FAILED:
                self._unreadable.pop(note_id, None)
                self._raise_known_position(position)
        return [position.decode() if position and position != CONDITION_FAILED else None for position in positions]

    async def claim(self, attempts: Sequence[Attempt], token: str, lease_seconds: float, seconds: float) -> list[Claim]:
        keys, fingerprints = [attempt.key for attempt in attempts], [attempt.fingerprint for attempt in attempts]
        records, lease = [self._keys.record + key for key in keys], max(1, int(lease_seconds * 1000))
        async with self._call("claim"):
            answer = await self._redis.eval(CLAIM, len(keys), *records, token, lease, *fingerprints)
        claims = decode_claims(answer, keys, token, seconds)
        for claim in claims:
            if claim.earlier:
                self._raise_known_position(claim.earlier.position.encode())
        if any(claim.earlier for claim in claims):
            try:
                await self.wait_for_disk()
            except NoteLLMError:  # the caller gets no claims, so it cannot release them
                await self.release(claims)
                raise
        return claims

    async def record_answers(self, written: Sequence[tuple[StoredNote, Remembered]]) -> None:
        commands = [
            _ScriptedWrite(REMEMBER, stored.note.id, (stored.revision, stored.position), remembered)
            for stored, remembered in written
        ]
        if LOST in await self._write(commands):
            raise KeyInUse(0)

    async def record_final_answer(self, remembered: Remembered, position: str) -> None:
        if LOST in await self._write([_ScriptedWrite(REMEMBER, "", (0, position), remembered)]):
            raise KeyInUse(0)

    async def release(self, claims: Sequence[Claim]) -> None:
        records = [self._keys.record + claim.key for claim in claims if claim.earlier is None]
        if records:
            async with self._call("release"):
                await self._redis.eval(RELEASE, len(records), *records, claims[0].token)

    async def _write(self, writes: Sequence[_ScriptedWrite]) -> list[Any]:
        """Run scripts that write, as Connection.write does. Raises TenantRemoved too."""
        commands = []
        for write in writes:
            keys = [self._keys.note + write.note_id, self._keys.log, self._keys.identity, self._keys.events]
            if write.remembered:
                keys.append(self._keys.record + write.remembered.claim.key)
            arguments = (*write.arguments, *record_arguments(write.remembered), self._identity)
            commands.append(Command(write.script, keys, arguments))
        results = await self.connection.write(commands)
        if REMOVED in results:
            raise TenantRemoved
        if self._known and (
            CONDITION_FAILED in results or None in results
        ):  # the cause is a change that others may not know yet
            await self.log_bounds()
        return results

    def _raise_known_position(self, position: bytes) -> None:
        """Raise the known position to one that the store returned, before a caller gets the answer."""
        if self._known:
            self._known.advance_to(position.decode())

    @property
    def known_position(self) -> str | None:
        return self._known.read() if self._known else None

    def invalidate_known_position(self) -> None:
        if self._known:
            self._known.invalidate(self._clock())

    def _cache_own_write(self, stored: StoredNote) -> str:
        """Cache a note that is about to be written; return the `by` of its log entry."""
        by = f"{self._process}-{next(self._numbers)}"
        assert stored.vector is not None
        if len(stored.note.content) <= OWN_CHARACTERS:
            self._own_writes[by] = replace(stored, vector=stored.vector.copy())  # it may be a row of a larger array
        if len(self._own_writes) > OWN_WRITES:
            del self._own_writes[next(iter(self._own_writes))]
        return by

    async def read_log(self, after: str, count: int, block_seconds: float) -> tuple[list[LogEntry], LogBounds]:
        block = max(1, int(min(block_seconds, self.connection.timeout_seconds / 2) * 1000))
        async with self._call("read log"):
            read = ("XREAD", "COUNT", count, "BLOCK", block, "STREAMS", self._keys.log, after)
            answer, bounds = await self._send(read, self._bounds_words(after))
        return decode_entries(answer), self._decode_bounds(bounds)

    async def log_tail(self, after: str, count: int) -> LogTail | None:
        async with self._call("log tail"):
            words = Command(LOG_TAIL, [self._keys.log], (after, count + 1)).words
            ((last, seconds, micros, entries),) = await self._send(words)
        self._raise_known_position(last)
        time, end = int(seconds) + int(micros) / 1e6, last.decode()
        if end == after:
            return LogTail(frozenset(), time, end)
        if not entries or entries[0][0].decode() != after or entries[-1][0] != last:
            return None
        changes = [decode_entry(*entry) for entry in entries[1:]]
        known = all(entry.id or entry.purges for entry in changes)
        return LogTail(frozenset(entry.id for entry in changes if entry.id), time, end) if known else None

    async def log_bounds(self, entry: str = ORIGIN) -> LogBounds:
        async with self._call("log bounds"):
            (bounds,) = await self._send(self._bounds_words(entry))
        return self._decode_bounds(bounds)

    def _bounds_words(self, entry: str) -> tuple[Any, ...]:
        return Command(LOG_BOUNDS, [self._keys.log, self._keys.identity], (entry,)).words

    def _decode_bounds(self, answer: Any) -> LogBounds:
        bounds = decode_bounds(answer)
        self._raise_known_position(bounds.last.encode())
        return bounds

    async def get_logged(self, entries: Sequence[LogEntry]) -> dict[str, StoredNote | Unreadable | None]:
        last = {entry.id: entry for entry in entries if entry.id}
        written = {entry.by: self._own_writes.pop(entry.by, None) for entry in entries}
        now = self._clock()
        notes: dict[str, StoredNote | Unreadable | None] = dict.fromkeys(last)
        to_read = []
        for note_id, entry in last.items():
            own = written[entry.by]
            if own is None and not entry.removed:
                to_read.append(note_id)
                continue
            self._unreadable.pop(note_id, None)
            notes[note_id] = None if own is None or own.expired(now) else replace(own, position=entry.position)
        return notes | dict(zip(to_read, await self.get(to_read, with_vectors=True), strict=True))

    def drop_own_writes(self) -> None:
        self._own_writes.clear()

    async def scan(self) -> AsyncIterator[list[StoredNote | Unreadable]]:
        cursor: int | None = None
        not_met = set(self._unreadable)
        while cursor != 0:
            async with self._call("scan"):
                cursor, keys = await self._redis.scan(cursor or 0, match=f"{self._keys.note}*", count=SCAN_COUNT)
            async for part in self.get_in_parts(self._ids(keys), with_vectors=True):
                notes = [note for note in part if note]
                not_met.difference_update(note.id for note in notes if isinstance(note, Unreadable))
                yield notes
        for note_id in not_met:  # removed without a log entry
            self._unreadable.pop(note_id, None)

    async def identity(self) -> str:
        async with self._call("identity"):
            while (identity := await self._redis.get(self._keys.identity)) is None and not self._identity:
                await self._redis.set(self._keys.identity, uuid4().hex, nx=True)
        if identity is None or self._identity not in ("", str(identity, "ascii")):
            raise TenantRemoved
        return str(identity, "ascii")

    async def keep_log(self, replica: str, position: str) -> None:
        # A replica that made no snapshot for REPLICA_SECONDS no longer holds the log back. All times are by the store's
        # clock: a replica whose own is ahead would cut the log for the others.
        async with self._call("keep log"):
            now, _ = await self._redis.time()
            keys = self._keys.snapshots, self._keys.identity
            arguments = replica, f"{position} {now}", self._identity
            if await self._redis.eval(KEEP_LOG, len(keys), *keys, *arguments) == REMOVED:
                return  # else the removed tenant would have this one key again
            snapshots = _decode_snapshots(await self._redis.hgetall(keys[0]))
            if old := [name for name, (_, made_at) in snapshots.items() if abs(now - made_at) > REPLICA_SECONDS]:
                await self._redis.hdel(keys[0], *old)
            positions = [position for name, (position, _) in snapshots.items() if name not in old]
            if self._log_seconds:
                positions.append(f"{max(0, int(1000 * (now - self._log_seconds)))}-0")
            # The entry of the oldest snapshot itself is kept: finding it shows that the log reaches back far enough.
            await self._redis.xtrim(self._keys.log, minid=min(positions, key=position_key))

    async def size(self) -> int:
        # No counter: notes also disappear by Redis's own expiry, which no script sees. Keys are found in a small part
        # of the time that reading the notes takes.
        size, cursor = 0, None
        while cursor != 0:
            async with self._call("size"):
                cursor, keys = await self._redis.scan(cursor or 0, match=f"{self._keys.note}*", count=COUNT_SCAN_COUNT)
            size += len(keys)
        return size

    async def durability(self) -> Durability:
        return await self.connection.durability()

    async def wait_for_disk(self) -> None:
        await self.connection.wait_for_disk()

    async def begin_samples(self, ids: Sequence[str]) -> bool:
        async with self._call("begin samples"):
            keys = self._keys.samples, self._keys.log
            return bool(await self._redis.eval(BEGIN_SAMPLES, 2, *keys, LOADING, LOADED, *ids))

    async def mark_samples_loaded(self) -> None:
        async with self._call("mark samples"):
            await self._redis.set(self._keys.samples, LOADED)

    def _ids(self, keys: Sequence[bytes]) -> list[str]:
        """Return the ids in the keys of notes. A key that is not UTF-8 is no note's: it is logged and skipped."""
        ids = []
        for key in keys:
            try:
                ids.append(key.decode().removeprefix(self._keys.note))
            except UnicodeDecodeError:
                log.error("key_malformed", key=repr(key))
        return ids


def _condition(condition: Condition | None) -> str:
    """Encode a condition for HOLDS; "" for none."""
    if condition is None:
        return ""
    return ("!" if condition.negated else "") + (" ".join(condition.positions) or "*")


def _decode_snapshots(entries: Mapping[bytes, bytes]) -> dict[bytes, tuple[str, float]]:
    """Decode, for each replica, the log position of its latest snapshot and the time when that was made, in seconds. A
    malformed entry is logged and left out."""
    snapshots = {}
    for name, entry in entries.items():
        try:
            position, made_at = entry.decode("ascii").split()
            if not re.fullmatch(r"\d+-\d+", position) or not math.isfinite(float(made_at)):
                raise ValueError("no position and time")
            snapshots[name] = position, float(made_at)
        except ValueError:
            log.error("snapshot_entry_malformed", replica=repr(name), detail="this entry is ignored")
    return snapshots


def _put(write: Write) -> tuple[Any, ...]:
    """Return the script PUT's own arguments except the last one, `by`."""
    note, (document, vector) = write.stored.note, encode(write.stored)
    expiry = "" if note.expires_at is None else int(note.expires_at * 1000)
    return _condition(write.condition), note.id, document, vector, write.stored.space, expiry, LOG_ENTRIES
