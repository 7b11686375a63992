"""LiveIndex: follows the change log into a VectorIndex, and answers searches. Async outside; one thread writes, several
search, and one makes segments of what was written.

Every write reaches the index through the log and in no other way, also this process's own: who wrote waits for the
position that the store gave. The index starts as its snapshot on disk, from whose position it follows, or where there
is none that the log still reaches back to, as a scan of the store; what the log says twice is applied twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar
from uuid import uuid4

import numpy as np
import structlog

from model.generation import Neighbour, Neighbours, Vocabulary
from model.note import Note
from service.errors import IndexBehind, SnapshotRefused, StoreUnavailable
from service.filters import Filter
from service.index.hashtags import LiveHashtags
from service.index.native import trim_heap, use_one_faiss_thread
from service.index.packed_strings import packed, unpacked
from service.index.snapshots import Origin, SnapshotFolder
from service.interfaces import Clock, NoteStore, Part, ReadPart, Unreadable, VectorIndex
from service.records import ORIGIN, Hit, StoredNote, Vector, position_key

T = TypeVar("T")
READ_COUNT = 512
BLOCK_SECONDS = 1.0
SEARCHING_THREADS = os.cpu_count() or 1
MAX_ROWS_IN_LOOP, MAX_K_IN_LOOP = 2_000_000, 256
"""So many rows are searched for so few, without a filter, in the event loop: half a millisecond for ten of a million,
of which to get another thread and come back would take a good part (docs/experiments.md)."""
GIVE_BACK_ROWS = 50_000
"""A job of so many leaves memory that is worth the time that it takes to give it back."""
MAX_LOOKUP_FACTOR = 20
"""A community of which few notes have hashtags must not make each lookup a search for everything."""
RETRY_SECONDS = (0.05, 1.0)
"""First and longest pause after a failure."""
PROGRESS_SECONDS = 5.0
SAMPLE_SECONDS, SAMPLES = 5.0, 100
"""One search in so many seconds is repeated exactly; the last so many are counted."""
SAME_SCORE = 1e-6
SNAPSHOT_PAUSES = 20
"""Between two snapshots there is at least so many times as long as one took to be written."""
OTHER_SPACE, UNREADABLE = "other_space", "unreadable"
"""Parts of a snapshot: ids of the notes of another space, and of those that the store could not decode."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """`ready`: built, and following. `segments`: of the index. `other_space`: notes in the store whose vectors are from
    another model. `saved_at`: when the last snapshot was made, 0: none was.
    `recall_sampled`: the share of what an exact search finds that searches found, of the last that were compared; NaN:
    none was."""

    ready: bool
    detail: str
    position: str
    vectors: int
    tombstones: int
    segments: int
    other_space: int
    saved_at: float
    recall_sampled: float


class LiveIndex:
    """`make_index` and `make_hashtags` give empty ones; `space`: the only one whose vectors are taken in. `attributes`:
    see SegmentedIndex. `snapshots` (None: none are kept) are made every `snapshot_seconds` where something was
    written."""

    def __init__(
        self,
        store: NoteStore,
        make_index: Callable[[], VectorIndex],
        make_hashtags: Callable[[], LiveHashtags],
        *,
        space: str,
        clock: Clock,
        attributes: tuple[str, ...] = (),
        snapshots: SnapshotFolder | None = None,
        snapshot_seconds: float = 60.0,
    ) -> None:
        self._store = store
        self._make_index = make_index
        self._make_hashtags = make_hashtags
        self._space = space
        self._clock = clock
        self._snapshots = snapshots
        self._snapshot_seconds = snapshot_seconds
        self._origin = Origin("", space, attributes)
        """Of what is in the index."""
        self._repairs = 0
        """Changes that no position tells of."""
        self._saved = ORIGIN, 0
        """Position and repairs of the last snapshot."""
        self._saved_at = 0.0
        self._saving = asyncio.Lock()
        self._replica = snapshots.replica if snapshots else uuid4().hex
        self._taking = asyncio.Lock()
        """Held from reading a note in the store until the index has it: what was read before is not taken after."""
        self._recalls: deque[float] = deque(maxlen=SAMPLES)
        self._sampled_at = -math.inf
        self._sampling: asyncio.Task[None] | None = None
        self._index = make_index()
        self._hashtags = make_hashtags()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="index-write")
        self._searchers = ThreadPoolExecutor(
            SEARCHING_THREADS, thread_name_prefix="index-search", initializer=use_one_faiss_thread
        )
        self._position = ORIGIN
        self._other_space: set[str] = set()
        self._moved = asyncio.Condition()
        self._detail = "not built yet"
        self._built = False
        self._tried_snapshot = False
        self._must_reach: str | None = None
        """Where the log must be followed to before this is ready; None: to where it is when it is next read."""
        self._rebuilding = False
        self._ready = False
        self._stopped = False
        self._written = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def position(self) -> str:
        """Everything up to this log position is in the index."""
        return self._position

    def status(self) -> IndexStatus:
        return IndexStatus(
            self._ready,
            self._detail,
            self._position,
            len(self._index),
            self._index.tombstones,
            self._index.segments,
            len(self._other_space),
            self._saved_at,
            float(np.mean(self._recalls)) if self._recalls else math.nan,
        )

    async def start(self) -> None:
        """Build, and then follow the log in the background; where the store is away, try until it is not."""
        try:
            await self._build()
            while not self._ready:
                await self._read_once()
        except StoreUnavailable as error:
            self._detail = str(error)
        self._tasks = [
            asyncio.create_task(self._follow(), name="follow-log"),
            asyncio.create_task(self._maintain(), name="maintain-index"),
            asyncio.create_task(self._keep_snapshots(), name="snapshot-index"),
        ]

    async def stop(self) -> None:
        self._stopped = True
        for task in [*self._tasks, *([self._sampling] if self._sampling else [])]:
            while not task.done():  # the Redis client may swallow a cancellation
                task.cancel()
                await asyncio.wait([task], timeout=0.1)
        await self.save()
        for threads in (self._writer, self._searchers):
            threads.shutdown()

    async def search(self, vector: Vector, k: int, where: Filter) -> list[Hit]:
        """See VectorIndex.search. Raises IndexBehind before the index was built for the first time."""
        if not self._built:
            raise IndexBehind("of the store", self._position)
        search, position = partial(self._index.search, vector, k, now=self._clock()), self._position
        small = k <= MAX_K_IN_LOOP and len(self._index) <= MAX_ROWS_IN_LOOP
        at_once = where.plain and small and not self._index.shared
        found = search(where) if at_once else await self._run(self._searchers, partial(search, where))
        idle = self._sampling is None or self._sampling.done()
        if found and not where.exact and idle and time.monotonic() > self._sampled_at + SAMPLE_SECONDS:
            self._sampled_at = time.monotonic()
            exactly = partial(search, replace(where, exact=True))
            self._sampling = asyncio.create_task(self._sample(exactly, found, position), name="sample-recall")
        return found

    async def _sample(self, exactly: Callable[[], list[Hit]], found: list[Hit], position: str) -> None:
        """Search again, exactly; where something was written meanwhile it is not counted."""
        exact = await self._run(self._searchers, exactly)
        if position == self._position and exact:
            least = exact[-1].score - SAME_SCORE
            self._recalls.append(min(1.0, sum(hit.score >= least for hit in found) / len(exact)))

    async def vector(self, note_id: str) -> Vector | None:
        """The vector of a note, None when the index does not have it."""
        return self._index.vector(note_id)  # takes less than a thread's turn would

    async def vectors(self, note_ids: Sequence[str]) -> list[Vector | None]:
        """The same of several."""
        return await self._run(self._searchers, lambda: [self._index.vector(note_id) for note_id in note_ids])

    async def ids(self) -> list[str]:
        """Of all rows; of a healthy index none is there twice."""
        return await self._run(self._searchers, self._index.ids)

    async def resync(self, note_ids: Sequence[str]) -> None:
        """Have of these notes what the store has, whatever was there. Raises StoreUnavailable."""
        for begin in range(0, len(note_ids), READ_COUNT):
            some = note_ids[begin : begin + READ_COUNT]
            async with self._taking:
                stored = await self._store.get(some, with_vectors=True)
                self._store.forget_written()
                await self._run(self._writer, partial(self._replace, some, stored))
        self._repairs += 1
        self._written.set()

    def _replace(self, ids: Sequence[str], stored: Sequence[StoredNote | Unreadable | None]) -> None:
        present = [note for note in stored if isinstance(note, StoredNote)]
        self._index.remove(ids)
        self._take(self._index, self._hashtags, present, set(ids) - {note.note.id for note in present})

    @property
    def vocabulary(self) -> Vocabulary:
        """All hashtags that authors gave the notes in the index."""
        return self._hashtags.vocabulary

    def near_notes(self, note: Note, vector: Vector, count: int) -> Neighbours:
        """Notes with hashtags of their author that are near `note`: `count` by its vector, or all such among the
        nearest MOST_LOOKED times as many, and `count` by its words; never the note of its own id. Blocks: for the
        thread of the engine, not for the event loop."""
        now = self._clock()
        where = Filter(exclude=frozenset({note.id} - {""}))
        tagged: list[Neighbour] = []
        for wanted in (2 * count, MAX_LOOKUP_FACTOR * count):
            hits = self._index.search(vector, wanted, where, now)
            tagged = self._hashtags.with_hashtags((hit.id, hit.score) for hit in hits)
            if len(tagged) >= count or len(hits) < wanted:
                break
        return Neighbours(tagged[:count], self._hashtags.by_words(note, count, now))

    async def wait_for(self, position: str, seconds: float) -> None:
        """Return once everything up to `position` can be found; IndexBehind after `seconds`."""
        wanted = position_key(position)
        try:
            async with asyncio.timeout(seconds), self._moved:
                await self._moved.wait_for(lambda: position_key(self._position) >= wanted)
        except TimeoutError:
            raise IndexBehind(position, self._position) from None

    async def _run(self, threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, call)

    async def _maintain(self) -> None:
        """Until stopped: seal and merge what was written. While an index is built anew the old one is left as it is."""
        while not self._stopped:
            self._written.clear()
            if self._rebuilding or not await self._do_job(self._index):
                await self._written.wait()

    async def _do_job(self, index: VectorIndex) -> bool:
        """Whether there was one. A failure costs speed and memory, no answer."""
        job = await self._run(self._writer, index.plan)
        if job is None:
            return False
        try:
            await in_daemon(job.run)
            await self._run(self._writer, partial(index.finish, job))
        except Exception:
            log.exception("index_job_failed", detail="tried again after the next write")
            await self._run(self._writer, partial(index.give_up, job))
        large = job.rows >= GIVE_BACK_ROWS
        del job  # or it would hold the old segments' memory
        if large:
            await asyncio.to_thread(trim_heap)
        return True

    async def _follow(self) -> None:
        """Until stopped: apply the log. A failure is told by status() and tried again; the loop lives."""
        pause = RETRY_SECONDS[0]
        while not self._stopped:
            try:
                await (self._read_once() if self._built else self._build())
                pause = RETRY_SECONDS[0]
            except StoreUnavailable as error:
                self._ready, self._must_reach, self._detail = False, None, str(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_SECONDS[1])
            except Exception as error:
                log.exception("index_failed", detail="rebuilding from the store")
                self._built, self._ready, self._detail = False, False, f"rebuilding after {error!r}"
                await asyncio.sleep(RETRY_SECONDS[1])

    async def _read_once(self) -> None:
        """Apply the next entries. Bounds are read after them, so a cut that swallowed some is always seen."""
        entries, bounds = await self._store.read_log(self._position, READ_COUNT, BLOCK_SECONDS)
        reached = bounds.reach(self._position)
        if entries and reached:
            async with self._taking:
                await self._apply(await self._store.get_logged(entries))
            await self._move(entries[-1].position)
        if not reached:
            log.warning("log_gap", position=self._position, first=bounds.first, last=bounds.last)
            self._ready, self._detail = False, "rebuilding: the log does not reach back to this index"
            await self._rebuild()
            return
        self._caught_up(bounds.last)
        await self.expire()

    async def expire(self) -> None:
        """Remove what has expired, which searches already leave out."""
        if await self._run(self._writer, partial(self._expire, self._clock())):
            self._written.set()

    def _expire(self, now: float) -> bool:
        expired = self._index.expire(now)
        self._hashtags.remove(expired)
        return bool(expired)

    def _caught_up(self, last: str) -> None:
        """The log is followed, and ends at `last`: this is ready if it was before, or has come to where the log ended
        when it began."""
        self._must_reach = self._must_reach or last
        self._ready = self._ready or position_key(self._position) >= position_key(self._must_reach)
        self._detail = "follows the log" if self._ready else f"at {self._position} of {self._must_reach} of the log"

    async def _apply(self, notes: Mapping[str, StoredNote | Unreadable | None]) -> None:
        """By id; one that is gone or cannot be read leaves the index."""
        present = [note for note in notes.values() if isinstance(note, StoredNote)]
        gone = notes.keys() - {note.note.id for note in present}
        await self._run(self._writer, lambda: self._take(self._index, self._hashtags, present, gone))
        self._written.set()

    async def _build(self) -> None:
        """From the snapshot, once, or else from the store."""
        restored = not self._tried_snapshot and await self._restore()
        self._tried_snapshot = True
        if not restored:
            await self._rebuild()

    async def _restore(self) -> bool:
        """The index of the snapshot, where there is one that the log reaches back to."""
        if self._snapshots is None:
            return False
        origin = await self._of_now()
        index, hashtags = self._make_index(), self._make_hashtags()
        try:
            snapshot = await self._run(self._writer, partial(self._snapshots.load, origin))
            if snapshot is None:
                return False
            bounds = await self._store.log_bounds(snapshot.position)
            if not bounds.reach(snapshot.position):
                raise SnapshotRefused("the log does not reach back to it")
            self._other_space, unreadable = await self._run(
                self._writer, partial(restore, snapshot.read, index, hashtags)
            )
            await self._try_again(unreadable, index, hashtags)
        except StoreUnavailable:
            raise
        except Exception as error:  # whatever it is, there is another way
            reason = str(error) if isinstance(error, SnapshotRefused) else f"its parts do not fit together: {error!r}"
            log.warning("snapshot_refused", reason=reason, detail="building from the store")
            return False
        self._index, self._hashtags, self._origin = index, hashtags, origin
        self._built, self._must_reach, self._saved = True, bounds.last, (snapshot.position, self._repairs)
        await self._move(snapshot.position)
        self._caught_up(bounds.last)
        log.info("snapshot_loaded", vectors=len(index), position=snapshot.position)
        return True

    async def _try_again(self, unreadable: Sequence[str], index: VectorIndex, hashtags: LiveHashtags) -> None:
        """Read anew what could not be decoded when the snapshot was made: no log entry tells that this code can."""
        for begin in range(0, len(unreadable), READ_COUNT):
            some = unreadable[begin : begin + READ_COUNT]
            known = await self._store.get(some, with_vectors=True)
            present = [note for note in known if isinstance(note, StoredNote)]
            gone = set(some) - {note.note.id for note in present}
            await self._run(self._writer, partial(self._take, index, hashtags, present, gone))

    async def _of_now(self) -> Origin:
        return replace(self._origin, store=await self._store.identity())

    async def _keep_snapshots(self) -> None:
        """Until stopped: save what was written; where nothing is saved, say how far this has come."""
        pause = self._snapshot_seconds
        while True:
            await asyncio.sleep(pause)
            began = time.monotonic()
            if self._snapshots is None:
                await self._keep_log(self._position)
            else:
                await self.save()
            pause = max(self._snapshot_seconds, SNAPSHOT_PAUSES * (time.monotonic() - began))

    async def _keep_log(self, position: str) -> None:
        with contextlib.suppress(StoreUnavailable):  # said again another time
            await self._store.keep_log(self._replica, position)

    async def save(self) -> None:
        """A snapshot, where something was written since the last one; the log may then be cut off behind it. A failure
        is logged: it costs the next start its time, and no answer."""
        async with self._saving:
            position, repairs = self._position, self._repairs
            nothing_new = (position, repairs) == self._saved
            if self._snapshots is None or not self._built or self._rebuilding or nothing_new:
                return
            unreadable = list(self._store.unreadable)
            frozen = partial(snapshot_parts, self._index, self._hashtags, self._other_space, unreadable)
            try:
                parts = await self._run(self._writer, frozen)
                await in_daemon(partial(self._snapshots.save, self._origin, position, parts))
                self._saved, self._saved_at = (position, repairs), self._clock()
            except Exception as error:
                log.warning("snapshot_failed", detail=repr(error))
            else:
                await self._keep_log(position)

    async def _rebuild(self) -> None:
        """A new index from a scan of the store, swapped in when whole."""
        origin = await self._of_now()
        position = (await self._store.log_bounds()).last
        await self._keep_log(position)  # or others would cut it off meanwhile
        index, hashtags = self._make_index(), self._make_hashtags()
        self._other_space = set()
        self._rebuilding = True
        progress = Progress(await self._store.size())
        try:
            async for notes in self._store.scan():
                progress.tell(len(notes))
                whole = [note for note in notes if isinstance(note, StoredNote)]
                await self._run(self._writer, partial(self._take, index, hashtags, whole, gone=()))
                while await self._do_job(index):
                    pass
            self._store.forget_written()
            self._index, self._hashtags, self._origin, self._built = index, hashtags, origin, True
        finally:
            self._rebuilding = False
            self._written.set()
        self._ready, self._must_reach = False, None
        await self._move(position)
        self._caught_up((await self._store.log_bounds()).last)
        log.info(
            "index_built",
            vectors=len(index),
            other_space=len(self._other_space),
            unreadable=len(self._store.unreadable),
            position=position,
        )

    def _take(
        self,
        index: VectorIndex,
        hashtags: LiveHashtags,
        notes: Sequence[StoredNote],
        gone: Sequence[str] | set[str],
    ) -> None:
        broken = {note.note.id for note in notes if note.vector is None or not np.isfinite(note.vector).all()}
        if broken:
            log.error("vectors_not_finite", ids=sorted(broken)[:10], detail="these notes cannot be found")
        ours = [note for note in notes if note.space == self._space and note.note.id not in broken]
        gone = [*gone, *broken]
        others = {note.note.id for note in notes if note.space != self._space}
        index.upsert(ours)
        index.remove([*gone, *others])
        hashtags.upsert(ours)
        hashtags.remove([*gone, *others])
        self._other_space = (self._other_space | others) - {n.note.id for n in ours} - set(gone)

    async def _move(self, position: str) -> None:
        async with self._moved:
            self._position = position
            self._moved.notify_all()


class Progress:
    """Tells every PROGRESS_SECONDS how far the building from `size` notes has come."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._read = 0
        self._began = self._told = time.monotonic()

    def tell(self, more: int) -> None:
        self._read += more
        now = time.monotonic()
        if now >= self._told + PROGRESS_SECONDS:
            self._told = now
            rate = max(1, self._read) / (now - self._began)
            left = max(0, self._size - self._read) / rate
            log.info("index_building", notes=self._read, of=self._size, a_second=round(rate), seconds_left=round(left))


