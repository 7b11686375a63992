"""SegmentedIndex: a small segment that takes writes, and sealed segments that are merged: a log-structured merge tree
(O'Neil et al. 1996).

One call writes at a time; any number of threads search. A search uses the current SegmentSearcher (searcher.py), and is
repeated if a write replaced that meanwhile. A search with a filter copies the data that the filter tests between two
changes (seqlock.py). Merges are jobs: the writer plans and finishes them, another thread runs them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from service.filters import Filter
from service.index.backend import Part, ReadPart
from service.index.bitmaps import RowNumbers
from service.index.building import Source, sampled_rows, sampled_vectors
from service.index.centre import SAMPLED_NOTES, LiveCentre
from service.index.gpu import Gpu
from service.index.growing import GrowingSegment
from service.index.merging import MERGE_FACTOR, MergePlanner, fragmented, groups_of_one_size
from service.index.native import use_one_faiss_thread
from service.index.packed_strings import HashedStrings, packed, unpacked
from service.index.sealed import SealedSegment
from service.index.searcher import RowHit, SegmentSearcher
from service.index.segment import Segment
from service.index.seqlock import SeqLock
from service.index.tags import TagDictionary
from service.records import Centre, Hit, IndexRows, PositionKey, StoredNote, Vector

GROWING_ROWS = 1024
"""Capacity of a growing segment. Each search compares all of its rows."""
SEGMENTS, CODES, ALIVE, CENTRE, GROWING_PREFIX = "segments", "codes", "alive", "centre", "head-"
"""Names of the parts of a snapshot. Each growing segment is a further part, named by the prefix and its place; so is
each sealed segment, under its own name."""


@dataclass(slots=True, eq=False)
class MergeJob:
    """Merge of segments: their living rows become one sealed segment. `run` sets `merged`, which stays None where no
    row is left."""

    sources: list[Source]
    dimension: int
    gpu: Gpu | None = None
    merged: SealedSegment | None = field(default=None)
    new_rows: RowNumbers = field(default_factory=lambda: np.zeros(0, np.int64))
    """Number of each row in the merged segment, in the sources' order."""

    @classmethod
    def of(cls, segments: Sequence[Segment], dimension: int, gpu: Gpu | None = None) -> MergeJob:
        """Return a job that merges the rows that are alive now."""
        return cls([Source.of(segment) for segment in segments], dimension, gpu)

    @property
    def rows(self) -> int:
        return sum(len(source.rows) for source in self.sources)

    def run(self) -> None:
        """Build the merged segment on one core: the others serve searches meanwhile."""
        use_one_faiss_thread()
        if self.rows:
            self.merged, self.new_rows = SealedSegment.of(self.sources, self.dimension, self.gpu)


