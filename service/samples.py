"""Loading of the sample notes at the first start; they are read and added like any other notes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from service import SAMPLES
from service.adding import Generate
from service.admission import Lane, Urgency
from service.api.schemas.notes import NoteIn
from service.container import Service
from service.errors import IndexBehind, StoreUnavailable
from service.notes_file import NotesFile

BATCH_SIZE = 16
"""Notes that are added together; progress is shown after each batch."""


async def load_samples(service: Service, progress: Callable[[str], None]) -> None:
    """Add the sample notes to a store that never held another note, so that deleted ones do not come back.

    If the process is killed meanwhile, the next start continues with those that are missing, unless other notes were
    written, samples removed, or the log purged or trimmed. While the store is unavailable, nothing is added. Where two
    processes load them at once, a note that is deleted while a batch with it is being added may come back.
    """
    count = service.settings.samples_to_load
    try:
        if count == 0:
            return
        lines = list(islice(NotesFile(SAMPLES).lines(), count))
        notes = [NoteIn.model_validate(line.note).as_note() for line in lines]
        ids = [note.id for note in notes]
        for start in range(0, len(notes), BATCH_SIZE):
            if not await service.store.begin_samples(ids):  # later on: another process has loaded them meanwhile
                return
            progress(f"Adding sample notes (first start only): {start} of {len(notes)}")
            stored = await service.store.get(ids[start : start + BATCH_SIZE])
            missing = [note for note, known in zip(notes[start:], stored, strict=False) if known is None]
            await service.recommender.add(missing, Generate(), Urgency(Lane.BULK))
        await service.store.mark_samples_loaded()
    except (StoreUnavailable, IndexBehind):  # the store may also become unavailable between a write and its index
        progress("The store is unavailable: no further sample notes are added")
