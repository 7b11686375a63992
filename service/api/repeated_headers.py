"""Headers that come in several lines."""

from __future__ import annotations

from starlette.requests import Request

from service.errors import MalformedHeader


def joined_lines(request: Request, header: str) -> str:
    """Return the values of all lines of a header, which are one list (RFC 9110, section 5.3); "" without any."""
    return ", ".join(request.headers.getlist(header))


def is_repeated(request: Request, header: str) -> bool:
    """Return whether a header comes in lines that differ. A proxy may have added one that the caller sent, too."""
    return len(set(request.headers.getlist(header))) > 1


def repeated_error(header: str) -> MalformedHeader:
    """Return the error about such a header, of whose values all but the first would be ignored."""
    return MalformedHeader(header, "is given twice, with different values; send one")
