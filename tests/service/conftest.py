"""Fixtures of the tests below HTTP: real servers, a real index, and an engine that needs no model."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import math
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import redis

from model.generation import (
    CategoryProbability,
    GenerationOutput,
    GenerationRequest,
    Hashtag,
    Neighbours,
    ReadTokens,
    Usage,
)
from model.hashtags.lexical_index import InvertedLexicalIndex
from model.hashtags.vocabulary import HashtagTrie
from model.note import Note, hashtag_key
from service.batcher import Batcher
from service.generator import Generator
from service.index.live import LiveIndex
from service.index.segmented import GROWING_ROWS, SegmentedIndex
from service.index.snapshot_files import SnapshotFolder
from service.index.texts import LiveTexts
from service.interfaces import Clock, Engine, NoteIndex, NoteStore
from service.recommender import Recommender
from service.records import Generated, LogBounds, LogEntry, StoredNote, Unreadable, Vector
from service.search.search import NoteSearch
from service.store.embedded_redis import EmbeddedRedis, server_program
from service.store.known_position import KnownPosition
from service.store.ranked_lists import RedisLists
from service.store.redis_keys import DEFAULT_KEYS
from service.store.redis_store import RedisNoteStore
from service.telemetry import Telemetry
from tests.optional import require

DIMENSION = 16
SPACE = "words-1"
CATEGORIES: tuple[str, ...] = ("Food", "Travel", "Other")
WAIT_SECONDS = 20.0
PASSWORD = "correct-horse-battery"


async def eventually(condition: Callable[[], object | Awaitable[object]], seconds: float = WAIT_SECONDS) -> None:
    """Wait until `condition` (plain or async) holds. Raises AssertionError if it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        held = condition()
        if inspect.isawaitable(held):
            held = await held
        if held:
            return
        assert time.monotonic() < deadline, f"not so within {seconds:g} s: {inspect.getsource(condition).strip()}"
        await asyncio.sleep(0.01)


def word_vector(*texts: str) -> Vector:
    """Return the sum of one fixed direction for each word, at unit length: texts that share words are close."""
    total = np.full(DIMENSION, 1e-3)
    for word in " ".join(texts).lower().split():
        digest = hashlib.blake2b(word.encode(), digest_size=DIMENSION).digest()
        total += np.frombuffer(digest, np.uint8) - 127.5
    return np.asarray(total / np.linalg.norm(total), np.float32)


def note_vector(note: Note) -> Vector:
    return word_vector(note.title, note.content, *note.hashtags)


def stored_note(
    note_id: str = "a",
    title: str = "",
    *,
    space: str = SPACE,
    vector: Vector | None = None,
    generated: Generated | None = None,
    **fields: Any,
) -> StoredNote:
    """Return a note as the recommender would store it; its title is its id unless given."""
    note = Note(id=note_id, title=title or note_id, **fields)
    return StoredNote(note, space, note_vector(note) if vector is None else vector, generated or Generated())


@dataclass(frozen=True, slots=True, eq=False)
class PreparedWords:
    note: Note
    request: GenerationRequest

    @property
    def words(self) -> list[str]:
        return " ".join((self.note.title, self.note.content, *self.note.hashtags)).split()

    @property
    def tokens(self) -> int:
        return max(1, len(self.words))


def letters() -> HashtagTrie:
    """Return a vocabulary whose tokens are characters."""
    return HashtagTrie(lambda hashtags: [list(map(ord, hashtag)) for hashtag in hashtags])


