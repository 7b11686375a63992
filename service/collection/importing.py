"""Import of exported notes; vectors are kept if they are from the model that serves here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.generation import Usage
from model.note import Note
from service.adding import GENERATED_HASHTAGS, Generate
from service.admission import Urgency
from service.errors import FieldError, InvalidInput
from service.interfaces import Clock, NoteStore
from service.recommender import WAIT_SECONDS, Recommender
from service.records import Condition, Generated, StoredNote, Vector, Write, position_key
from service.replay import written_status

UNIT_TOLERANCE = 1e-3
"""Bound on the difference between a vector's length and 1: vectors are rounded to 32 bits."""
NEW = Condition(negated=True)
"""Condition that no note has the id."""


@dataclass(frozen=True, slots=True)
class NoteToImport:
    """A note with an id, its generated fields and vector, and the space of the model that made them; `vector` is None
    if it is not known."""

    note: Note
    generated: Generated
    space: str
    vector: Vector | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of the import of a note. `status`: created, updated, unchanged, exists, or expired. `read`: whether the
    model read the note; None if nothing was done."""

    id: str
    status: str
    read: bool | None = None


class Importer:
    """Adds exported notes to one tenant."""

    def __init__(self, recommender: Recommender, store: NoteStore, clock: Clock) -> None:
        self._recommender = recommender
        self._store = store
        self._clock = clock

    def check(self, note: NoteToImport) -> None:
        """Check the vector of a note, if the import would keep it. Raises InvalidInput."""
        if not self._keeps_vector(note):
            return
        vector, dimension = note.vector, self._recommender.generator.engine.dimension
        if vector is None or vector.shape != (dimension,):
            raise InvalidInput([FieldError("/vector", f"must have {dimension} numbers, the dimension of its space")])
        if not np.isfinite(vector).all() or abs(float(np.linalg.norm(vector)) - 1) > UNIT_TOLERANCE:
            raise InvalidInput([FieldError("/vector", "must be finite and have the Euclidean norm 1")])

    async def add(self, notes: Sequence[NoteToImport], replaces: bool, urgency: Urgency) -> list[Outcome]:
        """Add notes with distinct ids, which must have passed `check`. On return they are durable and searchable at
        this replica. `replaces`: whether to replace notes that exist. Raises QueueFull, EngineFailed, StoreUnavailable,
        IndexBehind."""
        outcomes: dict[str, Outcome] = {}
        to_write: list[StoredNote] = []
        to_read: list[NoteToImport] = []
        unchanged: list[str] = []
        left = iter(notes)
        async for known in self._store.get_in_parts([note.note.id for note in notes], with_vectors=True):
            for old in known:
                note = next(left)
                arrived = replace(note, note=self._recommender.with_arrival(note.note, old))
                if note.note.expired(self._clock()):
                    outcomes[note.note.id] = Outcome(note.note.id, "expired")
                elif old is not None and not replaces:
                    outcomes[note.note.id] = Outcome(note.note.id, "exists")
                elif not self._keeps_vector(note):
                    to_read.append(note)
                elif isinstance(old, StoredNote) and _is_same(arrived, old):
                    outcomes[note.note.id] = Outcome(note.note.id, "unchanged", read=False)
                    unchanged.append(old.position)
                else:
                    to_write.append(StoredNote(arrived.note, note.space, note.vector, note.generated))
        condition = None if replaces else NEW
        written = await self._write(to_write, condition) + await self._read(to_read, condition, urgency)
        outcomes |= {outcome.id: outcome for outcome in written}
        if not written:
            await self._store.wait_for_disk()
        await self._recommender.wait_for(unchanged)
        return [outcomes[note.note.id] for note in notes]

    def _keeps_vector(self, note: NoteToImport) -> bool:
        return note.vector is not None and note.space == self._recommender.generator.engine.space

    async def _write(self, notes: Sequence[StoredNote], condition: Condition | None) -> list[Outcome]:
        """Write notes with their imported vectors."""
        written = await self._store.put([Write(note, condition) for note in notes])
        if positions := [write.position for write in written if write]:
            await self._recommender.index.wait_for(max(positions, key=position_key), WAIT_SECONDS)
        return [
            Outcome(note.note.id, written_status(write.revision), read=False)
            if write
            else Outcome(note.note.id, "exists")
            for note, write in zip(notes, written, strict=True)
        ]

    async def _read(
        self, notes: Sequence[NoteToImport], condition: Condition | None, urgency: Urgency
    ) -> list[Outcome]:
        """Have the model read notes, except for those that are stored with the same text, and regenerate the fields
        that were generated."""
        to_put = [(note.note, _generations(note.generated)) for note in notes]
        added = await self._recommender.put_each(to_put, condition, urgency)
        return [
            Outcome(note.note.id, one.status, read=one.usage != Usage()) if one else Outcome(note.note.id, "exists")
            for note, one in zip(notes, added, strict=True)
        ]


def _generations(generated: Generated) -> Generate:
    """Return the fields to regenerate for a note that the model reads again."""
    return Generate(GENERATED_HASHTAGS if generated.hashtags else 0, generated.category is not None)


def _is_same(note: NoteToImport, old: StoredNote) -> bool:
    """Return whether a note is stored as it would be imported."""
    same = _rounded(note.note).is_same(_rounded(old.note))
    same = same and (note.space, note.generated) == (old.space, old.generated)
    return same and old.vector is not None and note.vector is not None and np.array_equal(old.vector, note.vector)


def _rounded(note: Note) -> Note:
    """Return a note with its times in microseconds, as an export writes them."""
    created, expires = note.created_at, note.expires_at
    return replace(
        note,
        created_at=None if created is None else round(created, 6),
        expires_at=None if expires is None else round(expires, 6),
    )
