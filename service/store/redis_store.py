"""NoteStore on Redis: notes, vectors, the change log. Knows nothing of the model or the index.

    {notes}:note:<id>   hash    document (JSON), vector (float32, little-endian), space, revision, position
    {notes}:log         stream  position -> id, op ("put" or "delete"), by (of a put: which one of which process)
    {notes}:samples     string  set once the sample notes were loaded
    {notes}:identity    string  made up when it is first asked for
    {notes}:snapshots   hash    replica -> log position of its snapshot, and when that was made

All keys share the hash tag {notes}: one slot on Redis Cluster, so that a script may touch note and log together.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
import orjson
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from model.generation import CategoryProbability, Hashtag
from model.note import Note
from service.errors import PreconditionFailed, StoreUnavailable
from service.interfaces import Clock
from service.records import ORIGIN, Durability, Generated, LogBounds, LogEntry, StoredNote, Write, Written, position_key

NOTE = "{notes}:note:"
LOG = "{notes}:log"
SAMPLES = "{notes}:samples"
IDENTITY = "{notes}:identity"
SNAPSHOTS = "{notes}:snapshots"
LOG_ENTRIES = 1_000_000
"""The log is cut behind about this many entries; who was away longer rebuilds from the notes."""
REPLICA_SECONDS = 86_400.0
"""So long the log is kept for a replica that has made no newer snapshot."""
SCAN_COUNT = 500
MAX_CONNECTIONS = 32
"""To Redis, of one process; a request beyond them waits for one."""
OWN_WRITES, OWN_CHARACTERS = 1024, 10_000
"""The last so many notes that this process wrote, of so many characters, need not be read again when the log tells of
them."""
FIELDS = ("document", "space", "revision", "position", "vector")

# KEYS notes; ARGV fields. One command and one answer: a pipeline of as many takes the client three times as long.
GET = """
local rows = {}
for i, note in ipairs(KEYS) do rows[i] = redis.call('HMGET', note, unpack(ARGV)) end
return rows
"""
# KEYS note, log; ARGV expected position or "", id, document, vector, space, expiry in ms or "", log length, by.
PUT = """
local at = redis.call('HGET', KEYS[1], 'position')
if ARGV[1] ~= '' and at ~= ARGV[1] then return false end
local revision = tonumber(redis.call('HGET', KEYS[1], 'revision') or '0') + 1
local position = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*', 'id', ARGV[2], 'op', 'put',
  'by', ARGV[8])
redis.call('HSET', KEYS[1], 'document', ARGV[3], 'vector', ARGV[4], 'space', ARGV[5],
  'revision', revision, 'position', position)
if ARGV[6] ~= '' then redis.call('PEXPIREAT', KEYS[1], ARGV[6]) else redis.call('PERSIST', KEYS[1]) end
return {revision, position}
"""
# KEYS note, log; ARGV expected position or "", id, log length.
DELETE = """
local at = redis.call('HGET', KEYS[1], 'position')
if not at then return false end
if ARGV[1] ~= '' and at ~= ARGV[1] then return 'moved' end
redis.call('DEL', KEYS[1])
return redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'id', ARGV[2], 'op', 'delete')
"""


@contextlib.contextmanager
def redis_errors() -> Iterator[None]:
    """Whatever the client raises (away, loading, out of memory, disk full) as StoreUnavailable."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreUnavailable(str(error) or type(error).__name__) from error


