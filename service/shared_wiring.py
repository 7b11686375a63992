"""Wiring that is common to the process with the model and its readers."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from pydantic import SecretStr

from service.access.gate import Gate
from service.api.rendered import render_item
from service.index.snapshot_files import DEFAULT_PARENT, TENANTS
from service.interfaces import Clock, NoteIndex, NoteStore
from service.search.freshness import Freshness
from service.search.item_cache import ItemCache, RenderedItem
from service.search.nearest import NearestNotes
from service.search.neighbour_cache import NeighbourCache, NeighbourList, RecentChanges
from service.search.shared_lru import SharedLru
from service.settings import Settings
from service.store.api_keys import RedisKeyStore
from service.store.connection import MAX_CONNECTIONS, Connection, ServerState
from service.store.known_position import KnownPosition, KnownPositions
from service.store.quotas import RedisQuotaStore
from service.store.redis_keys import RedisKeys
from service.store.redis_store import RedisNoteStore
from service.store.tenants import RedisTenants
from service.telemetry import Telemetry

ACCESS_CONNECTIONS = 16
"""Connections of one process to Redis for API keys and quotas."""
TENANT_CONNECTIONS = 8
"""Connections of one process to Redis for each tenant but the default one: limits the open files for a hundred
tenants."""


class SharedParts:
    """Components that all tenants of a process share. `url`: address of the store. `items` and `neighbours`: caches of
    rendered notes and of lists of nearest notes; the service and each reader process get an equal share of the memory
    for them. `known`: the known positions of the data folder; None if processes on other machines may write to the
    store."""

    def __init__(
        self, settings: Settings, url: SecretStr, telemetry: Telemetry, gate: Gate, known: KnownPositions | None
    ) -> None:
        self.settings = settings
        self.url = url
        self.telemetry = telemetry
        self.clock = gate.clock
        self.server = ServerState()
        self.known = known
        processes = settings.readers + 1
        self.items = items = SharedLru[RenderedItem](settings.item_cache_bytes // processes)
        self.neighbours = neighbours = SharedLru[NeighbourList | RecentChanges](
            settings.neighbour_cache_bytes // processes
        )
        self._gate = gate
        telemetry.item_bytes.set_function(lambda: items.used)
        telemetry.neighbour_list_bytes.set_function(lambda: neighbours.used)

    async def open_gate(self, stack: AsyncExitStack) -> Connection:
        """Open the gate with the keys and quotas of the store, until the stack exits, and return the connection to the
        store."""
        connection = Connection(
            self.url.get_secret_value(),
            on_error=self.telemetry.store_errors.inc,
            max_connections=ACCESS_CONNECTIONS,
            server=self.server,
        )
        stack.push_async_callback(connection.close)
        await self._gate.open(RedisKeyStore(connection), RedisQuotaStore(connection))
        stack.push_async_callback(self._gate.close)
        return connection

    def open_directory(self, connection: Connection) -> RedisTenants:
        """Return the store's directory of tenants."""
        return RedisTenants(
            connection, self.settings.max_tenants, self.known.invalidate_for_good if self.known else None
        )

    def open_store(
        self,
        stack: AsyncExitStack,
        name: str,
        identity: str,
        space: str,
        dimension: int,
        known: KnownPosition | None,
    ) -> RedisNoteStore:
        """Open the store of a tenant, until the stack exits. `dimension`: that of vectors in the given space; `known`:
        the known position of the tenant's log."""
        store = RedisNoteStore(
            self.url.get_secret_value(),
            clock=self.clock,
            dimensions={space: dimension},
            on_error=self.telemetry.store_errors.inc,
            keys=RedisKeys(name),
            identity=identity,
            max_connections=TENANT_CONNECTIONS if identity else MAX_CONNECTIONS,
            server=self.server,
            log_seconds=self.settings.log_seconds,
            known=known,
        )
        stack.push_async_callback(store.close)
        return store

    def make_nearest(
        self, stack: AsyncExitStack, store: NoteStore, index: NoteIndex, *, in_reader_process: bool = False
    ) -> NearestNotes:
        """Build the short path of a tenant's reads, whose cache entries are dropped when the stack exits."""
        items = ItemCache(store, render_item, self.items, self.telemetry)
        index.on_change(items.apply)
        stack.callback(items.apply, None)
        neighbours = NeighbourCache(index, self.neighbours, self.telemetry)
        stack.callback(neighbours.apply, None)
        return NearestNotes(
            index, Freshness(store, index), neighbours, items, self.clock, in_reader_process=in_reader_process
        )


def make_gate(settings: Settings, telemetry: Telemetry) -> Gate:
    """Build the gate of a process; it has no keys before it is opened."""
    hosts = (settings.host, *settings.allowed_hosts)
    return Gate(settings.bootstrap, Clock(), telemetry, hosts, settings.cors_origins)


def snapshot_folder(settings: Settings, name: str, identity: str) -> Path:
    """Return the folder for the snapshots of a tenant's index. A tenant that is created anew under its old name has
    another one."""
    return settings.data_dir / TENANTS / f"{name}-{identity}" if identity else settings.data_dir / DEFAULT_PARENT
