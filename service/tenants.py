"""Tenants of a process: each has a store, an index and snapshots of its own, and none sees another's.

A tenant is opened by the first request of one of its keys, at any replica. The store knows which tenants there are:
each replica opens them when it starts, opens those that others made, and closes those that were removed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from typing import Generic, TypeVar

import structlog

from service.access.principal import DEFAULT_TENANT
from service.container import ReadService
from service.errors import FieldError, InvalidInput, Stopping, StoreUnavailable, TenantOpening, TenantRemoved
from service.interfaces import TenantDirectory
from service.lifecycle import Lifecycle
from service.tasks import cancel_until_done
from service.telemetry import Telemetry

FOLLOW_SECONDS = 1.0
"""How often a replica asks which tenants there are."""
OPEN_SECONDS = 1.0
"""How long a request waits for its tenant to be opened: a small one is, within a few hundredths of a second."""
OPENED_TOGETHER = 4
"""Tenants that are opened at a time at a start, of which each reads its snapshot or its notes."""
log = structlog.get_logger(__name__)

S = TypeVar("S", bound=ReadService)
OpenTenant = Callable[[str, str], AbstractAsyncContextManager[S]]
"""Makes the parts of a tenant, by its name and the identity of its store; the index is started by whoever enters it."""


class Tenant(Generic[S]):
    """One tenant of a process. `identity` is that of its store. `known_at_start`: without it the process is not
    ready."""

    def __init__(self, name: str, identity: str, known_at_start: bool) -> None:
        self.name = name
        self.identity = identity
        self.known_at_start = known_at_start
        self.service: S | None = None
        """Its parts; None before they are made."""
        self.opened: asyncio.Future[S] = asyncio.get_running_loop().create_future()
        """Its parts, once its index is built or waits for a store that is away."""
        self.removed = False
        self.closing = asyncio.Event()
        self.task: asyncio.Task[None]

    def fail(self, error: Exception) -> None:
        """Have those who wait for it to be opened get an error; too late once it was."""
        if not self.opened.done():
            self.opened.set_exception(error)
            self.opened.exception()  # marks it as retrieved: perhaps nobody waits

    @property
    def ready(self) -> bool:
        return self.service is not None and self.service.index.status().ready

    @property
    def detail(self) -> str:
        """Progress of its index, as a text."""
        return self.service.index.status().detail if self.service else "not begun yet"


class Tenants(Generic[S]):
    """The tenants that are open. `open_tenant` makes the parts of one; `forget` is called with the identities of all
    tenants that there are, once at the start, to remove what is left of others on this machine's disk."""

    def __init__(
        self,
        directory: TenantDirectory,
        open_tenant: OpenTenant[S],
        telemetry: Telemetry,
        forget: Callable[[Mapping[str, str]], None] = lambda identities: None,
    ) -> None:
        self._directory = directory
        self._open_tenant = open_tenant
        self._telemetry = telemetry
        self._forget = forget
        self._tenants: dict[str, Tenant[S]] = {}
        """In the order in which they were opened."""
        self._listed = False
        """Whether the tenants that there were at the start have been seen."""
        self._lost = ""
        self._stopped = False
        self._following: asyncio.Task[None] | None = None

    async def start(self, lifecycle: Lifecycle) -> None:
        """Open the default tenant and all that the store knows. Raises what fails at opening the default one. Where the
        store is away, the others are opened once it is back."""
        default = self._begin(DEFAULT_TENANT, "", known_at_start=True)
        lifecycle.report("Building the index from the store", lambda: default.detail)
        await asyncio.shield(default.opened)
        with contextlib.suppress(StoreUnavailable):
            identities = await self._list()
            lifecycle.report("Opening tenants", lambda: f"{self.count_ready()} of {len(identities) + 1} are ready")
            turns = asyncio.Semaphore(OPENED_TOGETHER)
            await asyncio.gather(*(self._open_in_turn(turns, *entry) for entry in identities.items()))
        self._following = asyncio.create_task(self._follow(), name="follow-tenants")

    async def stop(self) -> None:
        """Close all tenants, the last first."""
        self._stopped = True
        await cancel_until_done(self._following)
        for tenant in reversed(list(self._tenants.values())):
            await self._close(tenant)

    async def get(self, name: str) -> S:
        """Return the parts of a tenant, which is made where there is none. Raises TooManyTenants, TenantRemoved,
        StoreUnavailable, and TenantOpening where opening it takes longer than OPEN_SECONDS."""
        tenant = self._tenants.get(name)
        if tenant and tenant.removed:
            tenant = await self._wait_until_closed(tenant)
        if tenant is None:
            identity = await self._directory.open(name)
            tenant = self._tenants.get(name) or self._begin(name, identity)
        if not tenant.opened.done():
            await asyncio.wait([tenant.opened], timeout=OPEN_SECONDS)
            if not tenant.opened.done():
                raise TenantOpening(tenant.detail)
        return tenant.opened.result()

    def find(self, name: str) -> S | None:
        """Return the parts of a tenant if it is open, and not being closed because it was removed."""
        tenant = self._tenants.get(name)
        return tenant.service if tenant and not tenant.removed else None

    async def remove(self, name: str) -> None:
        """Remove a tenant and all that belongs to it: durably from the store, and from this process and its disk. Other
        replicas close it within FOLLOW_SECONDS. Raises InvalidInput for the default one, and TenantNotFound."""
        if name == DEFAULT_TENANT:
            raise InvalidInput([FieldError("/name", "cannot be that of the default tenant, which is always there")])
        await self._directory.remove(name)
        if tenant := self._tenants.get(name):
            await self._close(tenant, removed=True)

    def __len__(self) -> int:
        return len(self._tenants)

    def __iter__(self) -> Iterator[Tenant[S]]:
        return iter(list(self._tenants.values()))

    @property
    def default(self) -> S:
        """The default tenant, which is open whenever requests are served."""
        return self._tenants[DEFAULT_TENANT].opened.result()

    @property
    def services(self) -> list[S]:
        """The parts of all tenants, also of those whose index is not built yet."""
        return [tenant.service for tenant in self._tenants.values() if tenant.service]

    @property
    def lost(self) -> str:
        """Acknowledged writes that the store has lost, as far as this process can tell, as a text; empty for none."""
        return next((lost for service in self.services if (lost := service.index.status().lost)), self._lost)

    @property
    def ready(self) -> bool:
        """Whether the indexes of all tenants that were known at the start follow the store."""
        return all(tenant.ready for tenant in self._tenants.values() if tenant.known_at_start)

    def count_ready(self) -> int:
        """Return how many tenants' indexes follow the store."""
        return sum(tenant.ready for tenant in self._tenants.values())

    def _begin(self, name: str, identity: str, known_at_start: bool = False) -> Tenant[S]:
        """Begin to open a tenant, in a task of its own with a context of its own: what runs for a tenant outlives the
        request that opened it, and its log lines name the tenant."""
        tenant = self._tenants[name] = Tenant(name, identity, known_at_start)
        context = Context()
        context.run(structlog.contextvars.bind_contextvars, tenant=name)
        tenant.task = asyncio.get_running_loop().create_task(self._run(tenant), name=f"tenant-{name}", context=context)
        return tenant

    async def _run(self, tenant: Tenant[S]) -> None:
        """Open a tenant, and close it when that is asked for."""
        try:
            async with self._open_tenant(tenant.name, tenant.identity) as service:
                tenant.service = service
                self._telemetry.add_tenant(tenant.name, lambda: service.index.status().vectors)
                try:
                    await service.index.start()
                    tenant.opened.set_result(service)
                    await tenant.closing.wait()
                except TenantRemoved:
                    tenant.removed = True
                finally:
                    if tenant.removed:
                        await service.index.discard()
        except Exception as error:
            log.exception("tenant_failed")
            tenant.fail(error)
        finally:
            tenant.fail(TenantRemoved() if tenant.removed else Stopping())
            if self._tenants.get(tenant.name) is tenant:
                del self._tenants[tenant.name]
                self._telemetry.forget_tenant(tenant.name)

    async def _open_in_turn(self, turns: asyncio.Semaphore, name: str, identity: str) -> None:
        """Open one of the tenants that were known at the start. A failure is logged; its next request tries again."""
        async with turns:
            tenant = self._tenants.get(name) or self._begin(name, identity, known_at_start=True)
            await asyncio.wait([tenant.opened])

    async def _wait_until_closed(self, tenant: Tenant[S]) -> Tenant[S] | None:
        """Wait until a removed tenant is closed, and return the one that is open under its name by then, if any: a
        write to the removed one would end with its log. Raises TenantOpening after OPEN_SECONDS."""
        await asyncio.wait([tenant.task], timeout=OPEN_SECONDS)
        if not tenant.task.done():
            raise TenantOpening("the removed tenant of this name is being closed")
        return self._tenants.get(tenant.name)

    async def _close(self, tenant: Tenant[S], *, removed: bool = False) -> None:
        """Close a tenant; one that is being opened is broken off."""
        tenant.removed |= removed  # it may be closed while it is being removed
        tenant.closing.set()
        while not tenant.task.done():
            if not tenant.opened.done():  # the Redis client may swallow a cancellation
                tenant.task.cancel()
            await asyncio.wait([tenant.task], timeout=0.1)

    async def _list(self) -> dict[str, str]:
        """Return the identities of the tenants that there are. The first time, finish removals that a kill has broken
        off, and remove what is left of other tenants here."""
        known = await self._directory.known()
        identities = {name: identity for name, identity in known.items() if identity is not None}
        if not self._listed:
            for name in known.keys() - identities.keys():
                await self._directory.finish_removal(name)
            await asyncio.to_thread(self._forget, identities)
            self._listed = True
        return identities

    async def _follow(self) -> None:
        """Open and close what other replicas made and removed, until cancelled."""
        while not self._stopped:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                await self._follow_once()
            except StoreUnavailable:
                continue
            except Exception:
                log.exception("tenants_failed", detail="tried again in a second")

    async def _follow_once(self) -> None:
        first, open_before = not self._listed, list(self)
        identities = await self._list()
        for tenant in open_before:
            if tenant.name != DEFAULT_TENANT and identities.get(tenant.name) != tenant.identity:
                await self._close_gone(tenant)
        for name, identity in identities.items():
            if name not in self._tenants and not self._stopped:
                self._begin(name, identity, known_at_start=first)

    async def _close_gone(self, tenant: Tenant[S]) -> None:
        """Close a tenant that the store does not have any more, or has anew."""
        known = await self._directory.known()
        if tenant.name not in known and not await self._directory.was_removed(tenant.name):
            self._lost = "a tenant is gone, and nobody removed it: the store was emptied or exchanged"
            log.error("store_lost_writes", tenant=tenant.name, detail=self._lost)
        else:
            log.info("tenant_gone", tenant=tenant.name, detail="it was removed, or made anew")
        await self._close(tenant, removed=True)
