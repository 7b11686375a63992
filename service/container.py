"""The running parts of one process, as one tenant has them; wiring.py puts them together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from service.access.principal import DEFAULT_TENANT
from service.batcher import Batcher
from service.behaviour.live import LiveBehaviour
from service.collection.change_feed import ChangeFeed
from service.collection.importing import Importer
from service.collection.removal import Remover
from service.concurrency import ConcurrencyLimit
from service.interfaces import Clock, NoteIndex, NoteStore
from service.recommender import Recommender
from service.search.nearest import NearestNotes
from service.search.search import NoteSearch
from service.settings import Settings
from service.store_probe import StoreProbe
from service.telemetry import Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadService:
    """The parts that answer reads of one tenant's notes; a reader (decision 32) has these alone. `model`: name of the
    model that made the vectors."""

    settings: Settings
    model: str
    nearest: NearestNotes
    store: NoteStore
    index: NoteIndex
    telemetry: Telemetry
    clock: Clock
    tenant: str = DEFAULT_TENANT


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(ReadService):
    """The service as one tenant has it. All tenants of a process share settings, engine, batcher, telemetry and clock;
    the rest is its own. `exports` limits exports of notes and of reads, which share a bound; `reader_exports` those of
    the events of one reader, `event_bodies` bodies of events as NDJSON, `erasures` erasures of users' events."""

    recommender: Recommender
    search: NoteSearch
    remover: Remover
    importer: Importer
    changes: ChangeFeed
    exports: ConcurrencyLimit
    reader_exports: ConcurrencyLimit
    event_bodies: ConcurrencyLimit
    erasures: ConcurrencyLimit
    batcher: Batcher
    behaviour: LiveBehaviour
    store_probe: StoreProbe
    """Whether the store answers, and keeps acknowledged writes."""
    verifying: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by a comparison of index and store, so that only one runs at a time."""
