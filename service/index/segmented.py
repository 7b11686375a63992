"""SegmentedIndex: a small head that takes writes, and sealed segments that grow by being merged (LSM, O'Neil 1996).

One thread writes; any number search, without a lock: they take the view as it is (view.py), and where it was exchanged
meanwhile, search again. Sealing and merging are jobs: planned and finished by the writer, run by another
thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import faiss
import numpy as np

from service.filters import Filter
from service.index.gpu import Gpu
from service.index.growing import GrowingSegment
from service.index.packed_strings import packed, unpacked
from service.index.sealed import SealedSegment, Source
from service.index.searcher import SegmentSearcher
from service.index.segment import Segment
from service.index.tags import RowNumbers, TagDictionary
from service.interfaces import Part, ReadPart
from service.records import Hit, StoredNote, Vector

HEAD_ROWS = 1024
MERGED_AT = 4
"""So many full heads, or sealed segments of about one size, become one."""
DEAD_SHARE = 0.25
"""Of its rows that are tombstones: a segment with more is made again without them."""

SEGMENTS, CODES, ALIVE, HEAD = "segments", "codes", "alive", "head-"
"""Parts of a snapshot; beside them one for each segment."""


@dataclass(slots=True, eq=False)
class MergeJob:
    """Some segments to be made one of, which `run` does in any thread; None where no row is left."""

    sources: list[Source]
    dimension: int
    gpu: Gpu | None = None
    made: SealedSegment | None = field(default=None)
    places: RowNumbers = field(default_factory=lambda: np.zeros(0, np.int64))
    """Where each row went, in the sources' order."""

    @classmethod
    def of(cls, segments: Sequence[Segment], dimension: int, gpu: Gpu | None = None) -> MergeJob:
        return cls([Source.of(segment) for segment in segments], dimension, gpu)

    @property
    def rows(self) -> int:
        return sum(len(source.rows) for source in self.sources)

    def run(self) -> None:
        """With one core: the others are for whoever searches meanwhile."""
        use_one_faiss_thread()
        if self.rows:
            self.made, self.places = SealedSegment.of(self.sources, self.dimension, self.gpu)


