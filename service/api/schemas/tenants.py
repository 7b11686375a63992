"""GET /tenants."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field

from service.container import Service
from service.tenants import Tenant


class TenantOut(BaseModel):
    """One tenant at this replica."""

    name: str = Field(description="name of the tenant")
    state: Literal["opening", "failed", "ready", "behind"] = Field(
        description="opening: its index is being built, and its requests get 503; failed: it could not be opened, its "
        "requests get 503, and it is tried again; behind: its index does not follow the store at the moment"
    )
    detail: str = Field(description="the state in words")
    notes: int | None = Field(
        description="number of notes in this replica's index, with those of another model; null: it is not open"
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
    """Tenants that this replica knows: open ones, and those that are opening or failed to."""

    tenants: list[TenantOut] = Field(description="by name")