class RedisNoteStore:
    """See NoteStore. `url`: redis://, rediss:// or unix://."""

    def __init__(self, url: str, *, clock: Clock, timeout_seconds: float = 5.0) -> None:
        # No retries: a write sent twice would answer with a revision that the caller never made.
        # No maintenance notifications: with them the pool hands out connections that the server has closed.
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        self._redis: Any = Redis.from_pool(pool)
        self._clock = clock
        self._timeout = timeout_seconds
        self._waitaof: bool | None = None
        self._process = uuid4().hex[:12]
        self._numbers = itertools.count()
        self._own: dict[str, StoredNote] = {}
        """Notes as this process wrote them, by what their log entry says of its origin."""

    async def close(self) -> None:
        await self._redis.aclose()

    async def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[StoredNote | None]:
        """See NoteStore."""
        fields = FIELDS if with_vectors else FIELDS[:-1]
        with redis_errors():
            keys = [NOTE + note_id for note_id in ids]
            rows = await self._redis.eval(GET, len(keys), *keys, *fields) if ids else []
        now = self._clock()
        notes = [_decode(note_id, row) for note_id, row in zip(ids, rows, strict=True)]
        return [None if note is None or note.expired(now) else note for note in notes]

    async def put(self, writes: Sequence[Write]) -> list[Written | None]:
        """See NoteStore."""
        commands = [(PUT, write.stored.note.id, *_encode(write), self._remember(write.stored)) for write in writes]
        results = await self._write(commands)
        for (*_, by), result in zip(commands, results, strict=True):
            if not result:
                self._own.pop(by, None)
        return [Written(int(r[0]), r[1].decode()) if r else None for r in results]

    async def delete(self, note_id: str, expected: str | None = None) -> str | None:
        """See NoteStore."""
        (position,) = await self._write([(DELETE, note_id, expected or "", note_id, LOG_ENTRIES)])
        if position == b"moved":
            raise PreconditionFailed(note_id)
        return position.decode() if position else None

    async def _write(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run scripts (script, note id, arguments...) in one round trip and wait until the disk has them."""
        if not commands:
            return []
        with redis_errors():
            pipeline = self._redis.pipeline(transaction=False)
            for script, note_id, *arguments in commands:
                pipeline.eval(script, 2, NOTE + note_id, LOG, *arguments)
            if self._waitaof is None:
                await self.durability()
            if self._waitaof:
                pipeline.execute_command("WAITAOF", 1, 0, int(self._timeout * 1000))
            results: list[Any] = await pipeline.execute()
        if self._waitaof and results.pop()[0] < 1:
            raise StoreUnavailable("the write was not on disk in time")
        return results

    def _remember(self, stored: StoredNote) -> str:
        """What the log is to say of who writes it."""
        by = f"{self._process}-{next(self._numbers)}"
        assert stored.vector is not None
        if len(stored.note.content) <= OWN_CHARACTERS:
            self._own[by] = replace(stored, vector=stored.vector.copy())  # it may be a row of a larger array
        if len(self._own) > OWN_WRITES:
            del self._own[next(iter(self._own))]
        return by

    async def read_log(self, after: str, count: int, block_seconds: float) -> tuple[list[LogEntry], LogBounds]:
        """See NoteStore. One turn: behind a command that waits for something, others wait on the same connection."""
        block = max(1, int(min(block_seconds, self._timeout / 2) * 1000))
        with redis_errors():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.xread({LOG: after}, count=count, block=block)
            answer, info, kept = await self._execute_with_bounds(pipeline, after)
            if isinstance(answer, Exception):
                raise answer
            # RESP3 gives a mapping, RESP2 a list of pairs.
            streams = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer or ()]
            entries = [entry for stream in streams for entry in _flat(stream)]
            return [_entry(*entry) for entry in entries], _bounds(info, kept, after)

    async def log_bounds(self, entry: str = ORIGIN) -> LogBounds:
        """See NoteStore."""
        with redis_errors():
            info, kept = await self._execute_with_bounds(self._redis.pipeline(transaction=False), entry)
            return _bounds(info, kept, entry)

    async def _execute_with_bounds(self, pipeline: Any, entry: str) -> list[Any]:
        """Answers, or errors, of what is in the pipeline, and then the two of which `_bounds` makes bounds."""
        pipeline.xinfo_stream(LOG)
        pipeline.xrange(LOG, entry, entry)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    async def get_logged(self, entries: Sequence[LogEntry]) -> dict[str, StoredNote | None]:
        """See NoteStore."""
        last = {entry.id: entry for entry in entries}
        written = {entry.by: self._own.pop(entry.by, None) for entry in entries}
        own = {note_id: note for note_id, entry in last.items() if (note := written[entry.by]) is not None}
        asked = [note_id for note_id, entry in last.items() if note_id not in own and not entry.removed]
        known = own | dict(zip(asked, await self.get(asked, with_vectors=True), strict=True))
        now = self._clock()
        present = {note_id: note for note_id, note in known.items() if note is not None and not note.expired(now)}
        return {note_id: present.get(note_id) for note_id in last}

    def forget_written(self) -> None:
        """See NoteStore."""
        self._own.clear()

    async def scan(self) -> AsyncIterator[list[StoredNote]]:
        """See NoteStore."""
        cursor: int | None = None
        while cursor != 0:
            with redis_errors():
                cursor, keys = await self._redis.scan(cursor or 0, match=f"{NOTE}*", count=SCAN_COUNT)
            ids = [key.decode().removeprefix(NOTE) for key in keys]
            yield [note for note in await self.get(ids, with_vectors=True) if note]

    async def identity(self) -> str:
        """See NoteStore."""
        with redis_errors():
            while (identity := await self._redis.get(IDENTITY)) is None:
                await self._redis.set(IDENTITY, uuid4().hex, nx=True)
        return str(identity, "ascii")

    async def keep_log(self, replica: str, position: str) -> None:
        """See NoteStore. A replica that made no snapshot for REPLICA_SECONDS is forgotten."""
        now = self._clock()
        with redis_errors():
            await self._redis.hset(SNAPSHOTS, replica, f"{position} {now}")
            every = {name: entry.split() for name, entry in (await self._redis.hgetall(SNAPSHOTS)).items()}
            if old := [name for name, (_, at) in every.items() if float(at) < now - REPLICA_SECONDS]:
                await self._redis.hdel(SNAPSHOTS, *old)
            held = [entry[0].decode() for name, entry in every.items() if name not in old]
            # The oldest one's own entry stays: by it the log is known to reach back.
            await self._redis.xtrim(LOG, minid=min(held, key=position_key))

    async def size(self) -> int:
        """See NoteStore. Other keys of the same database are counted too."""
        with redis_errors():
            return int(await self._redis.dbsize())

    async def durability(self) -> Durability:
        """See NoteStore. A server that forbids CONFIG is asked through INFO, which tells less."""
        with redis_errors():
            server = await self._redis.info()
            appends = bool(server.get("aof_enabled"))
            try:
                policy = (await self._redis.config_get("appendfsync")).get("appendfsync", "unknown")
            except ResponseError:
                policy = "unknown"
        policy = policy.decode() if isinstance(policy, bytes) else policy
        version = tuple(int(n) for n in str(server.get("redis_version", "0.0")).split(".")[:2])
        if not appends:
            self._waitaof = False
            return Durability(False, "appendonly is off: acknowledged notes are lost when Redis dies")
        if policy == "always":
            self._waitaof = False
            return Durability(True, "appendonly with appendfsync always")
        self._waitaof = policy == "everysec" and version >= (7, 2)  # with "no" it would wait for ever
        if self._waitaof:
            return Durability(True, f"appendonly with appendfsync {policy}, each write waits with WAITAOF")
        return Durability(False, f"appendonly with appendfsync {policy}: the last writes can be lost")

    async def samples_loaded(self) -> bool:
        """See NoteStore."""
        with redis_errors():
            return bool(await self._redis.exists(SAMPLES))

    async def mark_samples_loaded(self) -> None:
        """See NoteStore."""
        with redis_errors():
            await self._redis.set(SAMPLES, "1")


def _bounds(info: Any, kept: Any, entry: str) -> LogBounds:
    """Of what `_execute_with_bounds` got; raises what Redis answered instead."""
    for answer in (info, kept):
        if isinstance(answer, ResponseError) and "no such key" in str(answer).lower():
            return LogBounds(None, ORIGIN, cut=False)
        if isinstance(answer, Exception):
            raise answer
    first = info["first-entry"]
    cut = info.get("entries-added", float("inf")) > info["length"]  # Redis before 7 does not tell
    last = info["last-generated-id"].decode()
    return LogBounds(first[0].decode() if first else None, last, cut, entry if kept else None)


def _entry(position: bytes, fields: Mapping[bytes, bytes]) -> LogEntry:
    by = fields.get(b"by", b"").decode()
    return LogEntry(position.decode(), fields[b"id"].decode(), fields[b"op"] == b"delete", by)


def _flat(entries: Any) -> list[Any]:
    """RESP3 wraps a stream's entries in one more list than RESP2."""
    return entries[0] if entries and isinstance(entries[0], list) else entries


def _encode(write: Write) -> tuple[Any, ...]:
    """The arguments of PUT."""
    stored, note = write.stored, write.stored.note
    if stored.vector is None:
        raise ValueError(f"note {note.id!r} has no vector")
    hashtags = stored.generated.hashtags
    document = {
        "title": note.title,
        "content": note.content,
        "hashtags": note.hashtags,
        "category": note.category,
        "author": note.author,
        "created_at": note.created_at,
        "expires_at": note.expires_at,
        "attributes": dict(note.attributes),
        "generated": {
            "hashtags": None if hashtags is None else [{"text": h.text, "score": h.score} for h in hashtags],
            "category": stored.generated.category,
        },
    }
    expiry = "" if note.expires_at is None else int(note.expires_at * 1000)
    vector = np.ascontiguousarray(stored.vector, "<f4").tobytes()
    return write.expected or "", note.id, orjson.dumps(document), vector, stored.space, expiry, LOG_ENTRIES


def _decode(note_id: str, row: Sequence[bytes | None]) -> StoredNote | None:
    """The answer of HMGET for (a prefix of) FIELDS."""
    document, space, revision, position, *vector = row
    if document is None or space is None or revision is None or position is None:
        return None
    d = orjson.loads(document)
    hashtags, category = d["generated"]["hashtags"], d["generated"]["category"]
    note = Note(
        id=note_id,
        title=d["title"],
        content=d["content"],
        hashtags=tuple(d["hashtags"]),
        category=d["category"],
        author=d["author"],
        created_at=d["created_at"],
        expires_at=d["expires_at"],
        attributes=d["attributes"],
    )
    generated = Generated(
        None if hashtags is None else tuple(Hashtag(**h) for h in hashtags),
        None if category is None else CategoryProbability(**category),
    )
    array = np.frombuffer(vector[0], "<f4") if vector and vector[0] is not None else None
    return StoredNote(note, space.decode(), array, generated, int(revision), position.decode())
