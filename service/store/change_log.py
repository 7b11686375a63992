"""Decoding of Redis's answers about the change log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import structlog

from service.records import ORIGIN, LogBounds, LogEntry

PURGE, RESTORE = "purge", "restore"
"""Ops of entries that are no changes: see LogEntry, and the first entry of a restored log (backup/copying.py)."""
log = structlog.get_logger(__name__)


def decode_entries(answer: Any) -> list[LogEntry]:
    """Decode the answer to XREAD of one stream."""
    return [decode_entry(*entry) for entry in stream_entries(answer)]


def stream_entries(answer: Any) -> Iterator[Any]:
    """Yield the position and the fields of each entry in the answer to XREAD of one stream: RESP3 gives a mapping,
    RESP2 a list of pairs."""
    for entries in answer.values() if isinstance(answer, dict) else [entries for _, entries in answer or ()]:
        yield from entries


def decode_bounds(answer: Any) -> LogBounds:
    """Decode the answer of LOG_BOUNDS."""
    identity, *bounds = answer
    store = (identity or b"").decode()
    if not bounds:
        return LogBounds(None, ORIGIN, cut=False, store=store)
    first, last, cut, kept = bounds
    return LogBounds(
        first.decode() if first else None, last.decode(), bool(cut), kept.decode() if kept else None, store
    )


def decode_entry(position: bytes, values: Sequence[bytes]) -> LogEntry:
    """Decode a log entry, given its fields as alternating names and values. An entry without a known op counts as a
    put, so that the note is read again."""
    fields = fields_of(values)
    note_id, op, by = (fields.get(name, b"").decode(errors="replace") for name in (b"id", b"op", b"by"))
    if op in (PURGE, RESTORE):
        return LogEntry(position.decode(), "", removed=False, purges=op == PURGE)
    if not note_id or op not in ("put", "delete"):
        log.error("log_entry_malformed", position=position.decode(), id=note_id)
    return LogEntry(position.decode(), note_id, op == "delete", by)


def fields_of(values: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the fields of an entry, given alternating names and values."""
    return dict(zip(values[::2], values[1::2], strict=True))
