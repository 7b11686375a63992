"""API keys: their form, what is stored of them, and the audit log of those who manage them.

    nlm_<prefix>_<secret>     prefix: 10 of a-z 2-7, public; secret: 256 random bits

Only the SHA-256 of the secret is stored. A slow hash protects passwords that people choose; 256 random bits cannot be
guessed, and a slow hash would only slow each request down.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hmac import compare_digest

from service.access.principal import UNLIMITED, Principal, Quota, Scope

TOKEN = re.compile(r"nlm_([a-z2-7]{10})_([A-Za-z0-9_-]{43})")
PREFIX_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
PREFIX_LENGTH = 10
MAX_KEYS = 10_000
"""Bound on the keys, published at GET /limits. Each process holds all of them, in about 1 KB each."""
MAX_KEYS_OF_TENANT = 1000
"""Bound on the keys of a tenant, published at GET /limits; beyond it only a key with the scope `admin` creates more. It
keeps one tenant from using up MAX_KEYS."""
MAX_OLD_SECRETS = 8
"""Bound on the replaced secrets of a key that are still accepted; beyond it the oldest one is dropped."""


@dataclass(frozen=True, slots=True)
class OldSecret:
    """A secret that was replaced by a rotation. It is accepted until the time `until`."""

    digest: str
    until: float


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is stored, without its secret. Times are seconds since the epoch; `expires_at`: None for never.
    `old_secrets`: most recently replaced first; none is accepted for longer than the first."""

    prefix: str
    digest: str
    name: str
    tenant: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None = None
    quota: Quota = UNLIMITED
    old_secrets: tuple[OldSecret, ...] = ()
    last_used_at: float | None = field(default=None, compare=False)

    def accepts(self, digest: str, now: float) -> bool:
        """Return whether a secret of this key that is accepted at `now` has this digest; the time this takes does not
        depend on the digest."""
        matches = compare_digest(digest, self.digest)
        for old in self.old_secrets:
            matches |= compare_digest(digest, old.digest) and now < old.until
        return matches

    def rotated(self, digest: str, now: float, until: float) -> ApiKey:
        """Return the key with a new secret from `now` on; the replaced one is accepted until `until`. Secrets that were
        replaced earlier stay accepted as long as they were, but not beyond `until`: whoever repeats a rotation because
        its answer was lost does not have the first new secret, and callers still send the one before it."""
        older = [OldSecret(old.digest, min(old.until, until)) for old in self.old_secrets if now < old.until]
        old_secrets = (OldSecret(self.digest, until), *older)[:MAX_OLD_SECRETS]
        return replace(self, digest=digest, old_secrets=old_secrets)

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def principal(self, digest: str) -> Principal:
        """Return the principal of a caller who sent the secret with this digest."""
        return Principal(self.prefix, self.tenant, self.scopes, self.quota, digest)


@dataclass(frozen=True, slots=True)
class KeyTable:
    """All keys by prefix, as of `version`, which changes with every change of a key. `unreadable`: number of keys that
    cannot be decoded."""

    version: str
    keys: Mapping[str, ApiKey]
    unreadable: int = 0

    def authenticate(self, prefix: str, digest: str, now: float) -> ApiKey | None:
        """Return the key with this prefix if it accepts the secret with this digest at `now`; else None."""
        key = self.keys.get(prefix)
        return key if key and key.accepts(digest, now) else None

    @property
    def requires_key(self) -> bool:
        """Whether there is any key, so that every request needs one. A key that cannot be decoded counts too."""
        return bool(self.keys or self.unreadable)


@dataclass(frozen=True, slots=True)
class Act:
    """An entry of the audit log: one act of a caller who manages the service. `details` contain no secret.

    `key`: prefix of the actor's key, None if the service has no keys. `at`: seconds since the epoch. `position`:
    assigned by the store; it orders all acts.
    """

    key: str | None
    tenant: str
    name: str
    target: str
    at: float
    details: Mapping[str, object] = field(default_factory=dict)
    position: str = ""


def new_prefix() -> str:
    return "".join(secrets.choice(PREFIX_LETTERS) for _ in range(PREFIX_LENGTH))


def new_token(prefix: str) -> tuple[str, str]:
    """Create a secret for the key `prefix`: return the whole token, which is shown once, and the secret's digest."""
    secret = secrets.token_urlsafe(32)
    return f"nlm_{prefix}_{secret}", digest_of(secret)


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def parse_token(token: str) -> tuple[str, str] | None:
    """Return the prefix of a token and the digest of its secret; None for a text that is no token."""
    match = TOKEN.fullmatch(token)
    return (match[1], digest_of(match[2])) if match else None
