"""LiveIndex: the index of a process, which follows the change log of the store and answers searches.

Small batches of changes are applied in the event loop, and plain searches run there; otherwise one thread writes,
several search, and one merges segments. At start-up the index is loaded from its snapshot on disk and follows the log
from the snapshot's position. Without a snapshot, or where the log no longer reaches back to it, the index is built from
a scan of the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from model.cores import usable_cores
from model.generation import Neighbour, Neighbours, Vocabulary
from model.note import Note
from service.errors import IndexBehind
from service.filters import Filter
from service.index.backend import IndexBackend
from service.index.log_follower import LogFollower
from service.index.maintenance import Maintainer
from service.index.native import use_one_faiss_thread
from service.index.purging import Purger
from service.index.recall import RecallSampler
from service.index.snapshot_files import SharedSnapshots, SnapshotFolder
from service.index.snapshot_keeper import SnapshotKeeper
from service.index.state import IndexedNotes, IndexState
from service.index.texts import LiveTexts
from service.index.threads import IndexWriter, run_in
from service.interfaces import Clock, NoteStore
from service.read_time import READ_SECONDS
from service.records import Centre, ChangedNotes, Hit, IndexRows, IndexStatus, Vector, WrittenRows
from service.tasks import cancel_until_done
from service.tracing import stage

T = TypeVar("T")
SEARCH_THREADS = usable_cores()
MAX_ROWS_IN_LOOP, MAX_K_IN_LOOP = 2_000_000, 256
"""Bounds on the rows and the neighbours of a search that runs in the event loop; it has no filter. The ten nearest of a
million rows are found in half a millisecond; switching to another thread takes a good part of that again
(docs/log/reads.md). The second bound also holds for looking up rows by their ids."""
NEIGHBOUR_FACTORS = (2, 20)
"""Hits to search for per neighbour with hashtags. The second number is tried where the first gives too few neighbours;
it bounds the cost of a lookup where few notes have hashtags."""

FILTERED_WORDS_FACTOR = 16
"""Notes with shared words that a filtered search looks at for each note that it returns: the filter is applied
afterwards."""
MAX_PASSING_SCORED = 2048
"""Maximum number of notes passing a filter whose words are all scored, where too few of the notes with the most shared
words pass it."""


def search_threads() -> ThreadPoolExecutor:
    """Return a thread pool for searches, with as many threads as there are cores."""
    return ThreadPoolExecutor(SEARCH_THREADS, thread_name_prefix="index-search", initializer=use_one_faiss_thread)


MAX_OPTIMISTIC_SCANS = 3
"""Scans for the last page of a list during which changes may be applied, before one that holds changes up."""


def _with_hashtags(
    texts: LiveTexts, search: Callable[[int], Sequence[tuple[str, float]]], count: int
) -> list[Neighbour]:
    """Return the best `count` notes with hashtags, best first; search deeper where too few of the hits have hashtags.
    `search`: returns as many ids and scores as requested, or all there are."""
    neighbours: list[Neighbour] = []
    for factor in NEIGHBOUR_FACTORS:
        hits = search(factor * count)
        neighbours = texts.with_hashtags(hits)
        if len(neighbours) >= count or len(hits) < factor * count:
            break
    return neighbours[:count]


class LiveIndex:
    """NoteIndex over the backend that `make_index` returns.

    `make_index` and `make_texts` return empty objects. Notes of another vector space than `space` are left out.
    `attributes` names those that filters may test. `snapshots`: a SnapshotFolder, from which a snapshot is loaded and
    in which one is saved every `snapshot_seconds` if anything was written or merged; SharedSnapshots, from which one is
    only loaded; None for no snapshots. `searchers`: a pool of search_threads() that several indexes share; its creator
    shuts it down.
    """

    def __init__(
        self,
        store: NoteStore,
        make_index: Callable[[], IndexBackend],
        make_texts: Callable[[], LiveTexts],
        *,
        space: str,
        clock: Clock,
        attributes: tuple[str, ...] = (),
        snapshots: SnapshotFolder | SharedSnapshots | None = None,
        snapshot_seconds: float = 60.0,
        searchers: ThreadPoolExecutor | None = None,
    ) -> None:
        def make_notes() -> IndexedNotes:
            return IndexedNotes(make_index(), make_texts(), space)

        self._clock = clock
        self._writer = IndexWriter()
        self._searchers = searchers or search_threads()
        self._own_searchers = searchers is None
        self._state = IndexState(make_notes())
        self._maintainer = Maintainer(self._state, self._writer)
        self._keeper = SnapshotKeeper(
            snapshots,
            store,
            self._state,
            self._writer,
            clock,
            seconds=snapshot_seconds,
            space=space,
            attributes=attributes,
        )
        self._purger = Purger(self._state, self._keeper, self._maintainer, self._writer)
        self._follower = LogFollower(
            store, self._state, make_notes, self._keeper, self._maintainer, self._purger, self._writer, clock
        )
        self._recall = RecallSampler(self._state, self._searchers)
        self._tasks: list[asyncio.Task[None]] = []
        self._discarded = False

    async def start(self) -> None:
        await self._follower.catch_up()
        self._tasks = [
            asyncio.create_task(self._follower.run(), name="follow-log"),
            asyncio.create_task(self._maintainer.run(), name="maintain-index"),
            asyncio.create_task(self._keeper.run(), name="snapshot-index"),
            asyncio.create_task(self._purger.run(), name="purge-index"),
        ]

    async def stop(self) -> None:
        """End all tasks, save a snapshot, and end the threads."""
        self._follower.stop()
        sampling = [self._recall.task] if self._recall.task else []
        for task in [*self._tasks, *sampling]:
            await cancel_until_done(task)
        self._maintainer.idle.set()  # nothing will be merged any more: `save_merged` must not wait for it
        if self._discarded:
            return  # a request that has begun may still need the threads; they end with the last reference to them
        await self.save()
        self._writer.shutdown()
        if self._own_searchers:
            self._searchers.shutdown()

    async def discard(self) -> None:
        self._discarded = True
        await self._keeper.discard()

    async def save(self) -> None:
        """Make a snapshot where anything changed since the last one."""
        await self._keeper.save()

    async def save_merged(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._maintainer.idle.wait()
        await self.save()

    @property
    def position(self) -> str:
        return self._state.position

    @property
    def begun_batches(self) -> int | None:
        return self._follower.begun_batches

    @property
    def vocabulary(self) -> Vocabulary:
        return self._state.notes.texts.vocabulary

    @property
    def other_space(self) -> int:
        return len(self._state.notes.other_space)

    def status(self) -> IndexStatus:
        readiness = self._follower.readiness
        return IndexStatus(
            ready=readiness.ready,
            detail=readiness.detail,
            position=self._state.position,
            behind_since=self._follower.behind_since,
            vectors=len(self._index),
            tombstones=self._index.tombstones,
            segments=self._index.segments,
            other_space=self.other_space,
            saved_at=self._keeper.saved_at,
            unsaved_since=self._keeper.unsaved_since,
            lost=self._state.lost,
            recall_sampled=self._recall.mean,
        )

    def on_change(self, apply: Callable[[ChangedNotes | None], None]) -> None:
        self._state.on_change(apply)

    def on_vector_change(self, apply: Callable[[ChangedNotes | None], None]) -> None:
        self._state.on_vector_change(apply)

    async def wait_for(self, position: str, seconds: float) -> None:
        with stage("index", "wait"):
            await self._state.wait_for(position, seconds)

    async def search(self, vector: Vector, k: int, where: Filter, recall_k: int | None = None) -> list[Hit]:
        position, now, index = self._state.position, self._clock(), self._index
        hits = await self._run(partial(index.search, vector, k, where, now, recall_k), k, where)
        self._sample_recall(hits, position, index, vector, min(k, recall_k or k), where, now)
        return hits

    def search_nowait(self, vector: Vector, k: int, where: Filter) -> list[Hit] | None:
        if not self._state.built or not self._fits_loop(k, where):
            return None
        position, now, index = self._state.position, self._clock(), self._index
        with stage("index", "search", k=k):
            hits = index.search(vector, k, where, now)
        self._sample_recall(hits, position, index, vector, k, where, now)
        return hits

    async def search_rows(
        self, vector: Vector, k: int, where: Filter, recall_k: int | None = None
    ) -> tuple[list[Hit], IndexRows]:
        position, now, index = self._state.position, self._clock(), self._index
        hits, rows = await self._run(partial(index.search_rows, vector, k, where, now, recall_k), k, where)
        self._sample_recall(hits, position, index, vector, min(k, recall_k or k), where, now)
        return hits, rows

    async def _run(self, search: Callable[[], T], k: int, where: Filter) -> T:
        """Run a search in the event loop or in a thread. Raises IndexBehind before the index was first built."""
        if not self._state.built:
            raise IndexBehind("the end of the store's log", self._state.position)
        with stage("index", "search", k=k):
            if self._fits_loop(k, where):
                return search()
            return await run_in(self._searchers, search)

    def _fits_loop(self, k: int, where: Filter) -> bool:
        """Return whether a search is short enough to run in the event loop."""
        small = k <= MAX_K_IN_LOOP and len(self._index) <= MAX_ROWS_IN_LOOP
        return small and where.plain and not self._index.shared

    def _sample_recall(
        self,
        hits: Sequence[Hit],
        position: str,
        index: IndexBackend,
        vector: Vector,
        count: int,
        where: Filter,
        now: float,
    ) -> None:
        """Offer the first `count` hits, to which the recall target applies, for a comparison with an exact search."""
        if not where.exact:
            exactly = partial(index.search, vector, count, replace(where, exact=True), now)
            self._recall.offer(hits[:count], position, exactly)

    def find_neighbours(self, note: Note, vector: Vector, count: int) -> Neighbours:
        now, notes = self._clock(), self._state.notes
        where = Filter(exclude=frozenset({note.id} - {""}))
        return Neighbours(
            _with_hashtags(notes.texts, lambda k: notes.index.search(vector, k, where, now), count),
            _with_hashtags(notes.texts, lambda k: notes.texts.by_words(note, k, now), count),
            notes.texts.named_hashtags(note),
            len(notes.index),
        )

    async def search_words(self, note: Note, count: int, where: Filter, ids: Sequence[str] = ()) -> dict[str, float]:
        with stage("index", "words"):
            return await run_in(self._searchers, partial(self._word_scores, note, count, where, ids))

    def _word_scores(self, note: Note, count: int, where: Filter, ids: Sequence[str]) -> dict[str, float]:
        """Do what `search_words` does, in a search thread."""
        now, notes, known = self._clock(), self._state.notes, set(ids)
        skipped = known.union(where.exclude)

        def ranked(scores: Mapping[str, float]) -> list[str]:
            others = sorted((-score, note_id) for note_id, score in scores.items() if note_id not in skipped)
            return [note_id for _, note_id in others]

        factor = FILTERED_WORDS_FACTOR if where.narrows else 1
        depth = factor * count + len(where.exclude) if count else 0
        scores = notes.texts.word_scores(note, depth, now, ids)
        best = ranked(scores)
        if where.narrows:
            best = notes.index.passing(best, where, now)
            if len(best) < count and len(scores) >= depth:  # more notes share words than were looked at
                seen = len(best) + len(notes.index.passing(ids, where, now))
                if seen < (passing := notes.index.count(where, now)) <= MAX_PASSING_SCORED:
                    passing_scores = notes.texts.word_scores(note, 0, now, notes.passing_ids(where, passing, now))
                    scores |= passing_scores
                    best = ranked(passing_scores)
        return {note_id: scores[note_id] for note_id in (*(known & scores.keys()), *best[:count])}

    async def passing(self, ids: Sequence[str], where: Filter) -> list[str]:
        return await run_in(self._searchers, partial(self._index.passing, ids, where, self._clock()))

    async def count_excluded(self, where: Filter) -> int:
        now, index = self._clock(), self._index
        return await run_in(self._searchers, lambda: max(0, index.count(Filter(), now) - index.count(where, now)))

    async def shared_words(self, note: Note, others: Sequence[Note]) -> list[tuple[str, ...]]:
        texts = self._state.notes.texts
        return await run_in(self._searchers, partial(texts.shared_words, note, others))

    @property
    def centre(self) -> Centre:
        return self._index.centre

    def vector(self, note_id: str) -> Vector | None:
        return self._index.vector(note_id)  # in the event loop: switching to a thread would take longer

    async def rows(self, note_ids: Sequence[str]) -> IndexRows:
        if len(note_ids) <= MAX_K_IN_LOOP:
            return self._index.rows(note_ids)
        return await run_in(self._searchers, partial(self._index.rows, note_ids))

    async def written(self, after: str, count: int, where: Filter) -> WrittenRows:
        if not self._state.built:
            raise IndexBehind("the end of the store's log", self._state.position)
        for _ in range(MAX_OPTIMISTIC_SCANS):
            batches, resyncs = self.begun_batches, self._follower.begun_resyncs
            written = await self._scan_written(after, count, where)
            is_unchanged = batches is not None and batches == self.begun_batches
            is_full = len(written.rows) == count and resyncs is not None and resyncs == self._follower.begun_resyncs
            if is_full or is_unchanged:
                return written
        # A scan may miss both positions of a note that is rewritten meanwhile: a later page has it, unless this is the
        # last page, or the note is resynced, which returns it to the same position.
        async with self._follower.applying_nothing(READ_SECONDS):
            return await self._scan_written(after, count, where)

    async def _scan_written(self, after: str, count: int, where: Filter) -> WrittenRows:
        # Read together, so that these notes include each row that was written at or before `until`.
        state = self._state
        store, until, notes = state.store_identity, state.position, state.notes
        rows = await run_in(self._searchers, partial(notes.written, after, until, count, where, self._clock()))
        return WrittenRows(rows, store, until, notes.newest)

    async def ids(self) -> list[str]:
        return await run_in(self._searchers, self._index.ids)

    async def sampled_ids(self, count: int) -> list[str]:
        return await run_in(self._searchers, partial(self._index.sampled_ids, count))

    async def expire(self) -> None:
        await self._follower.expire()

    async def resync(self, note_ids: Sequence[str]) -> None:
        await self._follower.resync(note_ids)

    @property
    def _index(self) -> IndexBackend:
        """The index that searches see; each build replaces it by another object."""
        return self._state.notes.index
