"""Keys, and the acts of those who manage a service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field

from service.access.api_key import Act, ApiKey
from service.access.principal import TENANT, Quota, Scope
from service.api.schemas.common import Form, Name, Time, Wire

MAX_OVERLAP_SECONDS = 7 * 86_400
"""Bound on the time for which a replaced secret is accepted."""
OVERLAP_SECONDS = 3600
"""Default of that time."""

KeyPrefix = Annotated[
    str,
    Form("^[a-z2-7]{10}$", "must be the prefix of a key: its 10 characters of a-z 2-7 after nlm_"),
    Field(description="prefix of a key: its 10 characters of a-z 2-7 after nlm_", examples=["abcdefghij"]),
]
Tenant = Annotated[
    str,
    Form(f"^{TENANT.pattern}$", "must have 1 to 40 characters of a-z 0-9 -, and not start with -"),
    Field(description="1 to 40 of a-z 0-9 -, not starting with -", examples=["films"]),
]


class QuotaFields(Wire):
    """Bounds on the use of a key."""

    requests_per_minute: int | None = Field(
        None, ge=1, le=10_000_000, description="most requests a minute; null: without bound"
    )
    tokens_per_minute: int | None = Field(
        None,
        ge=1,
        le=10_000_000_000,
        description="most tokens a minute that the model reads and writes; null: without bound",
    )

    def as_quota(self) -> Quota:
        return Quota(self.requests_per_minute, self.tokens_per_minute)

    def merged(self, quota: Quota) -> Quota:
        """Return a quota with the bounds that are given here; those left out stay as they are."""
        return replace(quota, **{name: getattr(self, name) for name in self.model_fields_set})


class Expiring(Wire):
    """A body with the time from which on a key opens nothing."""

    expires_at: Time | None = Field(
        None, description="from this time on the key opens nothing; null: it does not expire"
    )

    @property
    def expiry(self) -> float | None:
        return None if self.expires_at is None else self.expires_at.timestamp()


class KeyIn(Expiring):
    """A key to create."""

    name: Name = Field(description="says who or what uses the key", examples=["the website"])
    scopes: list[Scope] = Field(
        min_length=1, max_length=len(Scope), description="what the key may do", examples=[["notes.read", "similar"]]
    )
    tenant: Tenant | None = Field(None, description="without it that of your own key; another one takes `admin`")
    quota: QuotaFields = QuotaFields()


class KeyPatch(Expiring):
    """Changes of a key; a field that is left out stays as it is, also one of the quota."""

    # What is left out stays. A factory's default is not in the OpenAPI, where a client would take it for one to send.
    name: Name = Field(default_factory=str, description="says who or what uses the key")
    quota: QuotaFields = Field(default_factory=QuotaFields)

    def merged(self, key: ApiKey) -> ApiKey:
        """Return a key after the changes."""
        changes: dict[str, Any] = {}
        if "name" in self.model_fields_set:
            changes["name"] = self.name
        if "expires_at" in self.model_fields_set:
            changes["expires_at"] = self.expiry
        if "quota" in self.model_fields_set:
            changes["quota"] = self.quota.merged(key.quota)
        return replace(key, **changes)


class RotateIn(Wire):
    """How a key gets its new secret."""

    overlap_seconds: float = Field(
        OVERLAP_SECONDS, ge=0, le=MAX_OVERLAP_SECONDS, description="seconds for which the old secret is still accepted"
    )


class KeyOut(BaseModel):
    """A key without its secret."""

    prefix: str = Field(description="names the key at other addresses")
    name: str = Field(description="says who or what uses the key")
    tenant: str = Field(description="tenant whose notes the key opens")
    scopes: list[Scope] = Field(description="what the key may do")
    created_at: datetime = Field(description="time of its creation")
    expires_at: datetime | None = Field(description="from this time on it opens nothing; null: it does not expire")
    last_used_at: datetime | None = Field(description="time of its last use, to a minute; null: it was never used")
    old_secret_until: datetime | None = Field(
        description="until when replaced secrets are accepted, at the latest; null: there is none"
    )
    quota: QuotaFields

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        return cls(
            prefix=key.prefix,
            name=key.name,
            tenant=key.tenant,
            scopes=sorted(key.scopes),
            created_at=_time(key.created_at),
            expires_at=_time(key.expires_at),
            last_used_at=_time(key.last_used_at),
            old_secret_until=_time(key.old_secrets[0].until) if key.old_secrets else None,
            quota=QuotaFields(
                requests_per_minute=key.quota.requests_per_minute, tokens_per_minute=key.quota.tokens_per_minute
            ),
        )


class NewKeyOut(KeyOut):
    """A key with its secret."""

    key: str = Field(description="the whole key, shown this once", examples=["nlm_abcdefghij_..."])

    @classmethod
    def with_token(cls, key: ApiKey, token: str) -> Self:
        return cls(**KeyOut.of(key).model_dump(), key=token)


class KeysOut(BaseModel):
    """Keys without their secrets."""

    keys: list[KeyOut] = Field(description="the oldest first")


class ActOut(BaseModel):
    """Act of somebody who manages the service."""

    position: str = Field(description="place in the audit log: `before` of the next request")
    at: datetime = Field(description="time of the act")
    by: str | None = Field(description="prefix of the key that it was done with; null: the service was open")
    tenant: str = Field(description="tenant of that key")
    act: str = Field(description="name of the act", examples=["keys.create"])
    target: str = Field(description='prefix of a key or name of a tenant that was acted on; "": neither')
    details: Mapping[str, Any] = Field(description="what was asked for, without secrets")

    @classmethod
    def of(cls, act: Act) -> Self:
        return cls(
            position=act.position,
            at=_time(act.at),
            by=act.key,
            tenant=act.tenant,
            act=act.name,
            target=act.target,
            details=act.details,
        )


class AuditOut(BaseModel):
    """Part of the audit log."""

    acts: list[ActOut] = Field(description="the newest first")


def _time(seconds: float | None) -> Any:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
