"""Comparison of the index with the store, both ways and vector for vector, and repair of what differs.

It runs while the service works: a difference is checked again once the index has reached the current end of the log, so
that a write on its way from store to index is not reported.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from itertools import islice
from typing import Literal, TypeVar

import numpy as np

from service.interfaces import Clock, NoteIndex, NoteStore
from service.records import StoredNote, Unreadable, Vector

WAIT_SECONDS = 30.0
"""Bound on the wait for the index to reach the log."""
BATCH_SIZE = 500
"""Suspected ids that are checked together."""
PART_SIZE = 10_000
"""Ids that are compared before the event loop runs other tasks: about a millisecond."""
MAX_CHECKS = 3
"""Number of times that a difference is checked before it is reported: a single check may read one side before a write
and the other after it."""


T = TypeVar("T")
Kind = Literal["missing", "different", "stale", "duplicate", "broken", "unreadable"]
KINDS: Mapping[Kind, str] = {
    "missing": "in the store and not in the index",
    "different": "in both, but with different vectors",
    "stale": "in the index, but not in the store, or embedded by another model there",
    "duplicate": "more than once in the index",
    "broken": "the stored vector is missing or not finite: write the note again",
    "unreadable": "the stored form cannot be read: write or delete the note",
}
BEYOND_REPAIR: frozenset[Kind] = frozenset({"broken", "unreadable"})
"""Kinds that rebuilding the index does not repair, since the stored note itself is damaged."""


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a comparison.

    `notes`: number in the store. `rows`: number in the index. `other_space`: number of notes of another model, which
    the index must not have. `differing`: ids by kind, sorted; `suspects`: the ids of all kinds, each once, and
    `repairable`: those whose difference the index can repair by reading the store. `repaired`: whether all repairable
    differences were repaired.
    """

    notes: int
    rows: int
    other_space: int
    differing: Mapping[Kind, tuple[str, ...]]
    suspects: Sequence[str]
    repairable: Sequence[str]
    repaired: bool = False

    @property
    def well(self) -> bool:
        """Whether nothing differs any more."""
        damaged = any(self.differing[kind] for kind in BEYOND_REPAIR)
        return not damaged and (self.repaired or not self.repairable)


async def verify(store: NoteStore, index: NoteIndex, space: str, clock: Clock, *, repair: bool) -> Report:
    """Compare the whole store with the whole index, and, with `repair`, repair what differs. Raises
    StoreUnavailable, IndexBehind."""
    seen: set[str] = set()
    suspects: set[str] = set()
    other_space = 0
    async for notes in store.scan():
        readable = [stored for stored in notes if isinstance(stored, StoredNote)]
        unreadable = {note.id for note in notes if isinstance(note, Unreadable)}
        seen.update(unreadable, (stored.note.id for stored in readable))
        suspects |= unreadable
        other_space += sum(stored.space != space for stored in readable)
        suspects |= await _differing_vectors(index, [stored for stored in readable if stored.space == space], clock())
    rows = await _count_rows(index)
    async for part in _in_parts(rows.items()):
        suspects.update(note_id for note_id, count in part if count > 1 or note_id not in seen)
    ids: Sequence[str] = await _sorted(suspects)
    for _ in range(MAX_CHECKS):
        await index.wait_for((await store.log_bounds()).last, WAIT_SECONDS)
        await index.expire()
        report = await _inspect(store, index, space, ids, len(seen), other_space)
        ids = report.suspects
        if not ids:
            break
    if repair and report.repairable:
        await index.resync(report.repairable)
        after = await _inspect(store, index, space, report.repairable, len(seen), other_space)
        report = replace(report, rows=after.rows, repaired=not after.repairable)
    return report


async def _count_rows(index: NoteIndex) -> Counter[str]:
    """Count the rows of each id."""
    rows: Counter[str] = Counter()
    async for part in _in_parts(await index.ids()):
        rows.update(part)
    return rows


async def _in_parts(items: Iterable[T]) -> AsyncIterator[list[T]]:
    """Yield items PART_SIZE at a time, and let other tasks run in between: a million ids at once take a fifth of a
    second."""
    iterator = iter(items)
    while part := list(islice(iterator, PART_SIZE)):
        yield part
        await asyncio.sleep(0)


async def _sorted(ids: Iterable[str]) -> list[str]:
    """Sort ids PART_SIZE at a time; a thread would not help, since it holds the GIL while it sorts."""
    parts = [sorted(part) async for part in _in_parts(ids)]
    return [note_id async for part in _in_parts(merge(*parts)) for note_id in part]


async def _differing_vectors(index: NoteIndex, notes: Sequence[StoredNote], now: float) -> set[str]:
    """Return the ids of notes whose vector in the index differs from the stored one."""
    vectors = (await index.rows([stored.note.id for stored in notes])).vector_by_id
    return {
        stored.note.id
        for stored in notes
        if not stored.expired(now) and not _identical(vectors.get(stored.note.id), stored.vector)
    }


async def _inspect(
    store: NoteStore, index: NoteIndex, space: str, ids: Sequence[str], notes: int, other_space: int
) -> Report:
    """Report on `ids`, which are sorted, reading them again from both sides. `notes`, `other_space`: counts of the
    whole store."""
    rows = await _count_rows(index)
    differing: dict[Kind, list[str]] = {kind: [] for kind in KINDS}
    suspects: list[str] = []
    repairable: list[str] = []
    for begin in range(0, len(ids), BATCH_SIZE):
        batch = ids[begin : begin + BATCH_SIZE]
        stored_notes = await store.get(batch, with_vectors=True)
        vectors = (await index.rows(batch)).vector_by_id
        for note_id, note in zip(batch, stored_notes, strict=True):
            kinds = _kinds(note, vectors.get(note_id), rows[note_id], space)
            for kind in kinds:
                differing[kind].append(note_id)
            if kinds:
                suspects.append(note_id)
            if kinds - BEYOND_REPAIR:
                repairable.append(note_id)
    named = {kind: tuple(kind_ids) for kind, kind_ids in differing.items()}
    return Report(notes, rows.total(), other_space, named, suspects, repairable)


def _kinds(stored: StoredNote | Unreadable | None, vector: Vector | None, rows: int, space: str) -> set[Kind]:
    """Return the kinds of difference of one note, which has `rows` rows and `vector` in the index."""
    kinds: set[Kind] = {"duplicate"} if rows > 1 else set()
    if kind := _kind(stored, vector, space):
        kinds.add(kind)
    return kinds


def _kind(stored: StoredNote | Unreadable | None, vector: Vector | None, space: str) -> Kind | None:
    """Return the kind of difference of one note; None if there is none. `vector`: that of the index."""
    if isinstance(stored, Unreadable):
        return "unreadable"
    if stored is None or stored.space != space:
        return None if vector is None else "stale"
    if stored.vector is None or not np.isfinite(stored.vector).all():
        return "broken"
    if vector is None:
        return "missing"
    return None if _identical(vector, stored.vector) else "different"


def _identical(one: Vector | None, other: Vector | None) -> bool:
    """Return whether both vectors exist and are equal bit for bit."""
    return one is not None and other is not None and one.tobytes() == np.asarray(other, np.float32).tobytes()
