"""GET /tenants and DELETE /tenants/{name}: for those who run the service."""

from __future__ import annotations

from fastapi import APIRouter

from service.access.principal import DEFAULT_TENANT, Scope
from service.api.access import needs
from service.api.dependencies import ManagerDep, PrincipalDep, TenantsDep
from service.api.problems import documented
from service.api.schemas.keys import Tenant
from service.api.schemas.tenants import TenantOut, TenantsOut
from service.api.strict_route import StrictRoute
from service.errors import TenantNotFound

router = APIRouter(tags=["operations"], route_class=StrictRoute)


@router.get("/tenants", summary="List tenants", responses=documented(503))
@needs(Scope.ADMIN)
async def list_tenants(tenants: TenantsDep) -> TenantsOut:
    """List the tenants of this replica by name, including those that could not be opened."""
    by_name = sorted(tenants, key=lambda tenant: tenant.name)
    return TenantsOut(tenants=[TenantOut.of(tenant) for tenant in by_name])


@router.delete("/tenants/{name}", summary="Remove a tenant", status_code=204, responses=documented(403, 404, 422, 503))
@needs(Scope.ADMIN)
async def remove_tenant(name: Tenant, tenants: TenantsDep, manager: ManagerDep, principal: PrincipalDep) -> None:
    """Remove a tenant with all its data: notes, log, records of writes and snapshots. After the 204, none of it is in
    the store, and no replica serves the tenant; other replicas remove their snapshots within seconds. The tenant's keys
    are revoked first, and keys that are created meanwhile at the end. If your key lacks a scope that one of the
    tenant's keys has at the beginning, the answer is 403 and nothing is removed. A 403 may also come at the end,
    because of a key that was created meanwhile: then the tenant is removed and this key is left. Safe to repeat; a 404
    of the type tenant-not-found then means that the tenant is removed."""
    async with manager.recorded(principal, "tenants.remove", name):
        revoked = await manager.revoke_all(principal, name) if name != DEFAULT_TENANT else 0
        try:
            await tenants.remove(name)
        except TenantNotFound:
            if not revoked:
                raise
        await manager.revoke_all(principal, name)
