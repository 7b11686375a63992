"""Loading of the sample notes at the first start; they are read and added like any other notes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from service import SAMPLES
from service.adding import Generate
from service.admission import Lane, Urgency
from service.api.schemas.notes import NoteIn
from service.container import Service
from service.errors import StoreUnavailable
from service.notes_file import NotesFile

BATCH_SIZE = 16
"""Notes that are added together; progress is shown after each batch."""


async def load_samples(service: Service, progress: Callable[[str], None]) -> None:
    """Add the sample notes to a store that never held a note, so that deleted ones do not come back.

    If the process is killed meanwhile, the next start continues. While the store is away, nothing is added. Where two
    processes load them at once, a note that is deleted while a batch with it is being added may come back.
    """
    count = service.settings.samples_wanted
    try:
        if count == 0 or not await service.store.begin_samples():
            return
        lines = list(islice(NotesFile(SAMPLES).lines(), count))
        notes = [NoteIn.model_validate(line.note).as_note() for line in lines]
        for start in range(0, len(notes), BATCH_SIZE):
            if start and not await service.store.begin_samples():  # another process has loaded them meanwhile
                return
            progress(f"Adding sample notes (first start only): {start} of {len(notes)}")
            await service.recommender.add(notes[start : start + BATCH_SIZE], Generate(), Urgency(Lane.BULK))
        await service.store.mark_samples_loaded()
    except StoreUnavailable:
        progress("The store is unavailable: no sample notes are added")