class SegmentedIndex:
    """VectorIndex, Maintainable and Snapshottable, on FAISS.

    Vectors have `dimension` numbers. `growing_rows` is the capacity of a growing segment. `attributes` names the notes'
    attributes that filters may test. Sealed segments are searched on `gpu`, where one is given. Segments of more than
    `max_merged_rows` rows are only rewritten, where `drop_tombstones` was called. `mean_share`: see
    NoteLLMConfig.
    """

    def __init__(
        self,
        dimension: int,
        growing_rows: int = GROWING_ROWS,
        attributes: Sequence[str] = (),
        gpu: Gpu | None = None,
        max_merged_rows: float = math.inf,
        mean_share: float = 0.0,
    ) -> None:
        self._dimension = dimension
        self._growing_rows = growing_rows
        self._attributes = attributes
        self._gpu = gpu
        self._max_merged_rows = max_merged_rows
        self._centre = LiveCentre(mean_share)
        self._tag_dictionary = TagDictionary(attributes)
        self._rows_lock = SeqLock()
        self._publish(self._new_growing())
        self._merges = MergePlanner[Segment]()

    def __len__(self) -> int:
        return sum(segment.living for segment in self.all_segments)

    @property
    def tombstones(self) -> int:
        return sum(segment.dead for segment in self.all_segments)

    @property
    def segments(self) -> int:
        return len(self.all_segments)

    @property
    def shared(self) -> bool:
        return self._gpu is not None

    @property
    def centre(self) -> Centre:
        return self._centre.current

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        """Add or replace rows. A note in the growing segment whose vector did not change keeps its row. Raises
        ValueError, before anything is changed, where a note has no vector of the index's dimension."""
        for stored in notes:
            if stored.vector is None or stored.vector.shape != (self._dimension,):
                raise ValueError(f"note {stored.note.id!r} has no vector of dimension {self._dimension}")
        self._count_changes(sum(self._upsert(stored, stored.vector) for stored in notes if stored.vector is not None))

    def _upsert(self, stored: StoredNote, vector: Vector) -> bool:
        """Add or replace a row; return whether it is new or has another vector than before."""
        note_id = stored.note.id
        growing = self._growing
        row = growing.row_of(note_id)
        if row is not None and np.array_equal(growing.vectors(np.array([row]))[0], vector):
            with self._rows_lock.change():
                growing.set_fields(row, stored)
            return False
        if growing.full:
            growing = self._replace_full(growing)
        old_rows = [(segment, row) for segment in self.all_segments if (row := segment.row_of(note_id)) is not None]
        same = any(np.array_equal(segment.vectors(np.array([row]))[0], vector) for segment, row in old_rows)
        with self._rows_lock.change():
            # The new row comes first: a concurrent search without a filter may find both rows, but never neither.
            growing.append(stored, vector)
            if old_rows:
                self._searcher.replaced += 1
            for segment, row in old_rows:
                segment.mark_deleted(row)
        return not same

    def _replace_full(self, full: GrowingSegment) -> GrowingSegment:
        """Begin another growing segment. Where many rows of the full one are tombstones, the new one replaces it and
        takes its living rows."""
        if fragmented(full):
            growing = full.without_tombstones()
            self._publish(*self.all_segments[:-1], growing)
        else:
            growing = self._new_growing()
            self._publish(*self.all_segments, growing)
        return growing

    def remove(self, ids: Sequence[str]) -> None:
        for note_id in ids:
            for segment in self.all_segments:
                if (row := segment.row_of(note_id)) is not None:
                    segment.mark_deleted(row)
        self._count_changes(len(ids))

    def expire(self, now: float) -> list[str]:
        expired = [note_id for segment in self.all_segments for note_id in segment.expire(now)]
        self._count_changes(len(expired))
        return expired

    def _count_changes(self, changes: int) -> None:
        """Count changed rows, and estimate the centre again once there are many."""
        if self._centre.count_changes(changes, len(self)):
            self._renew_centre()

    def _renew_centre(self, *, force: bool = False) -> None:
        sources = [Source.of(segment) for segment in self.all_segments]
        self._centre.renew(sampled_vectors(sources, SAMPLED_NOTES), force=force)

    def vector(self, note_id: str) -> Vector | None:
        while True:
            segments = self.all_segments
            for segment in segments:
                if (row := segment.row_of(note_id)) is not None:
                    vector: Vector = segment.vectors(np.array([row]))[0]
                    return vector
            if segments is self.all_segments:
                return None

    def rows(self, note_ids: Sequence[str]) -> IndexRows:
        while True:
            segments = self.all_segments
            rows = self._rows_in(segments, note_ids)
            if segments is self.all_segments or len(rows.ids) == len(note_ids):
                return rows  # else one that was not found may have moved to another segment meanwhile

    def _rows_in(self, segments: Sequence[Segment], note_ids: Sequence[str]) -> IndexRows:
        """Return the rows of those notes that have one in `segments`; of two rows of a note, the one in the later
        segment."""
        name_of = self._tag_dictionary.name_of  # read before the codes: it keeps the names of forgotten codes
        vectors = np.empty((len(note_ids), self._dimension), np.float32)
        codes = np.empty((2, len(note_ids)), np.int32)
        place_of, hashed = {note_id: place for place, note_id in enumerate(note_ids)}, HashedStrings.of(set(note_ids))
        is_present = np.zeros(len(note_ids), np.bool_)
        for segment in segments:
            if rows_by_id := segment.rows_of_ids(hashed):
                places, rows = [place_of[note_id] for note_id in rows_by_id], np.array(list(rows_by_id.values()))
                vectors[places] = segment.vectors(rows)
                codes[0, places], codes[1, places] = segment.columns.category[rows], segment.columns.author[rows]
                is_present[places] = True
        if is_present.all():
            return IndexRows(list(note_ids), vectors, codes[0], codes[1], name_of)
        ids = [note_ids[place] for place in np.flatnonzero(is_present).tolist()]
        return IndexRows(ids, vectors[is_present], codes[0, is_present], codes[1, is_present], name_of)

    def ids(self) -> list[str]:
        return [note_id for segment in self.all_segments for note_id in segment.ids()]

    def sampled_ids(self, count: int) -> list[str]:
        sources = [Source.of(segment) for segment in self.all_segments]
        return [note_id for segment, rows in sampled_rows(sources, count) for note_id in segment.ids_at(rows)]

    def search(self, vector: Vector, k: int, where: Filter, now: float, recall_k: int | None = None) -> list[Hit]:
        """Search all segments. Raises ValueError where `vector` has another dimension."""
        return _hits(self._search(vector, k, where, now, recall_k)[1])

    def search_rows(
        self, vector: Vector, k: int, where: Filter, now: float, recall_k: int | None = None
    ) -> tuple[list[Hit], IndexRows]:
        searcher, row_hits = self._search(vector, k, where, now, recall_k)
        return _hits(row_hits), searcher.rows(row_hits)

    def _search(
        self, vector: Vector, k: int, where: Filter, now: float, recall_k: int | None
    ) -> tuple[SegmentSearcher, list[RowHit]]:
        """Return what a search found, and the searcher that found it.

        The search is repeated if a concurrent write shows in its result (both rows of a replaced note, or an excluded
        note), or if the segments were replaced.
        """
        if vector.shape != (self._dimension,):
            raise ValueError(
                f"a vector of shape {vector.shape} cannot be compared with rows of {self._dimension} numbers"
            )
        while True:
            searcher = self._searcher
            row_hits = searcher.search(vector, k, where, now, recall_k)
            ids = {note_id for _, note_id, _ in row_hits}
            if searcher is self._searcher and len(ids) == len(row_hits) and ids.isdisjoint(where.exclude):
                return searcher, row_hits

    def passing(self, ids: Sequence[str], where: Filter, now: float) -> list[str]:
        return self._searcher.passing(ids, where, now)

    def count(self, where: Filter, now: float) -> int:
        while True:
            searcher = self._searcher
            count = searcher.count(where, now)
            if searcher is self._searcher:
                return count

    def written(
        self, after: PositionKey, until: PositionKey, count: int, where: Filter, now: float
    ) -> dict[str, PositionKey]:
        compiled = self._tag_dictionary.compile(where)
        written: dict[str, PositionKey] = {}
        for segment in self.all_segments:  # the newest row of a note is in the last segment that has it
            written |= segment.written(compiled, after, until, count, now)
        return dict(sorted(written.items(), key=lambda row: row[1])[:count])

    def drop_tombstones(self) -> None:
        growing = self._growing
        if growing.dead:
            self._publish(*self.all_segments[:-1], growing.without_tombstones())
        self._merges.drop_tombstones(self.all_segments)
        self._forget_unused_tags()
        if self.centre.vector is not None:
            self._renew_centre(force=True)

    @property
    def dropping(self) -> bool:
        return self._merges.dropping

    def _forget_unused_tags(self) -> None:
        """Forget the names of authors, hashtags, categories and attributes that no note has any more."""
        self._tag_dictionary.forget_unused(segment.living_tags() for segment in self.all_segments)

    def snapshot_parts(self) -> list[Part]:
        self._forget_unused_tags()
        names: list[str] = []
        growing_parts, sealed_parts = [], []
        alive = {}
        for place, segment in enumerate(self.all_segments):
            if isinstance(segment, SealedSegment):
                name = segment.name
                alive[name] = np.packbits(segment.alive)
                sealed_parts.append(Part(name, segment.arrays, immutable=True))
            else:
                assert isinstance(segment, GrowingSegment)
                name = f"{GROWING_PREFIX}{place}"
                growing_parts.append(Part(name, partial(dict, segment.arrays())))
            names.append(name)
        tags, centre = self._tag_dictionary.codes, self._centre.arrays()
        return [
            Part(SEGMENTS, lambda: packed("names", names)),
            Part(CODES, lambda: {**packed("codes", tags), "numbers": np.array(list(tags.values()), np.int32)}),
            Part(ALIVE, lambda: alive),
            Part(CENTRE, lambda: centre),
            *growing_parts,
            *sealed_parts,
        ]

    def restore(self, read: ReadPart) -> None:
        codes = read(CODES)
        tags = dict(zip(unpacked("codes", codes), codes["numbers"].tolist(), strict=True))
        self._tag_dictionary = TagDictionary(self._attributes, tags)
        self._centre.restore(read(CENTRE))
        alive = read(ALIVE)

        def restored(name: str) -> Segment:
            arrays = read(name)
            if name.startswith(GROWING_PREFIX):
                return GrowingSegment.restored(self._growing_rows, self._dimension, self._tag_dictionary, arrays)
            rows = len(arrays["expires"])
            mask = np.unpackbits(alive[name], count=rows).astype(np.bool_)
            return SealedSegment.restored(name, arrays, mask, self._gpu)

        self._publish(*(restored(name) for name in unpacked("names", read(SEGMENTS))))
        self._count_changes(0)  # makes a centre if the snapshot, of an earlier model, has none

    def plan(self) -> MergeJob | None:
        """Return the next merge: a segment with many tombstones first, then full growing segments, then sealed ones of
        one size, the smallest first."""
        candidates = self._merges.candidates(self.all_segments, self._max_merged_rows)
        sealed = [segment for segment in candidates if isinstance(segment, SealedSegment)]
        growing = [segment for segment in candidates if isinstance(segment, GrowingSegment)]
        groups: list[Sequence[Segment]] = [growing, *groups_of_one_size(sealed, self._growing_rows * MERGE_FACTOR)]
        merged = self._merges.choose(candidates, groups)
        return MergeJob.of(merged, self._dimension, self._gpu) if merged else None

    def finish(self, job: MergeJob) -> None:
        """Put the merged segment in the place of its sources. Rows that became tombstones since the plan are tombstones
        in it too."""
        sources = {id(source.segment) for source in job.sources}
        merged = []
        if job.merged is not None:
            alive = np.concatenate([source.segment.alive[source.rows] for source in job.sources])
            for row in job.new_rows[~alive].tolist():
                job.merged.mark_deleted(row)
            merged.append(job.merged)
        place = min(i for i, segment in enumerate(self.all_segments) if id(segment) in sources)
        kept = [segment for segment in self.all_segments if id(segment) not in sources]
        self._publish(*kept[:place], *merged, *kept[place:])
        self._merges.finish([source.segment for source in job.sources], merged)
        self._forget_unused_tags()

    def give_up(self, job: MergeJob) -> None:
        self._merges.give_up(source.segment for source in job.sources)

    @property
    def all_segments(self) -> tuple[Segment, ...]:
        """All segments, the oldest first; the last one grows."""
        return self._searcher.segments

    @property
    def _growing(self) -> GrowingSegment:
        growing = self.all_segments[-1]
        assert isinstance(growing, GrowingSegment)
        return growing

    def _new_growing(self) -> GrowingSegment:
        return GrowingSegment(self._growing_rows, self._dimension, self._tag_dictionary)

    def _publish(self, *segments: Segment) -> None:
        """Make searches use these segments from now on."""
        self._searcher = SegmentSearcher(segments, self._dimension, self._tag_dictionary, self._rows_lock, self._gpu)


def _hits(row_hits: Sequence[RowHit]) -> list[Hit]:
    return [Hit(note_id, -negated) for negated, note_id, _ in row_hits]