class WordEngine:
    """An engine without a model. A token is a word; hashtags are the note's first words, one a step, then the hashtags
    of neighbours; a category is likely if the note names it.

    `batches`: the notes that started with each step. While `gate` is cleared, steps wait. `failure`: raised by steps.
    `failing`: titles of notes that fail on their own. `room`: bound on the notes that run at a time.
    """

    def __init__(self, space: str = SPACE) -> None:
        self.name = "words"
        self.space = space
        self.dimension = DIMENSION
        self.read_tokens = ReadTokens(1000, 1000, 1000)
        self.languages: tuple[str, ...] = ()
        self.mean_share = self.title_mean_share = 0.0
        self.categories = CATEGORIES
        self.batches: list[list[Note]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.failing: set[str] = set()
        self.room = 1000
        self.live: dict[PreparedWords, int] = {}
        """Running requests, and the number of steps that each still needs."""
        self._begun: list[Note] = []
        self._failed: list[PreparedWords] = []

    @property
    def notes(self) -> list[Note]:
        """All notes that were started, in order."""
        return [note for batch in self.batches for note in batch]

    def tokenize(self, note: Note, wanted: GenerationRequest) -> PreparedWords:
        return PreparedWords(note, wanted)

    def keep_closed_set(self, categories: tuple[str, ...]) -> None:
        pass  # this engine precomputes nothing for a closed set

    def vocabulary(self) -> HashtagTrie:
        return letters()

    def can_add(self, prepared: PreparedWords) -> bool:
        return len(self.live) < self.room

    def add_request(self, prepared: PreparedWords) -> PreparedWords:
        self._begun.append(prepared.note)
        self.live[prepared] = 1 + prepared.request.hashtags
        return prepared

    def step(self) -> list[tuple[PreparedWords, GenerationOutput]]:
        if self._begun:
            self.batches.append(self._begun)
        self._begun = []
        self.threads.add(threading.get_ident())
        assert self.gate.wait(60), "the test never opened the gate"
        if self.failure:
            self.live.clear()
            raise self.failure
        self._failed = [prepared for prepared in self.live if prepared.note.title in self.failing]
        for prepared in self._failed:
            self.abort(prepared)
        for prepared, left in self.live.items():
            told = prepared.request.hashtags - left
            if prepared.request.on_hashtag and 0 <= told < len(prepared.words):
                prepared.request.on_hashtag(Hashtag(prepared.words[told], 0.5 ** (told + 1)))
        self.live = {prepared: left - 1 for prepared, left in self.live.items()}
        ended = [prepared for prepared, left in self.live.items() if not left]
        for prepared in ended:
            self.abort(prepared)
        return [(prepared, self._read(prepared)) for prepared in ended]

    def take_failed(self) -> list[tuple[PreparedWords, Exception]]:
        failed, self._failed = self._failed, []
        return [(prepared, ValueError(prepared.note.title)) for prepared in failed]

    def generate(self, notes: Sequence[Note], request: GenerationRequest) -> list[GenerationOutput]:
        """Return one output for each note, without steps and batches, as the service needs at its start."""
        return [self._read(self.tokenize(note, request)) for note in notes]

    def usage(self, work: PreparedWords) -> Usage:
        return Usage(work.tokens, max(0, work.request.hashtags - self.live[work]))

    def abort(self, work: PreparedWords) -> None:
        del self.live[work]

    def _read(self, prepared: PreparedWords) -> GenerationOutput:
        words, wanted = prepared.words, prepared.request
        vector = note_vector(prepared.note)
        told: dict[str, tuple[str, ...]] = {
            word: () for word in words if wanted.vocabulary is None or wanted.vocabulary.holds(list(map(ord, word)))
        }
        near = wanted.find_neighbours(prepared.note, vector, 10) if wanted.find_neighbours else Neighbours()
        for neighbour in near.by_vector:
            told |= {text: (*told.get(text, ()), neighbour.id) for text in neighbour.hashtags}
        allowed = [(text, ids) for text, ids in told.items() if hashtag_key(text) not in wanted.blocked]
        hashtags = tuple(Hashtag(t, 0.5 ** (i + 1), ids) for i, (t, ids) in enumerate(allowed[: wanted.hashtags]))
        weights = {name: 1 + 9 * words.count(name) for name in wanted.categories}
        categories = [CategoryProbability(name, w / sum(weights.values())) for name, w in weights.items()]
        return GenerationOutput(
            vector=vector,
            usage=Usage(prepared.tokens, len(hashtags)),
            hashtags=hashtags if wanted.hashtags else None,
            hashtags_reason="no words" if wanted.hashtags and not hashtags else None,
            categories=tuple(sorted(categories, key=lambda c: -c.probability)) or None,
        )


class Server(Protocol):
    """A Redis that a test may stop, and start again with the same data."""

    @property
    def url(self) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


class DebianRedis:
    """The distribution's redis-server or a compatible program, on a free loopback port, with an fsync at each write."""

    def __init__(self, folder: Path, program: str = "redis-server", password: str = "") -> None:
        self._folder = folder
        self._program = program
        self._password = password
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{f':{self._password}@' if self._password else ''}127.0.0.1:{self._port}"

    def start(self, *options: str) -> None:
        self.launch(*options)
        assert self._process is not None
        deadline = time.monotonic() + WAIT_SECONDS
        with redis.Redis.from_url(self.url) as client:
            while True:
                with contextlib.suppress(redis.RedisError):
                    if client.ping():
                        return
                assert self._process.poll() is None, (self._folder / "redis.log").read_text()
                assert time.monotonic() < deadline, "redis-server did not answer"
                time.sleep(0.01)

    def launch(self, *options: str) -> None:
        """Start the server with further options, without waiting until it answers."""
        command = [self._program, "--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--logfile", "redis.log"]
        command += ["--requirepass", self._password] if self._password else []
        self._process = subprocess.Popen([*command, *options], stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Suspend the server while the block lasts: it answers nothing, but its connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


class GatedStore(RedisNoteStore):
    """A store whose log can be withheld from the index, so that the index falls behind."""

    def __init__(self, url: str, *, clock: Clock, known: KnownPosition | None = None) -> None:
        super().__init__(url, clock=clock, dimensions={SPACE: DIMENSION}, known=known)
        self._gate = asyncio.Event()
        self._gate.set()
        self._parked = False

    def shut(self) -> None:
        """Make further reads of the log wait."""
        self._gate.clear()

    async def hold(self) -> None:
        """Make reads of the log wait; return once one is waiting."""
        self.shut()
        await eventually(lambda: self._parked)

    def release(self) -> None:
        self._gate.set()

    async def read_log(self, after: str, count: int, block_seconds: float) -> tuple[list[LogEntry], LogBounds]:
        self._parked = not self._gate.is_set()
        await self._gate.wait()
        self._parked = False
        return await super().read_log(after, count, block_seconds)


def record_reads(store: RedisNoteStore, monkeypatch: pytest.MonkeyPatch) -> list[list[StoredNote | Unreadable | None]]:
    """Return a list to which the notes of each further read of a store are appended."""
    reads, read = list[list[StoredNote | Unreadable | None]](), store._read

    async def recorded(ids: Sequence[str], with_vectors: bool, max_bytes: int) -> list[StoredNote | Unreadable | None]:
        reads.append(await read(ids, with_vectors, max_bytes))
        return reads[-1]

    monkeypatch.setattr(store, "_read", recorded)
    return reads


@contextlib.asynccontextmanager
async def following(
    store: RedisNoteStore,
    clock: Clock,
    space: str = SPACE,
    growing_rows: int = GROWING_ROWS,
    snapshots: SnapshotFolder | None = None,
    snapshot_seconds: float = 3600.0,
    mean_share: float = 0.0,
) -> AsyncIterator[LiveIndex]:
    """Run a LiveIndex on the store while the block lasts."""
    index = LiveIndex(
        store,
        partial(SegmentedIndex, DIMENSION, growing_rows, mean_share=mean_share),
        lambda: LiveTexts(letters(), InvertedLexicalIndex(), growing_rows),
        space=space,
        clock=clock,
        snapshots=snapshots,
        snapshot_seconds=snapshot_seconds,
    )
    await index.start()
    try:
        yield index
    finally:
        async with asyncio.timeout(WAIT_SECONDS):  # a stop that hangs is a failure
            await index.stop()


@contextlib.asynccontextmanager
async def batching(
    engine: WordEngine,
    *,
    max_tokens: int = 1024,
    max_notes: int = 32,
    max_queue: int = 1000,
    max_seconds: float = math.inf,
    tenants: int = 1,
    now: Callable[[], float] = time.monotonic,
    telemetry: Telemetry | None = None,
) -> AsyncIterator[Batcher]:
    """Run a Batcher while the block lasts; at its end the engine's gate is opened."""
    batcher = Batcher(
        engine,
        telemetry or Telemetry(),
        max_tokens=max_tokens,
        max_notes=max_notes,
        max_queue=max_queue,
        max_seconds=max_seconds,
        count_tenants=lambda: tenants,
        now=now,
    )
    batcher.start()
    try:
        yield batcher
    finally:
        engine.gate.set()
        await batcher.stop(WAIT_SECONDS)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a path short enough for a unix socket; that of tmp_path may be too long."""
    folder = Path(tempfile.mkdtemp(prefix="notellm-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def running_embedded(folder: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(folder)
    server.start()
    try:
        yield server
    finally:
        kill(server)


def kill(server: EmbeddedRedis | DebianRedis) -> None:
    """Kill a server. A clean shutdown waits up to a tenth of a second for the server's next tick, which adds up over
    hundreds of tests."""
    if server._process:
        server._process.kill()
    server.stop()


@pytest.fixture
def embedded(short_folder: Path) -> Iterator[EmbeddedRedis]:
    with running_embedded(short_folder / "data") as server:
        yield server


@pytest.fixture
def debian_redis(short_folder: Path) -> Iterator[DebianRedis]:
    require(shutil.which("redis-server") is not None, "redis-server is not installed")
    server = DebianRedis(short_folder)
    server.start()
    yield server
    kill(server)


@pytest.fixture
def guarded_redis(short_folder: Path) -> Iterator[DebianRedis]:
    """A server that requires PASSWORD."""
    server = DebianRedis(short_folder, server_program(), PASSWORD)
    server.start()
    yield server
    kill(server)


@pytest.fixture(params=["embedded", "redis-server"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each Redis that the store must work on, in turn."""
    fixture = {"embedded": "embedded", "redis-server": "debian_redis"}[request.param]
    running: Server = request.getfixturevalue(fixture)
    return running


@pytest.fixture
def redis_url(server: Server) -> str:
    return server.url


@pytest.fixture
def admin(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client of the server of `store`, for changes that an operator may make."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def embedded_admin(embedded: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A plain client of the embedded server."""
    with redis.Redis.from_url(embedded.url, decode_responses=True) as client:
        yield client


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(redis_url: str, clock: Clock) -> AsyncIterator[RedisNoteStore]:
    """The store, on each server in turn."""
    store = RedisNoteStore(redis_url, clock=clock, dimensions={SPACE: DIMENSION})
    yield store
    await store.close()


@pytest.fixture
async def embedded_store(embedded: EmbeddedRedis, clock: Clock) -> AsyncIterator[GatedStore]:
    """The store of `live_index` and `recommender`, on the embedded server; its log can be withheld from them."""
    store = GatedStore(embedded.url, clock=clock)
    yield store
    await store.close()


@pytest.fixture
async def live_index(embedded_store: GatedStore, clock: Clock) -> AsyncIterator[LiveIndex]:
    async with following(embedded_store, clock) as index:
        yield index


@pytest.fixture
def engine() -> Iterator[WordEngine]:
    engine = WordEngine()
    yield engine
    engine.gate.set()


@pytest.fixture
async def batcher(engine: WordEngine) -> AsyncIterator[Batcher]:
    async with batching(engine) as batcher:
        yield batcher


@pytest.fixture
async def recommender(
    engine: WordEngine, batcher: Batcher, embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> Recommender:
    return make_recommender(engine, batcher, embedded_store, live_index, clock)


def make_recommender(engine: Engine, batcher: Batcher, store: NoteStore, index: NoteIndex, clock: Clock) -> Recommender:
    """Return a recommender with the defaults of a deployment."""
    return Recommender(Generator(engine, batcher, store, index), batcher, store, index, Telemetry(), clock)


@pytest.fixture
async def search(
    engine: WordEngine, batcher: Batcher, embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> NoteSearch:
    """A search on the store and the index of `recommender`."""
    lists = RedisLists(embedded_store.connection, DEFAULT_KEYS, 600)
    return NoteSearch(engine, batcher, embedded_store, live_index, lists, Telemetry(), clock)
