"""Rules on the head of a request that hold on every path, checked before anything answers."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

import httptools

ENCODED_SLASH = b"%2F"
"""Part of a path that would be decoded to a slash, so that an id with one would lead to another endpoint or to none."""
SINGLE = (b"authorization", b"content-type", b"host")
"""Headers of which only one value would be heeded. A proxy that adds a second one must not decide whose counts."""


def malformed(target: bytes, headers: Sequence[tuple[bytes, bytes]], http_version: str) -> str | None:
    """Return what is wrong with a head, for its caller; None if nothing is. `headers`: with names in lower case."""
    if not _has_path(target):
        return "The target of the request has no valid path: send the path only."
    if ENCODED_SLASH in target.partition(b"?")[0].upper():
        return "The path has an encoded slash (%2F): no id of a note, and no name of a user or session, contains one."
    if not _is_utf8(target):
        return "The target of the request is not UTF-8: encode each character as UTF-8 before percent-encoding it."
    values: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in SINGLE and values.setdefault(name, value) != value:
            return f"The header {name.decode().title()} is given twice, with different values; send one."
    if b"host" not in values and http_version != "1.0":  # RFC 9112, section 3.2
        return "The header Host is missing."
    return None


def _is_utf8(target: bytes) -> bool:
    """Return whether a target is UTF-8 once decoded. Others would be read with U+FFFD in place of each wrong byte, so
    that different names would become the same one."""
    try:
        unquote_to_bytes(target).decode()
    except UnicodeDecodeError:
        return False
    return True


def _has_path(target: bytes) -> bool:
    """Return whether the target of a request has a path; http://host has none, and uvicorn fails on such a request."""
    if target.startswith(b"/"):  # the parser has validated it
        return True
    try:
        return httptools.parse_url(target).path is not None
    except httptools.HttpParserInvalidURLError:
        return False
