"""The running parts of one process; wiring.py puts them together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from service.batcher import Batcher
from service.interfaces import Clock, NoteIndex, NoteStore
from service.recommender import Recommender
from service.settings import Settings
from service.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Service:
    """The running parts of one process; wiring.py puts them together."""

    settings: Settings
    recommender: Recommender
    batcher: Batcher
    store: NoteStore
    index: NoteIndex
    telemetry: Telemetry
    clock: Clock
    verifying: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by a comparison of index and store, so that only one runs at a time."""

    @property
    def works(self) -> bool:
        """Whether the index follows the store, which it does not while the store is away, and the engine moves."""
        return self.index.status().ready and not self.batcher.is_stuck
