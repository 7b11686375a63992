"""Answers of Redis about the change log, decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import structlog
from redis.exceptions import ResponseError

from service.records import ORIGIN, LogBounds, LogEntry

PURGE = "purge"
"""The op of an entry that is no change: see LogEntry."""
log = structlog.get_logger(__name__)


def decode_entries(answer: Any) -> list[LogEntry]:
    """Decode the answer to XREAD of one stream: RESP3 gives a mapping, RESP2 a list of pairs."""
    return [decode_entry(*entry) for entry in stream_entries(answer)]


def stream_entries(answer: Any) -> Iterator[Any]:
    """Yield the position and the fields of each entry in the answer to XREAD of one stream."""
    streams = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer or ()]
    for stream in streams:
        yield from _flat(stream)


def decode_bounds(info: Any, kept: Any, entry: str) -> LogBounds:
    """Decode the answers to XINFO STREAM and to XRANGE of one entry; raise an answer that is an error."""
    for answer in (info, kept):
        if isinstance(answer, ResponseError) and "no such key" in str(answer).lower():
            return LogBounds(None, ORIGIN, cut=False)
        if isinstance(answer, Exception):
            raise answer
    first = info["first-entry"]
    cut = info.get("entries-added", float("inf")) > info["length"]  # Redis before 7 does not say; then assume so
    last = info["last-generated-id"].decode()
    return LogBounds(first[0].decode() if first else None, last, cut, entry if kept else None)


def decode_entry(position: bytes, fields: Mapping[bytes, bytes]) -> LogEntry:
    """Decode a log entry. One without a known op counts as a put, so that the note is read again."""
    note_id, op, by = (fields.get(name, b"").decode(errors="replace") for name in (b"id", b"op", b"by"))
    if op == PURGE:
        return LogEntry(position.decode(), "", removed=False, purges=True)
    if not note_id or op not in ("put", "delete"):
        log.error("log_entry_malformed", position=position.decode(), id=note_id)
    return LogEntry(position.decode(), note_id, op == "delete", by)


def _flat(entries: Any) -> list[Any]:
    """Return the entries of a stream in the shape of RESP2; RESP3 wraps them in one more list."""
    return entries[0] if entries and isinstance(entries[0], list) else entries
