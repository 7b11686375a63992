"""Ids of requests: in answers, problems and log lines."""

from __future__ import annotations

import re
from uuid import uuid4

REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")
"""X-Request-Id that is kept as sent; any other is replaced."""


def request_id_of(sent: bytes | None) -> str:
    """Return the X-Request-Id that a caller sent if it is safe in a header and a log, else a new one."""
    value = (sent or b"").decode("latin-1")
    return value if REQUEST_ID.match(value) else uuid4().hex