class SegmentedIndex:
    """See VectorIndex. `dimension`: of every vector in it; `head_rows`: of one head; `attributes`: names of those of
    notes that filters may ask about; `gpu`: on which sealed segments are searched."""

    def __init__(
        self, dimension: int, head_rows: int = HEAD_ROWS, attributes: Sequence[str] = (), gpu: Gpu | None = None
    ) -> None:
        self._dimension = dimension
        self._head_rows = head_rows
        self._attributes = attributes
        self._gpu = gpu
        self._codes = TagDictionary(attributes)
        self._view = SegmentSearcher((self._new_head(),), self._codes, gpu)
        self._given_up: list[Segment] = []
        """Of jobs that failed: the others go first."""

    def __len__(self) -> int:
        return sum(segment.living for segment in self._segments)

    @property
    def tombstones(self) -> int:
        return sum(segment.dead for segment in self._segments)

    @property
    def segments(self) -> int:
        return len(self._segments)

    @property
    def shared(self) -> bool:
        """See VectorIndex."""
        return self._gpu is not None

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        """See VectorIndex. A note in the head whose vector did not change keeps its row."""
        for stored in notes:
            if stored.vector is None or stored.vector.shape != (self._dimension,):
                raise ValueError(f"note {stored.note.id!r} has no vector of dimension {self._dimension}")
        for stored in notes:
            assert stored.vector is not None
            self._upsert(stored, stored.vector)

    def _upsert(self, stored: StoredNote, vector: Vector) -> None:
        head, row = self._head, self._head.row_of(stored.note.id)
        if row is not None and np.array_equal(head.vectors(np.array([row]))[0], vector):
            head.describe(row, stored)
            return
        if head.full:
            fragmented = head.dead > DEAD_SHARE * len(head)
            older = self._segments[:-1] if fragmented else self._segments
            head = head.without_dead() if fragmented else self._new_head()
            self._show(*older, head)
        replaced = [(each, row) for each in self._segments if (row := each.row_of(stored.note.id)) is not None]
        head.append(stored, vector)
        if replaced:
            self._view.replaced += 1
        for segment, row in replaced:
            segment.mark_deleted(row)

    def remove(self, ids: Sequence[str]) -> None:
        """See VectorIndex."""
        for note_id in ids:
            for segment in self._segments:
                if (row := segment.row_of(note_id)) is not None:
                    segment.mark_deleted(row)

    def expire(self, now: float) -> list[str]:
        """See VectorIndex."""
        return [note_id for segment in self._segments for note_id in segment.expire(now)]

    def vector(self, note_id: str) -> Vector | None:
        """See VectorIndex."""
        while True:
            segments = self._segments
            for segment in segments:
                if (row := segment.row_of(note_id)) is not None:
                    vector: Vector = segment.vectors(np.array([row]))[0]
                    return vector
            if segments is self._segments:
                return None

    def ids(self) -> list[str]:
        """See VectorIndex."""
        return [note_id for segment in self._segments for note_id in segment.ids()]

    def search(self, vector: Vector, k: int, where: Filter, now: float) -> list[Hit]:
        """See VectorIndex. ValueError where `vector` has another dimension. With both rows of a note that is replaced
        meanwhile, or when one came that is to be left out, it is searched again."""
        if vector.shape != (self._dimension,):
            raise ValueError(f"a vector of {vector.shape} cannot be compared with rows of {self._dimension}")
        while True:
            view = self._view
            hits = view.find(vector, k, where, now)
            ids = {hit.id for hit in hits}
            if view is self._view and len(ids) == len(hits) and ids.isdisjoint(where.exclude):
                return hits

    def snapshot_parts(self) -> list[Part]:
        """See VectorIndex."""
        segments, codes = self._segments, self._codes.texts
        names = [s.name if isinstance(s, SealedSegment) else f"{HEAD}{at}" for at, s in enumerate(segments)]
        alive = {
            name: np.packbits(s.alive) for name, s in zip(names, segments, strict=True) if isinstance(s, SealedSegment)
        }
        heads = [(name, s.arrays()) for name, s in zip(names, segments, strict=True) if isinstance(s, GrowingSegment)]
        return [
            Part(SEGMENTS, lambda: packed("names", names)),
            Part(CODES, lambda: packed("codes", codes)),
            Part(ALIVE, lambda: alive),
            *(Part(name, partial(dict, arrays)) for name, arrays in heads),
            *(Part(s.name, s.arrays, lasting=True) for s in segments if isinstance(s, SealedSegment)),
        ]

    def restore(self, read: ReadPart) -> None:
        """See VectorIndex."""
        self._codes = TagDictionary(self._attributes, unpacked("codes", read(CODES)))
        alive = read(ALIVE)

        def restored(name: str) -> Segment:
            arrays = read(name)
            if name.startswith(HEAD):
                return GrowingSegment.restored(self._head_rows, self._dimension, self._codes, arrays)
            rows = len(arrays["expires"])
            return SealedSegment.restored(
                name, arrays, np.unpackbits(alive[name], count=rows).astype(np.bool_), self._gpu
            )

        self._show(*(restored(name) for name in unpacked("names", read(SEGMENTS))))

    def plan(self) -> MergeJob | None:
        """See VectorIndex."""
        full = [segment for segment in self._segments[:-1] if segment not in self._given_up]
        sealed = [segment for segment in full if isinstance(segment, SealedSegment)]
        heads = [segment for segment in full if isinstance(segment, GrowingSegment)]
        fragmented: list[Sequence[Segment]] = [[s] for s in full if s.dead > DEAD_SHARE * len(s)]
        groups: list[Sequence[Segment]] = [heads, *_of_one_size(sealed, self._head_rows * MERGED_AT)]
        for chosen in (*fragmented, *(group for group in groups if len(group) >= MERGED_AT)):
            return MergeJob.of(chosen, self._dimension, self._gpu)
        self._given_up.clear()
        return None

    def give_up(self, job: MergeJob) -> None:
        """See VectorIndex."""
        self._given_up += [source.segment for source in job.sources]

    def finish(self, job: MergeJob) -> None:
        """See VectorIndex. What was removed since the plan is removed from what was made."""
        old = {id(source.segment) for source in job.sources}
        if job.made is not None:
            alive = np.concatenate([source.segment.alive[source.rows] for source in job.sources])
            for row in job.places[~alive].tolist():
                job.made.mark_deleted(row)
        place = min(i for i, segment in enumerate(self._segments) if id(segment) in old)
        kept = [segment for segment in self._segments if id(segment) not in old]
        self._show(*kept[:place], *([job.made] if job.made else []), *kept[place:])

    @property
    def _segments(self) -> tuple[Segment, ...]:
        """Oldest first; the last one is the head."""
        return self._view.segments

    def _show(self, *segments: Segment) -> None:
        """Have these searched from now on."""
        self._view = SegmentSearcher(segments, self._codes, self._gpu)

    @property
    def _head(self) -> GrowingSegment:
        head = self._segments[-1]
        assert isinstance(head, GrowingSegment)
        return head

    def _new_head(self) -> GrowingSegment:
        return GrowingSegment(self._head_rows, self._dimension, self._codes)


def use_one_faiss_thread() -> None:
    """What FAISS does in this thread from now on: its own threads would wait for each other by turning round."""
    faiss.omp_set_num_threads(1)


def trim_heap() -> None:
    """What segments that are gone have left, to the system: the C library would keep it for later."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _of_one_size(sealed: Sequence[SealedSegment], smallest: int) -> list[list[SealedSegment]]:
    """Groups of those that are less than MERGED_AT times as large as the group's least size."""
    groups: dict[int, list[SealedSegment]] = {}
    for segment in sealed:
        size, least = 0, smallest
        while segment.living > least:
            size, least = size + 1, least * MERGED_AT
        groups.setdefault(size, []).append(segment)
    return [groups[size] for size in sorted(groups)]
