"""GET, POST, PATCH and DELETE /keys, POST /keys/{prefix}/rotate, GET /audit: API keys, and the log of
administration."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.access.principal import Scope
from service.api.access import needs
from service.api.bodies import TimeSlices
from service.api.dependencies import ManagerDep, PrincipalDep
from service.api.json_route import StrictJsonRoute
from service.api.problems import documented
from service.api.schemas.common import Form
from service.api.schemas.keys import (
    ActOut,
    AuditOut,
    KeyIn,
    KeyOut,
    KeyPatch,
    KeyPrefix,
    KeysOut,
    NewKeyOut,
    RotateIn,
)

MAX_LISTED_ACTS = 1000
"""Bound on the acts in one answer of GET /audit."""
POSITION = Form(r"^[0-9]{1,15}-[0-9]{1,10}$", "must be the `position` of an act")
"""Positions that Redis accepts: \\d would match the digits of every script."""
router = APIRouter(tags=["keys"], route_class=StrictJsonRoute)


@router.post("/keys", summary="Create a key", status_code=201, responses=documented(400, 409, 413, 415, 422, 503))
@needs(Scope.KEYS_MANAGE)
async def create_key(body: KeyIn, manager: ManagerDep, principal: PrincipalDep) -> NewKeyOut:
    """Create a key. Only this answer contains its secret. The key can only have scopes that your own key has."""
    key, token = await manager.create(
        principal,
        name=body.name,
        scopes=body.scopes,
        tenant=body.tenant,
        expires_at=body.expiry,
        quota=body.quota.as_quota(),
    )
    return NewKeyOut.with_token(key, token)


@router.get("/keys", summary="List keys", responses=documented(503), response_model=KeysOut)
@needs(Scope.KEYS_MANAGE)
async def list_keys(manager: ManagerDep, principal: PrincipalDep) -> Response:
    """List the keys of your tenant or, with the scope `admin`, those of all tenants; oldest first."""
    slices, keys = TimeSlices(), list[bytes]()
    for key in await manager.keys(principal):  # not a KeysOut: serialising all at once would hold the event loop
        keys.append(KeyOut.of(key).model_dump_json().encode())
        await slices.check()
    return Response(b'{"keys":[%s]}' % b",".join(keys), media_type="application/json")


@router.patch("/keys/{prefix}", summary="Change a key", responses=documented(400, 404, 413, 415, 422, 503))
@needs(Scope.KEYS_MANAGE)
async def change_key(prefix: KeyPrefix, body: KeyPatch, manager: ManagerDep, principal: PrincipalDep) -> KeyOut:
    """Change name, expiry or quota of a key."""
    details = body.model_dump(mode="json", exclude_unset=True)
    return KeyOut.of(await manager.change(principal, prefix, body.merged, "keys.change", details))


@router.post(
    "/keys/{prefix}/rotate", summary="Give a key a new secret", responses=documented(400, 404, 413, 415, 422, 503)
)
@needs(Scope.KEYS_MANAGE)
async def rotate_key(prefix: KeyPrefix, body: RotateIn, manager: ManagerDep, principal: PrincipalDep) -> NewKeyOut:
    """Give a key a new secret. Only this answer contains it. The old secret is accepted for the overlap. Safe to repeat
    if the answer was lost: earlier replaced secrets are accepted for as long as stated then, but no longer than the
    overlap of the last rotation."""
    key, token = await manager.rotate(principal, prefix, body.overlap_seconds)
    return NewKeyOut.with_token(key, token)


@router.delete("/keys/{prefix}", summary="Revoke a key", status_code=204, responses=documented(404, 422, 503))
@needs(Scope.KEYS_MANAGE)
async def revoke_key(prefix: KeyPrefix, manager: ManagerDep, principal: PrincipalDep) -> None:
    """Revoke a key permanently. Every replica refuses it within two seconds."""
    await manager.revoke(principal, prefix)


@router.get("/audit", summary="List administrative acts", responses=documented(422, 503))
@needs(Scope.ADMIN)
async def audit(
    manager: ManagerDep,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED_ACTS, description="maximum number of acts")] = 100,
    before: Annotated[
        str | None, POSITION, Query(description="list acts before this one: `position` of the last act that you have")
    ] = None,
) -> AuditOut:
    """List administrative acts from the audit log, newest first. An answer with fewer than `limit` acts is the last
    one. About 10,000 acts are kept."""
    return AuditOut(acts=[ActOut.of(act) for act in await manager.acts(limit, before or "")])
