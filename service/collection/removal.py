"""Removing many notes: by their ids, or all that pass a filter."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from pydantic import TypeAdapter

from service.admission import Urgency
from service.claims import Claims
from service.collection.listing import MAX_IDS
from service.collection.log_order import LogOrderReader
from service.filters import Filter
from service.interfaces import NoteIndex, NoteStore
from service.recommender import WAIT_SECONDS
from service.records import ORIGIN, Attempt, Condition, Remembered

MAX_REMOVED_IDS = 10_000
"""Bound on the ids of one removal, published at GET /limits: as many as a filter may exclude."""
BATCH_SIZE = 500
"""Notes that are removed in one round trip to the store."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Receipt of a removal of many notes, or of a dry run: what the removal would be.

    `ids`: those of the removed notes in the order of their removal; None if there are more than MAX_IDS. `ids_sha256`:
    SHA-256 of all of them in this order, each followed by a line feed. `position`: log position of the last removal,
    None if nothing was removed. `matched_position`: for a filter, the log position up to which notes were tested: of
    the notes written at or before it, none that passed is left after a removal. `missing`: ids without a note.
    `unreadable`: number of known notes that cannot be read, so that no filter can be tested on them.
    """

    dry_run: bool
    count: int
    ids: list[str] | None
    ids_sha256: str
    position: str | None = None
    matched_position: str | None = None
    missing: list[str] = field(default_factory=list)
    unreadable: int = 0


RECEIPT = TypeAdapter(Receipt)


class _Tally:
    """Counts removed notes for a receipt."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self._count = 0
        self._ids: list[str] = []
        self._digest: Any = hashlib.sha256()
        self._position: str | None = None

    def add(self, note_id: str, position: str | None) -> None:
        self._count += 1
        if self._count <= MAX_IDS:
            self._ids.append(note_id)
        self._digest.update(note_id.encode() + b"\n")
        self._position = position

    def receipt(self, dry_run: bool) -> Receipt:
        ids = self._ids if self._count <= MAX_IDS else None
        return Receipt(dry_run, self._count, ids, self._digest.hexdigest(), self._position, missing=self.missing)


class Remover:
    """Removes notes of one tenant: on return a removal is durable, and no search of this replica finds the notes. What
    was removed before a failure or a deadline stays removed; repeating the request removes the rest."""

    def __init__(self, store: NoteStore, index: NoteIndex, claims: Claims) -> None:
        self._store = store
        self._index = index
        self._claims = claims

    async def remove(
        self, what: Sequence[str] | Filter, urgency: Urgency, attempts: Sequence[Attempt] = ()
    ) -> tuple[Receipt, bool]:
        """Remove the notes of these ids, or those that pass a filter. Return the receipt, and whether it is that of an
        earlier attempt. Raises StoreUnavailable, IndexBehind, KeyInUse, KeyReused."""
        async with self._claims.hold(attempts, urgency) as claims:
            if claims and (earlier := claims[0].earlier):
                receipt = RECEIPT.validate_json(earlier.answer)
            else:
                receipt = await (self._remove_matching(what) if isinstance(what, Filter) else self._remove_ids(what))
                if claims:
                    answer = RECEIPT.dump_json(receipt)
                    await self._store.record_final_answer(Remembered(claims[0], answer), receipt.position or ORIGIN)
                log.info("notes_removed", count=receipt.count, position=receipt.position)
            if receipt.position:
                await self._index.wait_for(receipt.position, WAIT_SECONDS)
            return receipt, bool(claims and claims[0].earlier)

    async def dry_run(self, what: Sequence[str] | Filter) -> Receipt:
        """Return the receipt that a removal would have now, without removing anything."""
        tally = _Tally()
        if not isinstance(what, Filter):
            ids = list(dict.fromkeys(what))
            left = iter(ids)
            async for known in self._store.get_in_parts(ids):
                for note in known:
                    note_id = next(left)
                    if note is None:
                        tally.missing.append(note_id)
                    else:
                        tally.add(note_id, None)
            return tally.receipt(dry_run=True)
        # Hashes of 64 bits take less memory than ids. The key of the hash is this process's own, so that nobody can
        # choose ids that collide; with ten million notes, one of 370,000 dry runs has a collision.
        reader, counted = LogOrderReader(self._store, self._index, what), set[int]()
        while not reader.ended:
            for stored in await reader.read(BATCH_SIZE):
                if (id_hash := hash(stored.note.id)) not in counted:  # a note that is rewritten is read again
                    counted.add(id_hash)
                    tally.add(stored.note.id, None)
        return self._with_match(tally.receipt(dry_run=True), reader)

    async def _remove_ids(self, ids: Collection[str]) -> Receipt:
        tally = _Tally()
        for batch in _batches(ids):
            positions = await self._store.delete_all([(note_id, None) for note_id in batch])
            for note_id, position in zip(batch, positions, strict=True):
                if position is None:
                    tally.missing.append(note_id)
                else:
                    tally.add(note_id, position)
        return tally.receipt(dry_run=False)

    async def _remove_matching(self, where: Filter) -> Receipt:
        """Remove the notes that pass the filter until none does. A note is removed only in the version that was tested:
        one that is rewritten in between is read again, and stays if it no longer passes."""
        tally = _Tally()
        reader = LogOrderReader(self._store, self._index, where)
        while not reader.ended:
            notes = await reader.read(BATCH_SIZE)
            conditions = [(stored.note.id, Condition((stored.position,))) for stored in notes]
            positions = await self._store.delete_all(conditions)
            for stored, position in zip(notes, positions, strict=True):
                if position is not None:
                    tally.add(stored.note.id, position)
            if None in positions:
                reader.read_beyond((await self._store.log_bounds()).last)
        await self._store.wait_for_disk()  # includes removals by others meanwhile: no note passes any more
        return self._with_match(tally.receipt(dry_run=False), reader)

    def _with_match(self, receipt: Receipt, reader: LogOrderReader) -> Receipt:
        return replace(receipt, matched_position=reader.cursor, unreadable=len(self._store.unreadable))


def _batches(ids: Collection[str]) -> Iterator[list[str]]:
    """Yield the ids in their order, each once, BATCH_SIZE at a time."""
    distinct = list(dict.fromkeys(ids))
    for begin in range(0, len(distinct), BATCH_SIZE):
        yield distinct[begin : begin + BATCH_SIZE]
