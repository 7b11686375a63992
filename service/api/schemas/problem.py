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
    """One field of a request that is wrong, and why."""

    pointer: str = Field(
        description="JSON pointer: /title in the body, /query/k in the query, /header/x-request-timeout, /path/name; "
        "in an item of /similar/batch and /notes/import from the item on"
    )
    detail: str = Field(description="what the field must be")


def _is_none(value: object) -> bool:
    return value is None


class Problem(BaseModel):
    """Error in the form of RFC 9457. A member that does not apply is left out, wherever the problem is."""

    type: str = Field(description="name of the problem as an address, or about:blank where `status` says all")
    title: str = Field(description="the status in words")
    status: int = Field(description="HTTP status of the answer, or of what the item of a list would have got alone")
    detail: str = Field(description="what is wrong, and what the caller can do")
    instance: str | None = Field(
        None, exclude_if=_is_none, description="the request's id; left out in an item of a list or a stream"
    )
    errors: list[FieldProblem] | None = Field(
        None, exclude_if=_is_none, description="the fields that are wrong; left out where none is"
    )
    retry_after: int | None = Field(
        None,
        exclude_if=_is_none,
        description="seconds after which to try again, as in the header Retry-After; left out where that does not help",
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
