"""GET /livez, /startupz, /readyz, /metrics, /limits and POST /verify: for those who run the service."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.access.gate import Gate
from service.access.principal import DEFAULT_TENANT, Principal, Scope
from service.api.access import needs, open_to_all
from service.api.bounds import max_import_bytes
from service.api.dependencies import LifecycleDep, ManagerDep, PrincipalDep, ServiceDep, get_tenants
from service.api.problems import documented
from service.api.protocol import BoundedProtocol
from service.api.schemas.operations import Check, LimitsOut, ReadyOut, StartOut, VerifyOut
from service.api.strict_route import StrictRoute
from service.container import Service
from service.errors import StoreUnavailable, VerifyRunning
from service.lifecycle import Lifecycle
from service.reader_processes import ReaderProcesses
from service.readiness import is_ready
from service.store.ranked_lists import MAX_LIST_BYTES, MAX_LISTS
from service.tenants import Tenants
from service.verify import verify

RepairQuery = Annotated[bool, Query(description="true: repair the index from the store where they differ")]
router = APIRouter(tags=["operations"], route_class=StrictRoute)


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="Check whether the process answers")
@open_to_all()
async def livez() -> dict[str, str]:
    """Liveness probe: 200 as long as the process answers at all, regardless of its dependencies."""
    return {"status": "alive"}


@router.head("/startupz", include_in_schema=False)
@router.get(
    "/startupz",
    summary="Check whether the process has started",
    responses={503: {"model": StartOut, "description": "Not started yet"}},
)
@open_to_all()
async def startupz(request: Request, lifecycle: LifecycleDep, response: Response) -> StartOut:
    """Startup probe: 200 once the process has started; until then 503, with the current step. Only callers of the
    default tenant see the progress of that step."""
    response.status_code = 200 if lifecycle.started else 503
    detail = "started" if lifecycle.started else progress_for(lifecycle, await recognise(request))
    return StartOut(started=lifecycle.started, detail=detail)


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    summary="Check whether the process is ready for requests",
    responses={503: {"model": ReadyOut, "description": "Not ready; `checks` says why"}},
)
@open_to_all()
async def readyz(request: Request, lifecycle: LifecycleDep, response: Response) -> ReadyOut:
    """Readiness probe: 200 if the process has started and is not draining, the store answers, the index follows it, the
    engine makes progress and the reader processes were started; otherwise 503, with the check that fails. Numbers of
    notes are those of the caller's tenant."""
    caller = await recognise(request)
    if lifecycle.started:
        tenants, readers = await get_tenants(request), get_reader_processes(request)
        answer = await _check(lifecycle, tenants, readers, tenants.find(caller.tenant) if caller else None)
        if readers.count:
            started = "are started" if readers.tried else "are not all started yet"
            detail = f"{readers.ready} of {readers.count} are ready" if caller else started
            detail += "; one that dies is restarted"
            answer.checks["readers"] = Check(ok=readers.tried, detail=detail)
    else:
        answer = ReadyOut(ready=False, checks={"start": Check(ok=False, detail=progress_for(lifecycle, caller))})
    if lifecycle.draining:
        answer.checks["drain"] = Check(
            ok=False, detail="the process is stopping: requests are still served, but should go to another process"
        )
    response.status_code = 200 if answer.ready else 503
    return answer


async def recognise(request: Request) -> Principal | None:
    """Return the caller of a probe, which is open to all; None for one without a valid key where keys are needed."""
    gate = cast(Gate, request.app.state.gate)
    return await gate.recognise(request.headers.get("authorization"), request.headers.get("host", ""))


def progress_for(lifecycle: Lifecycle, caller: Principal | None) -> str:
    """Return the current step of the start; for a caller of the default tenant also how far it is, in notes of that
    tenant."""
    return lifecycle.progress if caller and caller.tenant == DEFAULT_TENANT else lifecycle.step


def get_reader_processes(request: Request) -> ReaderProcesses:
    return cast(ReaderProcesses, request.app.state.readers)


