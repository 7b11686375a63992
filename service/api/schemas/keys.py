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
    Form("^[a-z2-7]{10}$", "must be the prefix of a key: the 10 characters of a-z 2-7 that follow nlm_"),
    Field(description="prefix of a key: the 10 characters of a-z 2-7 that follow nlm_", examples=["abcdefghij"]),
]
Tenant = Annotated[
    str,
    Form(f"^{TENANT.pattern}$", "must have 1 to 40 characters of a-z 0-9 -, and not start with -"),
    Field(description="name of a tenant: 1 to 40 characters of a-z 0-9 -, not starting with -", examples=["films"]),
]


class QuotaFields(Wire):
    """Quota of a key."""

    requests_per_minute: int | None = Field(
        None, ge=1, le=10_000_000, description="maximum number of requests per minute; null: unlimited"
    )
    tokens_per_minute: int | None = Field(
        None,
        ge=1,
        le=10_000_000_000,
        description="maximum number of tokens that the model reads and generates per minute; null: unlimited",
    )

    def as_quota(self) -> Quota:
        return Quota(self.requests_per_minute, self.tokens_per_minute)

    def merged(self, quota: Quota) -> Quota:
        """Return a quota with the bounds that are given here; those left out stay as they are."""
        return replace(quota, **{name: getattr(self, name) for name in self.model_fields_set})


class Expiring(Wire):
    """A body with the time from which on a key opens nothing."""

    expires_at: Time | None = Field(
        None, description="time from which on the key is refused; null: the key does not expire"
    )

    @property
    def expiry(self) -> float | None:
        return None if self.expires_at is None else self.expires_at.timestamp()


class KeyIn(Expiring):
    """A key to create."""

    name: Name = Field(description="name of the key, to tell who or what uses it", examples=["the website"])
    scopes: list[Scope] = Field(
        min_length=1,
        max_length=len(Scope),
        description="scopes of the key: what it may do",
        examples=[["notes.read", "similar"]],
    )
    tenant: Tenant | None = Field(
        None, description="tenant of the key; default: that of your own key. Any other requires the scope `admin`"
    )
    quota: QuotaFields = QuotaFields()


class KeyPatch(Expiring):
    """Changes of a key. Omitted fields stay as they are, including those of `quota`."""

    # A `default_factory` keeps the default out of the OpenAPI document: a client might send it.
    name: Name = Field(default_factory=str, description="name of the key, to tell who or what uses it")
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
    """Options of a key rotation."""

    overlap_seconds: float = Field(
        OVERLAP_SECONDS, ge=0, le=MAX_OVERLAP_SECONDS, description="seconds for which the old secret is still accepted"
    )


class KeyOut(BaseModel):
    """A key without its secret."""

    prefix: str = Field(description="prefix of the key, which identifies it in other requests")
    name: str = Field(description="name of the key, to tell who or what uses it")
    tenant: str = Field(description="tenant whose notes the key gives access to")
    scopes: list[Scope] = Field(description="scopes of the key: what it may do")
    created_at: datetime = Field(description="time when the key was created")
    expires_at: datetime | None = Field(description="time from which on the key is refused; null if it does not expire")
    last_used_at: datetime | None = Field(
        description="time when the key was last used, accurate to a minute; null if never"
    )
    old_secret_until: datetime | None = Field(
        description="latest time until which a replaced secret is accepted; null if there is none"
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

    key: str = Field(description="the whole key; only this answer contains it", examples=["nlm_abcdefghij_..."])

    @classmethod
    def with_token(cls, key: ApiKey, token: str) -> Self:
        return cls(**KeyOut.of(key).model_dump(), key=token)


class KeysOut(BaseModel):
    """Keys without their secrets."""

    keys: list[KeyOut] = Field(description="keys, oldest first")


class ActOut(BaseModel):
    """Entry of the audit log: an administrative act."""

    position: str = Field(description="position in the audit log, to send as `before` of the next request")
    at: datetime = Field(description="time of the act")
    by: str | None = Field(description="prefix of the key that was used; null if the service had no keys")
    tenant: str = Field(description="tenant of that key")
    act: str = Field(description="type of the act", examples=["keys.create"])
    target: str = Field(description='prefix of the key or name of the tenant that was acted on; "" if neither')
    details: Mapping[str, Any] = Field(description="details of the request, without secrets")

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

    acts: list[ActOut] = Field(description="acts, newest first")


def _time(seconds: float | None) -> Any:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