def snapshot_parts(
    index: VectorIndex, hashtags: LiveHashtags, other_space: Iterable[str], unreadable: Iterable[str]
) -> list[Part]:
    """All parts of a snapshot."""
    others, left_out = packed(OTHER_SPACE, other_space), packed(UNREADABLE, unreadable)
    lists = [Part(OTHER_SPACE, lambda: others), Part(UNREADABLE, lambda: left_out)]
    return [*index.snapshot_parts(), *hashtags.snapshot_parts(), *lists]


def restore(read: ReadPart, index: VectorIndex, hashtags: LiveHashtags) -> tuple[set[str], list[str]]:
    """Fill both from the parts of a snapshot; the notes of another space, and those that could not be decoded.
    Meanwhile no garbage is looked for: of the million objects that are made, all stay."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        index.restore(read)
        hashtags.restore(read)
    finally:
        if collecting:
            gc.enable()
    return set(unpacked(OTHER_SPACE, read(OTHER_SPACE))), unpacked(UNREADABLE, read(UNREADABLE))


async def in_daemon(call: Callable[[], None]) -> None:
    """In a thread of its own, for which a process that ends does not wait: a merge is long, and can be done again."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.done():  # nobody waits any more
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            call()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, error)

    threading.Thread(target=run, name="index-work", daemon=True).start()
    await done
