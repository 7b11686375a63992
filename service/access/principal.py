"""The caller of a request: its key, its tenant, and what it may do."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
"""Names of tenants. They are parts of Redis keys, of file names and of log lines."""
DEFAULT_TENANT = "default"
"""Tenant of everything that was stored without keys."""


class Scope(StrEnum):
    """A permission of a key. No scope includes another."""

    NOTES_READ = "notes.read"
    NOTES_WRITE = "notes.write"
    SIMILAR = "similar"
    GENERATE = "generate"
    EVENTS = "events"
    MODELS_MANAGE = "models.manage"
    KEYS_MANAGE = "keys.manage"
    METRICS = "metrics"
    ADMIN = "admin"


ADMIN_SCOPES = frozenset({Scope.METRICS, Scope.KEYS_MANAGE, Scope.MODELS_MANAGE, Scope.ADMIN})
"""Scopes of those who run the service. A route that accepts no other scope is on the admin port, if there is one."""
READ_SCOPES = frozenset({Scope.NOTES_READ, Scope.SIMILAR, Scope.GENERATE, Scope.METRICS})
"""Scopes of routes that change nothing."""


@dataclass(frozen=True, slots=True)
class Quota:
    """Bounds on the usage of a key per minute; None for no bound. Tokens are those that the model reads and writes."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __bool__(self) -> bool:
        """Whether anything is bounded."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None


UNLIMITED = Quota()


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of a request. `key`: public prefix of its key; None if the service has no keys. `tenant`: a name of
    the form TENANT. `digest`: that of the secret which the caller sent; "" for a caller whose key is in no store."""

    key: str | None
    tenant: str
    scopes: frozenset[Scope]
    quota: Quota = UNLIMITED
    digest: str = field(default="", repr=False, compare=False)


BOOTSTRAP = Principal("bootstrap", DEFAULT_TENANT, frozenset(Scope))
"""Principal of the bootstrap key, which is in no store. No other key has a prefix of this length."""
ANONYMOUS = Principal(None, DEFAULT_TENANT, frozenset(Scope))
"""Principal of every caller of a service that has no keys."""
