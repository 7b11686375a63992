"""Whether the index has what the store has, both ways and vector for vector; and setting right what differs.

A deployment is compared while it works: what looks wrong is looked at again once the index has come to where the log
was, so that what was only on its way is not reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from service.interfaces import Clock, NoteIndex, NoteStore
from service.records import StoredNote, Unreadable, Vector

WAIT_SECONDS = 30.0
AT_ONCE = 500
LOOKS = 3
"""At what looks wrong: of a note that is being written one look may meet the half of it."""


Kind = Literal["missing", "different", "stale", "duplicate", "broken", "unreadable"]
KINDS: Mapping[Kind, str] = {
    "missing": "in the store and not in the index",
    "different": "of another vector there",
    "stale": "in the index and not in the store, or there of another model",
    "duplicate": "twice in the index",
    "broken": "the stored vector is none, so that only writing the note again helps",
    "unreadable": "in the store in a form that cannot be read, so that only writing or deleting the note helps",
}
BEYOND_REPAIR: frozenset[Kind] = frozenset({"broken", "unreadable"})
"""What the index cannot mend: the store has nothing better."""


@dataclass(frozen=True, slots=True)
class Report:
    """`differing`: ids by kind, sorted. `other_space`: notes of another model, which the index is not to have.
    `repaired`: whether all but what is beyond repair was set right."""

    notes: int
    rows: int
    other_space: int
    differing: Mapping[Kind, tuple[str, ...]]
    repaired: bool = False

    @property
    def repairable(self) -> tuple[str, ...]:
        """Those that the index can be given anew."""
        return tuple(sorted({i for kind, ids in self.differing.items() if kind not in BEYOND_REPAIR for i in ids}))

    @property
    def well(self) -> bool:
        lost = any(self.differing[kind] for kind in BEYOND_REPAIR)
        return not lost and (self.repaired or not self.repairable)


async def verify(store: NoteStore, index: NoteIndex, space: str, clock: Clock, *, repair: bool) -> Report:
    """Compare all of the store with all of the index. Raises StoreUnavailable, IndexBehind."""
    seen, suspects, others = set[str](), set[str](), 0
    async for notes in store.scan():
        whole = [stored for stored in notes if isinstance(stored, StoredNote)]
        unreadable = {note.id for note in notes if isinstance(note, Unreadable)}
        seen.update(unreadable, (stored.note.id for stored in whole))
        suspects |= unreadable
        others += sum(stored.space != space for stored in whole)
        suspects |= await _unlike(index, [stored for stored in whole if stored.space == space], clock())
    rows = Counter(await index.ids())
    suspects |= rows.keys() - seen | {note_id for note_id, count in rows.items() if count > 1}
    for _ in range(LOOKS):
        await index.wait_for((await store.log_bounds()).last, WAIT_SECONDS)
        await index.expire()
        report = await _look_again(store, index, space, sorted(suspects), len(seen), others)
        suspects = {note_id for ids in report.differing.values() for note_id in ids}
        if not suspects:
            break
    if repair and report.repairable:
        await index.resync(report.repairable)
        again = await _look_again(store, index, space, report.repairable, len(seen), others)
        report = replace(report, rows=again.rows, repaired=not again.repairable)
    return report


async def _unlike(index: NoteIndex, notes: Sequence[StoredNote], now: float) -> set[str]:
    """Of which the index has not the stored vector."""
    vectors = await index.vectors([stored.note.id for stored in notes])
    return {
        stored.note.id
        for stored, vector in zip(notes, vectors, strict=True)
        if not stored.expired(now) and (vector is None or not _same(vector, stored.vector))
    }


async def _look_again(
    store: NoteStore, index: NoteIndex, space: str, ids: Sequence[str], notes: int, others: int
) -> Report:
    """The report on these ids."""
    rows = Counter(await index.ids())
    differing: dict[Kind, list[str]] = {kind: [] for kind in KINDS}
    for begin in range(0, len(ids), AT_ONCE):
        some = ids[begin : begin + AT_ONCE]
        stored = await store.get(some, with_vectors=True)
        for note_id, note, vector in zip(some, stored, await index.vectors(some), strict=True):
            if kind := _kind(note, vector, space):
                differing[kind].append(note_id)
            if rows[note_id] > 1:
                differing["duplicate"].append(note_id)
    return Report(notes, rows.total(), others, {kind: tuple(its) for kind, its in differing.items()})


def _kind(stored: StoredNote | Unreadable | None, vector: Vector | None, space: str) -> Kind | None:
    """What is wrong, if anything is."""
    if isinstance(stored, Unreadable):
        return "unreadable"
    if stored is None or stored.space != space:
        return None if vector is None else "stale"
    if stored.vector is None or not np.isfinite(stored.vector).all():
        return "broken"
    if vector is None:
        return "missing"
    return None if _same(vector, stored.vector) else "different"


def _same(one: Vector, other: Vector | None) -> bool:
    """Bit for bit."""
    return other is not None and one.tobytes() == np.asarray(other, np.float32).tobytes()
