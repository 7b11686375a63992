"""Idempotency-Key: names a write, so that repeating the request does not repeat the write."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from service.api.repeated_headers import joined_lines
from service.errors import MalformedHeader
from service.records import Attempt

KEY = re.compile(r"[\x21-\x7e]{1,255}")
"""Accepted keys: visible ASCII. Quotation marks, as in the draft of the header, are part of the key."""
REPLAYED_HEADER = "Idempotent-Replayed"
MEANING = (
    "key of this write, 1 to 255 visible ASCII characters: repeated with the same key within `idempotency_seconds` "
    "of GET /limits, a request gets the same answer (`Idempotent-Replayed: true`) and writes nothing"
)


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """Idempotency key of a request, None without one, and a digest of everything else in the request but its body."""

    key: str | None
    request_digest: str

    def attempts(self, body: bytes, count: int = 1) -> list[Attempt]:
        """Return the attempts at the `count` writes of a request with this body; [] without a key."""
        if self.key is None:
            return []
        fingerprint = _digest(self.request_digest.encode(), body)
        return [self._attempt(place, fingerprint) for place in range(count)]

    def line_attempt(self, place: int, line: bytes) -> list[Attempt]:
        """Return the attempt at the write of one line of a stream, whose whole body is not known; [] without a key."""
        return [] if self.key is None else [self._attempt(place, _digest(self.request_digest.encode(), line))]

    def _attempt(self, place: int, fingerprint: str) -> Attempt:
        assert self.key is not None
        return Attempt(f"{_digest(self.key.encode())}:{place}", fingerprint)


NO_KEY = IdempotencyKey(None, "")


async def get_idempotency_key(
    request: Request, idempotency_key: Annotated[str | None, Header(description=MEANING)] = None
) -> IdempotencyKey:
    """Read the Idempotency-Key. Raises MalformedHeader."""
    if idempotency_key is None:
        return NO_KEY
    if not KEY.fullmatch(idempotency_key):
        raise MalformedHeader("Idempotency-Key", "must have 1 to 255 visible ASCII characters")
    headers = request.headers
    parts = (request.method, request.url.path, request.url.query, headers.get("content-type", ""))
    conditions = (joined_lines(request, "if-match"), joined_lines(request, "if-none-match"))
    return IdempotencyKey(idempotency_key, _digest(*(part.encode() for part in (*parts, *conditions))))


def replay_headers(replayed: bool) -> dict[str, str]:
    """Return the header that marks an answer as that of an earlier request."""
    return {REPLAYED_HEADER: "true"} if replayed else {}


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()


IdempotencyKeyDep = Annotated[IdempotencyKey, Depends(get_idempotency_key)]
