"""ItemCache: notes as items of answers, each rendered once and kept in memory until the log says that it changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from service.interfaces import NoteStore
from service.read_time import ReadTime
from service.records import ChangedNotes, StoredNote
from service.search.shared_lru import SharedLru
from service.telemetry import Telemetry

MAX_RENDERED = 64
"""Maximum number of notes that are rendered again when they change together; the items of more notes are only
dropped."""
ITEM_OVERHEAD_BYTES = 400
"""Approximate size of the Python objects around a cached item."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RenderedItem:
    """A note as an item of an answer, rendered by the API layer: the bytes before and after its score and position,
    which differ from answer to answer. `expires_at`: when the note expires, in seconds since the epoch; None for
    never."""

    before: bytes
    after: bytes
    expires_at: float | None

    @property
    def size(self) -> int:
        """Approximate bytes of memory."""
        return len(self.before) + len(self.after) + ITEM_OVERHEAD_BYTES


class ItemCache:
    """Items of one tenant's notes, made by `render` and kept in `items`.

    `apply` must be called with every change before a read may trust the cache (Freshness).
    """

    def __init__(
        self,
        store: NoteStore,
        render: Callable[[StoredNote], RenderedItem],
        items: SharedLru[RenderedItem],
        telemetry: Telemetry,
    ) -> None:
        self._store = store
        self._render = render
        self._items = items
        self._owner = items.new_owner()
        self._changes = 0
        """Number of calls of `apply`: a note that was read before a call is not cached after it."""
        self._from_memory = telemetry.items.labels("memory")
        self._from_store = telemetry.items.labels("store")

    async def get(self, ids: Sequence[str], time_left: ReadTime) -> list[RenderedItem | None]:
        """Return the items of some notes; None for one that does not exist, has expired or cannot be read. Raises
        StoreUnavailable."""
        items = self._kept(ids)
        unread = [note_id for note_id, item in zip(ids, items, strict=True) if item is None]
        self._from_memory.inc(len(ids) - len(unread))
        if not unread:
            return items
        self._from_store.inc(len(unread))
        changes = self._changes
        notes = await time_left.wait(self._store.get(unread))
        read = {note.note.id: self._render(note) for note in notes if isinstance(note, StoredNote)}
        if changes == self._changes:
            for note_id, item in read.items():
                self._items.put(self._owner, note_id, item, item.size)
        return [item or read.get(note_id) for note_id, item in zip(ids, items, strict=True)]

    def get_nowait(self, ids: Sequence[str]) -> list[RenderedItem] | None:
        """Return the items of some notes where all are cached; None otherwise."""
        items = [item for item in self._kept(ids) if item]
        if len(items) < len(ids):
            return None
        self._from_memory.inc(len(ids))
        return items

    def _kept(self, ids: Sequence[str]) -> list[RenderedItem | None]:
        return [self._items.get(self._owner, note_id) for note_id in ids]

    def apply(self, notes: ChangedNotes | None) -> None:
        """Replace the items of changed notes; None: drop all items. Items of more than MAX_RENDERED notes at a time, as
        in a bulk load, are only dropped: most would be evicted before they are read."""
        self._changes += 1
        if notes is None:
            self._items.drop_all(self._owner)
            return
        for note_id in notes:
            self._items.drop(self._owner, note_id)
        if len(notes) <= MAX_RENDERED:
            for note_id, note in notes.items():
                if isinstance(note, StoredNote):
                    self._keep_rendered(note_id, note)

    def _keep_rendered(self, note_id: str, note: StoredNote) -> None:
        try:
            item = self._render(note)
        except ValueError as error:  # it fails again when requested; the index must go on
            log.error("item_not_rendered", id=note_id, reason=type(error).__name__)
        else:
            self._items.put(self._owner, note_id, item, item.size)
