"""The body of every error: application/problem+json (RFC 9457)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches

from pydantic import BaseModel, Field

MAX_POINTER = 256
"""Bound on the characters of a pointer: an unknown field's name may be as long as a note."""

MAX_SHOWN = 64
"""Bound on the characters of an unknown name that an error looks at."""
UNKNOWN_FIELD = "unknown_field"
"""Type of pydantic's errors about unknown fields; their context has the `known` ones."""


class FieldProblem(BaseModel):
    pointer: str = Field(
        description="JSON pointer: /title in the body, /query/k in the query, /header/x-request-timeout, /path/name; "
        "in an item of /similar/batch and /notes/import from the item on"
    )
    detail: str


class Problem(BaseModel):
    """RFC 9457. `detail` says what the caller can do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = Field(None, description="the request's id")
    errors: list[FieldProblem] | None = None
    retry_after: int | None = Field(
        None,
        description="seconds after which to try again, as in the header Retry-After; left out by a connection that is "
        "refused",
    )


def json_pointer(location: Sequence[str | int]) -> str:
    """Convert a location to a JSON pointer (RFC 6901): ("body", "title") -> "/title", ("query", "k") -> "/query/k"."""
    parts = list(location[1:]) if location and location[0] == "body" else list(location)
    if parts and parts[-1] == "[key]":  # pydantic's mark of an error about a key, which is the part before
        parts.pop()
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
    return pointer if len(pointer) <= MAX_POINTER else pointer[:MAX_POINTER] + "…"


def hint_at_known(name: str, known: Collection[str]) -> str:
    """Return the end of an error about an unknown name: the nearest of the known ones, or all of them."""
    nearest = get_close_matches(name[:MAX_SHOWN], known, 1)
    return f"did you mean {nearest[0]}?" if nearest else f"known are: {', '.join(sorted(known)) or 'none'}"
