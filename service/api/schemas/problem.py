"""The body of every error: application/problem+json (RFC 9457)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from functools import lru_cache

from pydantic import BaseModel, Field

MAX_POINTER = 256
"""Bound on the characters of a pointer: an unknown field's name may be as long as a note."""

MAX_SHOWN = 64
"""Bound on the characters of an unknown name that an error shows, or that are compared with the known names."""
UNKNOWN_FIELD = "unknown_field"
"""Type of pydantic's errors about unknown fields; their context has the `known` ones."""


class FieldProblem(BaseModel):
    """An invalid field of a request, and what is wrong with it."""

    pointer: str = Field(
        description="JSON pointer to the field, such as /title in the body, /query/k, /header/x-request-timeout or "
        "/path/name; in an item of /similar/batch and /notes/import, it starts at the item"
    )
    detail: str = Field(description="what is wrong, or what the field must be")


def _is_none(value: object) -> bool:
    return value is None


class Problem(BaseModel):
    """Error in the form of RFC 9457 (problem details). Members that do not apply are omitted."""

    type: str = Field(description="URI that identifies the problem, or about:blank if `status` says all")
    title: str = Field(description="standard phrase of the status")
    status: int = Field(
        description="HTTP status of the answer; in an item of a list, the status that the item would have had as "
        "a request of its own"
    )
    detail: str = Field(description="what is wrong, and what you can do")
    instance: str | None = Field(
        None,
        exclude_if=_is_none,
        description="id of the request (X-Request-Id); omitted in an item of a list or a stream",
    )
    errors: list[FieldProblem] | None = Field(
        None, exclude_if=_is_none, description="invalid fields; omitted if there are none"
    )
    retry_after: int | None = Field(
        None,
        exclude_if=_is_none,
        description="seconds after which to try again, as in the header Retry-After; omitted if that does not help",
    )


def json_pointer(location: Sequence[str | int]) -> str:
    """Convert a location to a JSON pointer (RFC 6901): ("query", "k") -> "/query/k"."""
    parts = list(location)
    if parts and parts[-1] == "[key]":  # pydantic's mark of an error about a key, which is the part before
        parts.pop()
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
    return pointer if len(pointer) <= MAX_POINTER else pointer[:MAX_POINTER] + "…"


def hint_at_known(name: str, known: Collection[str]) -> str:
    """Return the end of an error about an unknown name: the nearest of the known ones, or all of them."""
    return _hint(name[:MAX_SHOWN], tuple(known))


@lru_cache(1024)  # a client with a wrong name sends it in every note, and the search takes 40 to 100 us
def _hint(name: str, known: tuple[str, ...]) -> str:
    nearest = get_close_matches(name, known, 1)
    return f"did you mean {nearest[0]}?" if nearest else f"known are: {', '.join(sorted(known)) or 'none'}"
