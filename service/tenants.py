"""Tenants of a process: each has a store, an index and snapshots of its own, and none sees another's.

A tenant is created by the first request with one of its keys, at any replica. The store has the list of tenants: each
replica opens all of them when it starts, later opens those that other replicas created, and closes those that were
removed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
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
"""Time between two reads of the list of tenants by a replica."""
OPEN_SECONDS = 1.0
"""Maximum wait of a request for its tenant to be opened; a small tenant takes a few hundredths of a second."""
MAX_OPENING = 4
"""Tenants that are opened at a time without a request for them: each reads its snapshot or its notes."""
RETRY_SECONDS = (1.0, 60.0)
"""First and longest back-off before the next attempt at opening a tenant."""
log = structlog.get_logger(__name__)

S = TypeVar("S", bound=ReadService)
OpenTenant = Callable[[str, str], AbstractAsyncContextManager[S]]
"""Builds the components of a tenant from its name and the identity of its store; the caller starts the index."""


class Tenant(Generic[S]):
    """One tenant of a process. `identity`: that of its store. `known_at_start`: the process is not ready until this
    tenant is open or has failed to open."""

    def __init__(self, name: str, identity: str, known_at_start: bool) -> None:
        self.name = name
        self.identity = identity
        self.known_at_start = known_at_start
        self.service: S | None = None
        """Components of the tenant; None before they are built."""
        self.opened: asyncio.Future[S] = asyncio.get_running_loop().create_future()
        """Result of the current attempt at opening it: its components, once its index is built or waits for a store
        that is unavailable."""
        self.retry_seconds = 0.0
        """Back-off after the last attempt at opening it, if that failed; else 0."""
        self.removed = False
        self.requested = asyncio.Event()
        """Set once a request needs this tenant, which is then opened without waiting for a slot."""
        self.closing = asyncio.Event()
        self.task: asyncio.Task[None]

    def fail(self, error: Exception) -> None:
        """Raise an error for the callers that wait for it to be opened; no effect once it is open."""
        if not self.opened.done():
            self.opened.set_exception(error)
            self.opened.exception()  # marks it as retrieved: perhaps nobody waits

    @property
    def failed(self) -> bool:
        """Whether the last attempt at opening it failed."""
        return self.retry_seconds > 0

    @property
    def ready(self) -> bool:
        return self.service is not None and self.service.index.status().ready

    @property
    def detail(self) -> str:
        """Progress of its index, as a text."""
        if self.failed:
            return f"it could not be opened; the next attempt is {self.retry_seconds:g} s after the last one"
        return self.service.index.status().detail if self.service else "opening has not started yet"


class Tenants(Generic[S]):
    """The tenants that are open, are being opened, or could not be opened. `open_tenant` builds the components of one.

    `remove_leftovers` is called once, at the start, with the identities of all existing tenants: it removes the files
    of any other tenant from this machine's disk. `discard` is called with the name and the identity of a removed tenant
    once it is closed.
    """

    def __init__(
        self,
        directory: TenantDirectory,
        open_tenant: OpenTenant[S],
        telemetry: Telemetry,
        remove_leftovers: Callable[[Mapping[str, str]], None] = lambda identities: None,
        discard: Callable[[str, str], None] = lambda name, identity: None,
    ) -> None:
        self._directory = directory
        self._open_tenant = open_tenant
        self._telemetry = telemetry
        self._remove_leftovers = remove_leftovers
        self._discard = discard
        self._slots = asyncio.Semaphore(MAX_OPENING)
        self._tenants: dict[str, Tenant[S]] = {}
        """By name, in the order in which they were opened."""
        self._listed = False
        """Whether the list of tenants was read once."""
        self._lost = ""
        self._stopped = False
        self._following: asyncio.Task[None] | None = None

    async def start(self, lifecycle: Lifecycle) -> None:
        """Open the default tenant and all others that the store lists. Raises the error with which opening the default
        one fails. If the store is unavailable, the others are opened once it is back."""
        default = self._begin(DEFAULT_TENANT, "", known_at_start=True)
        lifecycle.report("Building the index from the store", lambda: default.detail)
        await asyncio.shield(default.opened)
        with contextlib.suppress(StoreUnavailable):
            identities = await self._list()
            lifecycle.report("Opening tenants", lambda: f"{self.count_ready()} of {len(identities) + 1} are ready")
            if opening := self._begin_all(identities, known_at_start=True):
                await asyncio.wait([tenant.opened for tenant in opening])
        self._following = asyncio.create_task(self._follow(), name="follow-tenants")

    async def stop(self) -> None:
        """Close all tenants, in reverse order."""
        self._stopped = True
        await cancel_until_done(self._following)
        for tenant in reversed(list(self._tenants.values())):
            await self._close(tenant)

    async def get(self, name: str) -> S:
        """Return the components of a tenant, which is created if it does not exist. Raises TooManyTenants,
        TenantRemoved, StoreUnavailable, and TenantOpening if opening it fails or takes longer than OPEN_SECONDS."""
        tenant = self._tenants.get(name)
        if tenant and tenant.removed:
            tenant = await self._wait_until_closed(tenant)
        if tenant is None:
            identity = await self._directory.open(name)
            tenant = self._tenants.get(name) or self._begin(name, identity)
        tenant.requested.set()
        opened = tenant.opened
        if not opened.done():
            await asyncio.wait([opened], timeout=OPEN_SECONDS)
            if not opened.done():
                raise TenantOpening(tenant.detail)
        return opened.result()

    def find(self, name: str) -> S | None:
        """Return the components of a tenant; None if they are not built, or it was removed."""
        tenant = self._tenants.get(name)
        return tenant.service if tenant and not tenant.removed else None

    async def remove(self, name: str) -> None:
        """Remove a tenant and all its data: durably from the store, and from this process and its disk. Other replicas
        close it within FOLLOW_SECONDS. Raises InvalidInput for the default one, and TenantNotFound."""
        if name == DEFAULT_TENANT:
            raise InvalidInput([FieldError("/path/name", "must not be the default tenant, which cannot be removed")])
        identity = await self._directory.remove(name)
        tenant = self._tenants.get(name)
        if tenant and tenant.identity == identity:  # not one of that name that was made since, after another removal
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
        """Components of all tenants, including those whose index is not built yet."""
        return [tenant.service for tenant in self._tenants.values() if tenant.service]

    @property
    def lost(self) -> str:
        """Acknowledged writes that the store has lost, as far as this process knows, as a text; empty for none."""
        return next((lost for service in self.services if (lost := service.index.status().lost)), self._lost)

    @property
    def ready(self) -> bool:
        """Whether the indexes of all tenants that were known at the start follow the store. A tenant that could not be
        opened does not count: perhaps no replica can open it, and then none would serve the others."""
        return all(tenant.ready or tenant.failed for tenant in self._tenants.values() if tenant.known_at_start)

    def count_ready(self) -> int:
        """Return how many tenants' indexes follow the store."""
        return sum(tenant.ready for tenant in self._tenants.values())

    def _begin_all(self, identities: Mapping[str, str], known_at_start: bool) -> list[Tenant[S]]:
        """Start opening those of some tenants that are not known yet, each once it has a slot; return all of them."""
        return [
            self._tenants.get(name) or self._begin(name, identity, known_at_start)
            for name, identity in identities.items()
        ]

    def _begin(self, name: str, identity: str, known_at_start: bool = False) -> Tenant[S]:
        """Start opening a tenant, in a task with a context of its own: the tenant's tasks outlive the request that
        opened it, and their log lines name the tenant."""
        tenant = self._tenants[name] = Tenant(name, identity, known_at_start)
        context = Context()
        context.run(structlog.contextvars.bind_contextvars, tenant=name)
        work = self._run(tenant)
        tenant.task = asyncio.get_running_loop().create_task(work, name=f"tenant-{name}", context=context)
        return tenant

    async def _run(self, tenant: Tenant[S]) -> None:
        """Open a tenant, and close it when `closing` is set. A tenant that cannot be opened stays known and is tried
        again until it is closed; the default one is not tried again, and its failure fails the start."""
        try:
            while not tenant.closing.is_set():
                try:
                    await self._serve(tenant)
                    return
                except Exception as error:
                    log.exception("tenant_failed")
                    if tenant.name == DEFAULT_TENANT:
                        tenant.fail(error)
                        return
                await self._wait_before_retry(tenant)
        finally:
            tenant.fail(TenantRemoved() if tenant.removed else Stopping())
            if tenant.removed:
                await asyncio.to_thread(self._discard, tenant.name, tenant.identity)
            if self._tenants.get(tenant.name) is tenant:
                del self._tenants[tenant.name]
                self._telemetry.forget_tenant(tenant.name)

    async def _serve(self, tenant: Tenant[S]) -> None:
        """Build the components of a tenant and its index once it has a slot. Return when it is closed, or was found to
        be removed."""
        async with AsyncExitStack() as stack:
            try:
                async with self._slot(tenant):
                    service = await stack.enter_async_context(self._open_tenant(tenant.name, tenant.identity))
                    tenant.service = service
                    self._telemetry.add_tenant(tenant.name, lambda: service.index.status().vectors)
                    await service.index.start()
                tenant.retry_seconds = 0.0
                tenant.opened.set_result(service)
                await tenant.closing.wait()
            except TenantRemoved:
                tenant.removed = True
            finally:
                if tenant.removed and tenant.service:
                    await tenant.service.index.discard()

    @contextlib.asynccontextmanager
    async def _slot(self, tenant: Tenant[S]) -> AsyncIterator[None]:
        """Hold one of the MAX_OPENING slots for the block; enter the block without one as soon as a request needs
        the tenant, which must not wait for tenants that no request needs."""
        slot = asyncio.ensure_future(self._slots.acquire())
        requested = asyncio.ensure_future(tenant.requested.wait())
        try:
            await asyncio.wait([slot, requested], return_when=asyncio.FIRST_COMPLETED)
            yield
        finally:
            requested.cancel()
            if not slot.cancel():  # the slot was acquired
                self._slots.release()

    async def _wait_before_retry(self, tenant: Tenant[S]) -> None:
        """Fail the callers that wait for a tenant. Return when it is time for the next attempt, or the tenant is to be
        closed."""
        first, longest = RETRY_SECONDS
        tenant.retry_seconds = min(2 * tenant.retry_seconds or first, longest)
        tenant.service = None
        self._telemetry.forget_tenant(tenant.name)
        tenant.fail(TenantOpening(tenant.detail, tenant.retry_seconds))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(tenant.closing.wait(), tenant.retry_seconds)
        tenant.requested.clear()  # set again by the next request; until then the tenant waits for a slot
        tenant.opened = asyncio.get_running_loop().create_future()

    async def _wait_until_closed(self, tenant: Tenant[S]) -> Tenant[S] | None:
        """Wait until a removed tenant, to which nothing can be written any more, is closed; return the new tenant of
        its name, if there is one by then. Raises TenantOpening after OPEN_SECONDS."""
        await asyncio.wait([tenant.task], timeout=OPEN_SECONDS)
        if not tenant.task.done():
            raise TenantOpening("the removed tenant of this name is being closed")
        return self._tenants.get(tenant.name)

    async def _close(self, tenant: Tenant[S], *, removed: bool = False) -> None:
        """Close a tenant; cancel its opening if that is not done yet."""
        tenant.removed |= removed  # it may be closed while it is being removed
        tenant.closing.set()
        while not tenant.task.done():
            if not tenant.opened.done():  # the Redis client may swallow a cancellation
                tenant.task.cancel()
            await asyncio.wait([tenant.task], timeout=0.1)

    async def _list(self) -> dict[str, str]:
        """Return the identities of all tenants by name. The first time, finish interrupted removals, and remove what is
        left of other tenants on this machine's disk."""
        known = await self._directory.known()
        identities = {name: identity for name, identity in known.items() if identity is not None}
        if not self._listed:
            for name in known.keys() - identities.keys():
                await self._directory.finish_removal(name)
            await asyncio.to_thread(self._remove_leftovers, identities)
            self._listed = True
        return identities

    async def _follow(self) -> None:
        """Open the tenants that other replicas created and close those that they removed, until cancelled."""
        while not self._stopped:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                await self._follow_once()
            except StoreUnavailable:
                continue
            except Exception:
                log.exception("tenants_failed", detail="will be tried again in a second")

    async def _follow_once(self) -> None:
        first, open_before = not self._listed, list(self)
        identities = await self._list()
        for tenant in open_before:
            if tenant.name != DEFAULT_TENANT and identities.get(tenant.name) != tenant.identity:
                await self._close_gone(tenant)
        if not self._stopped:
            self._begin_all(identities, known_at_start=first)

    async def _close_gone(self, tenant: Tenant[S]) -> None:
        """Close a tenant that the store no longer has, or has created anew."""
        known = await self._directory.known()
        if tenant.name not in known and not await self._directory.was_removed(tenant.name):
            self._lost = "a tenant has disappeared without being removed: the store was emptied or replaced"
            log.error("store_lost_writes", tenant=tenant.name, detail=self._lost)
        else:
            log.info("tenant_gone", tenant=tenant.name, detail="it was removed or created anew")
        await self._close(tenant, removed=True)
