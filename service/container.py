"""The components that serve one tenant in one process; wiring.py builds them."""

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
from service.generator import Generator
from service.interfaces import Clock, Engine, NoteIndex, NoteStore
from service.recommender import Recommender
from service.search.nearest import NearestNotes
from service.search.search import NoteSearch
from service.settings import Settings
from service.store_probe import StoreProbe
from service.telemetry import Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadService:
    """Components that answer reads of one tenant's notes; a reader process (docs/decisions/0032-readers.md) has only
    these. `model`: name of the model that computed the vectors."""

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
    """All components that serve one tenant. Settings, engine, batcher, telemetry and clock are shared by all tenants of
    a process; the rest is the tenant's own. `exports` limits exports of notes and of reads, which share a bound;
    `reader_exports` exports of the events of one user or session, `event_bodies` bodies of events as NDJSON, `erasures`
    erasures of users' events."""

    engine: Engine
    generator: Generator
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
    """Checks that the store answers and that it keeps acknowledged writes."""
    verifying: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by a comparison of index and store, so that only one runs at a time."""
