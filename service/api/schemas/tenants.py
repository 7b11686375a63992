"""GET /tenants."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field

from service.container import Service
from service.tenants import Tenant


class TenantOut(BaseModel):
    """State of a tenant on this replica."""

    name: str = Field(description="name of the tenant")
    state: Literal["opening", "failed", "ready", "behind"] = Field(
        description="opening: its index is being built, and its requests get 503; failed: it could not be opened, "
        "its requests get 503, and opening it is retried; ready: it serves requests; behind: its index does not "
        "follow the store at the moment"
    )
    detail: str = Field(description="description of the state")
    notes: int | None = Field(
        description="number of notes in this replica's index, including those of another model; null if the tenant "
        "is not open"
    )

    @classmethod
    def of(cls, tenant: Tenant[Service]) -> Self:
        if tenant.failed:
            return cls(name=tenant.name, state="failed", detail=tenant.detail, notes=None)
        if tenant.service is None or not tenant.opened.done():
            return cls(name=tenant.name, state="opening", detail=tenant.detail, notes=None)
        status = tenant.service.index.status()
        state = "ready" if status.ready else "behind"
        return cls(name=tenant.name, state=state, detail=status.detail, notes=status.vectors + status.other_space)


class TenantsOut(BaseModel):
    """Tenants on this replica: those that are open, are being opened, or could not be opened."""

    tenants: list[TenantOut] = Field(description="tenants, sorted by name")
