"""GET /tenants."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field

from service.container import Service
from service.tenants import Tenant


class TenantOut(BaseModel):
    """One tenant at this replica. `detail` says its state in words."""

    name: str
    state: Literal["opening", "failed", "ready", "behind"] = Field(
        description="opening: its index is being built, and its requests get 503; failed: it could not be opened, its "
        "requests get 503, and it is tried again; behind: its index does not follow the store at the moment"
    )
    detail: str
    notes: int | None = Field(
        description="that this replica's index has, those of another model too; null: it is not open"
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
    tenants: list[TenantOut]