async def _check(
    lifecycle: Lifecycle, tenants: Tenants[Service], readers: ReaderProcesses, own: Service | None
) -> ReadyOut:
    """Check the parts of a running service. `own`: service of the caller's tenant; None for a caller without one."""
    service = tenants.default
    durable: bool | None = None
    try:
        durability = await service.store_probe.ask()
        durable, store = durability.durable, Check(ok=True, detail=durability.detail)
    except StoreUnavailable as error:
        store = Check(ok=False, detail=str(error))
    status = service.index.status()
    if tenants.lost:
        lost = tenants.lost if own is service else "it has lost writes"
        durable, store = False, Check(ok=store.ok, detail=f"{store.detail}; {lost}")
    busy = service.batcher.busy_seconds
    engine = Check(
        ok=not service.batcher.is_stuck,
        detail=f"{service.batcher.waiting} notes wait; the current engine step has taken {busy:.1f} s",
    )
    index = Check(ok=tenants.ready, detail=status.detail)
    if status.ready and not tenants.ready:
        index.detail = f"{tenants.count_ready()} of {len(tenants)} tenants follow the log"
    if own is None:
        engine.detail = "makes progress" if engine.ok else "makes no progress"
    if own is not service:  # positions, numbers of notes and of tenants are hidden from others
        index.detail = "follows the log" if index.ok else "does not follow the log yet for all tenants"
    return ReadyOut(
        ready=is_ready(lifecycle, tenants, readers),
        checks={"store": store, "index": index, "engine": engine},
        durable=durable,
        model=service.engine.name,
        space=service.engine.space,
        log_position=own.index.status().position if own else None,
        notes=own.index.status().vectors if own else None,
        notes_of_another_model=own.index.status().other_space if own else None,
    )


@router.get(
    "/metrics",
    summary="Get metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
@needs(Scope.METRICS)
async def metrics(request: Request) -> Response:
    """Get metrics in Prometheus text format. Metrics of a reader process have the label `reader`, its number."""
    registry = await get_reader_processes(request).add_metrics(request.app.state.telemetry.registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


@router.post("/verify", summary="Compare the index with the store", responses=documented(409, 422, 503))
@needs(Scope.ADMIN)
async def verify_index(
    service: ServiceDep, manager: ManagerDep, principal: PrincipalDep, repair: RepairQuery = False
) -> VerifyOut:
    """Compare the whole store with the whole index of this replica, which takes seconds per 10,000 notes. With
    `repair`, the index is repaired from the store. One comparison runs at a time: 409 while one is running."""
    if service.verifying.locked():
        raise VerifyRunning
    async with service.verifying, manager.recorded(principal, "verify", repair=repair):
        report = await verify(service.store, service.index, service.engine.space, service.clock, repair=repair)
    return VerifyOut.of(report)


@router.get("/limits", summary="Get the limits of requests", responses=documented(503))
@needs(*Scope)
async def limits(request: Request, service: ServiceDep) -> LimitsOut:
    """Get all limits that requests must keep."""
    settings, read_tokens = service.settings, service.engine.read_tokens
    return LimitsOut(
        max_body_bytes=settings.max_body_bytes,
        max_bodies_bytes=settings.body_memory,
        max_note_bytes=settings.note_bytes,
        max_import_bytes=max_import_bytes(settings),
        max_batch_notes=settings.max_batch_notes,
        max_batch_events=settings.max_batch_events,
        event_types=sorted(settings.event_weights),
        event_seconds=settings.event_seconds,
        event_bytes=settings.event_bytes,
        event_id_seconds=settings.event_id_seconds,
        event_ids=settings.event_ids,
        max_k=settings.max_k,
        filter_attributes=sorted(settings.filter_attributes),
        min_hashtag_score=settings.min_hashtag_score,
        min_category_probability=settings.min_category_probability,
        max_list_bytes=MAX_LIST_BYTES,
        max_lists=MAX_LISTS,
        page_seconds=settings.page_seconds,
        scenarios=sorted(request.app.state.scenarios),
        log_seconds=min(settings.log_seconds, settings.purge_seconds or settings.log_seconds),
        queue_notes=settings.queue_notes,
        queue_seconds=settings.queue_seconds,
        interactive_seconds=min(settings.interactive_seconds, settings.request_seconds),
        request_seconds=settings.request_seconds,
        max_tenants=settings.max_tenants,
        max_connections=BoundedProtocol.max_connections,
        idempotency_seconds=settings.idempotency_seconds,
        read_title_tokens=read_tokens.title,
        read_hashtag_tokens=read_tokens.hashtags,
        read_content_tokens=read_tokens.content,
    )
