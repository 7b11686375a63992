"""Cursors of lists: where the next page begins, bound to the filters of the list and to its store."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from service.collection.log_order import LogEnd
from service.errors import FieldError, InvalidInput
from service.filters import Filter
from service.fingerprint import fingerprint

DIGEST_BYTES = 8
"""Bytes of the digest of a list's filters; CURSOR expects twice as many hexadecimal digits."""
CURSOR = re.compile(r"(\d{1,20}-\d{1,20}) ([0-9a-f]{16}) (\d{1,20}-\d{1,20}) ([0-9a-f]{0,32})")


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page of a list begins: after the log position `position`. `log_end`: end of the log when the page before
    was read."""

    position: str
    log_end: LogEnd


def encode_cursor(cursor: Cursor, where: Filter, begin: str) -> str:
    """Return a cursor as text, for a list that began after `begin`. It contains nothing secret and is not signed: a
    forged cursor is only another position."""
    end = cursor.log_end
    text = f"{cursor.position} {_digest(where, begin)} {end.position} {end.store}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, where: Filter, begin: str) -> Cursor:
    """Return the cursor that a text has. Raises InvalidInput for a text that is no cursor, and for the cursor of a list
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
    return Cursor(match[1], LogEnd(match[3], match[4]))


def _digest(where: Filter, begin: str) -> str:
    return fingerprint((where, begin), DIGEST_BYTES)
