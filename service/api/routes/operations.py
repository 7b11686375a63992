"""GET /livez, /readyz, /metrics, /limits and POST /verify: for those who run the service."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.api.dependencies import ServiceDep
from service.api.problems import documented
from service.api.schemas.operations import Check, LimitsOut, ReadyOut, VerifyOut
from service.errors import StoreUnavailable
from service.verify import verify

router = APIRouter(tags=["operations"])
STUCK_SECONDS = 60.0
"""An engine step that takes longer makes the process not ready: it normally takes less than a second."""


@router.get("/livez")
async def livez() -> dict[str, str]:
    """200 as long as the process answers at all, whatever it depends on."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"model": ReadyOut, "description": "Not ready; checks say why"}})
async def readyz(service: ServiceDep, response: Response) -> ReadyOut:
    """200 when the store answers, the index follows it and the engine moves; else 503, and which of them does not."""
    durable: bool | None = None
    try:
        durability = await service.store.durability()
        durable, store = durability.durable, Check(ok=True, detail=durability.detail)
    except StoreUnavailable as error:
        store = Check(ok=False, detail=str(error))
    status = service.index.status()
    busy = service.batcher.busy_seconds
    engine = Check(
        ok=busy < STUCK_SECONDS, detail=f"{service.batcher.waiting} notes wait; at its batch for {busy:.1f} s"
    )
    checks = {"store": store, "index": Check(ok=status.ready, detail=status.detail), "engine": engine}
    ready = all(check.ok for check in checks.values())
    response.status_code = 200 if ready else 503
    return ReadyOut.model_validate(
        {
            "ready": ready,
            "checks": checks,
            "durable": durable,
            "model": service.recommender.engine.name,
            "space": service.recommender.engine.space,
            "log_position": status.position,
            "notes": status.vectors,
            "notes_of_another_model": status.other_space,
        }
    )


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: ServiceDep) -> Response:
    """Prometheus text."""
    return Response(generate_latest(service.telemetry.registry), media_type=CONTENT_TYPE_LATEST)


@router.post("/verify", responses=documented(422, 503))
async def verify_index(service: ServiceDep, repair: bool = False) -> VerifyOut:
    """Compares all of the store with all of this replica's index, in seconds for each 10,000 notes; `repair` gives the
    index anew what differs."""
    async with service.verifying:
        report = await verify(
            service.store, service.index, service.recommender.engine.space, service.clock, repair=repair
        )
    return VerifyOut.of(report)


@router.get("/limits")
async def limits(service: ServiceDep) -> LimitsOut:
    """Every bound that a request has to keep."""
    settings, read_tokens = service.settings, service.recommender.engine.read_tokens
    return LimitsOut(
        max_body_bytes=settings.max_body_bytes,
        max_note_bytes=settings.max_note_bytes,
        max_batch_notes=settings.max_batch_notes,
        max_k=settings.max_k,
        queue_notes=settings.queue_notes,
        queue_seconds=settings.queue_seconds,
        interactive_seconds=settings.interactive_seconds,
        request_seconds=settings.request_seconds,
        read_title_tokens=read_tokens.title,
        read_hashtag_tokens=read_tokens.hashtags,
        read_content_tokens=read_tokens.content,
    )
