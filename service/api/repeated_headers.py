"""Headers that come in several lines."""

from __future__ import annotations

from starlette.requests import Request


def joined_lines(request: Request, header: str) -> str:
    """Return the values of all lines of a header, which are one list (RFC 9110, section 5.3); "" without any."""
    return ", ".join(request.headers.getlist(header))


def is_repeated(request: Request, header: str) -> bool:
    """Return whether a header comes in more than one line."""
    return len(request.headers.getlist(header)) > 1
