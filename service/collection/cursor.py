"""Cursors of lists: where the next page begins, bound to the filters of the list."""

from __future__ import annotations

import base64
import re

from service.errors import FieldError, InvalidInput
from service.filters import Filter
from service.fingerprint import fingerprint

DIGEST_BYTES = 8
"""Bytes of the digest of a list's filters; CURSOR expects twice as many hexadecimal digits."""
CURSOR = re.compile(r"(\d{1,20}-\d{1,20}) ([0-9a-f]{16})")


def encode_cursor(position: str, where: Filter, begin: str) -> str:
    """Return the cursor of the page after a log position, in a list that began after `begin`. It contains nothing
    secret and is not signed: a forged cursor is only another position."""
    return base64.urlsafe_b64encode(f"{position} {_digest(where, begin)}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str, where: Filter, begin: str) -> str:
    """Return the position of a cursor. Raises InvalidInput for a text that is no cursor, and for the cursor of a list
    with other filters."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except ValueError:
        text = ""
    match = CURSOR.fullmatch(text)
    if match is None:
        raise InvalidInput([FieldError("/query/cursor", "must be `next_cursor` of the previous page")])
    if match[2] != _digest(where, begin):
        raise InvalidInput(
            [FieldError("/query/cursor", "is from a list with other filters; start again without a cursor")]
        )
    return match[1]


def _digest(where: Filter, begin: str) -> str:
    return fingerprint((where, begin), DIGEST_BYTES)
