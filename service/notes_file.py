"""Reading notes from files (JSONL, plain or gzip) or standard input, for sample notes and `notellm ingest`."""

from __future__ import annotations

import gzip
import sys
import zlib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any, cast

import orjson
from pydantic import ValidationError

from service.api.schemas.notes import NoteIn

STDIN = Path("-")
"""Path that stands for standard input."""
GZIP = b"\x1f\x8b"
"""First bytes of a gzip file."""
MAX_LINE_BYTES = 2**26
"""Bound on a line of a file, far above the size of a note: a small gzip file may hold gigabytes without a line end."""
SHOWN_BYTES = 1000
"""Bytes that are kept of a line above this bound."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file: a note with the fields of NoteIn, or the reason why it is not one. `number` counts from 1."""

    number: int
    raw: bytes
    note: dict[str, Any] | None
    reason: str | None = None


@dataclass(slots=True)
class NotesFile:
    """A file of notes. Unknown fields are dropped and counted in `ignored`. `position`: bytes read so far."""

    path: Path
    ignored: Counter[str] = field(default_factory=Counter)
    position: int = 0

    @property
    def size(self) -> int | None:
        """Size of the file in bytes, compressed if it is gzip; None for standard input."""
        return None if self.path == STDIN else self.path.stat().st_size

    def lines(self, after: int = 0) -> Iterator[Line]:
        """Yield the non-blank lines after line number `after`. Raises OSError when the file cannot be read."""
        with self._open() as file:
            for number, raw in enumerate(self._raw_lines(file), 1):
                if number > after and raw.strip():
                    yield self._parse(number, raw)

    def _open(self) -> BufferedReader:
        if self.path != STDIN:
            return self.path.open("rb")
        buffer = sys.stdin.buffer
        return buffer if isinstance(buffer, BufferedReader) else BufferedReader(cast(RawIOBase, buffer))

    def _raw_lines(self, file: BufferedReader) -> Iterator[bytes]:
        contents = unpacked(file)
        try:
            for raw in bounded_lines(contents):
                # A pipe cannot tell its position, and has no size to compare it with.
                self.position = self.position + len(raw) if contents is file or not file.seekable() else file.tell()
                yield raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise gzip.BadGzipFile(f"{self.path}: {error}") from error

    def _parse(self, number: int, raw: bytes) -> Line:
        if len(raw) > MAX_LINE_BYTES:
            return Line(number, raw[:SHOWN_BYTES], None, f"longer than {MAX_LINE_BYTES:,} bytes")
        try:
            value = orjson.loads(raw.removeprefix(BOM_UTF8))  # spreadsheets write a BOM before the first line
            if not isinstance(value, dict):
                return Line(number, raw, None, "not a JSON object")
            known = {name: field for name, field in value.items() if name in NoteIn.model_fields}
            self.ignored.update(value.keys() - known.keys())
            # Expiry is left to the service, which knows what it stored before under the same idempotency key.
            NoteIn.model_validate(known)
        except orjson.JSONDecodeError as error:
            return Line(number, raw, None, f"not JSON: {error}")
        except ValidationError as error:
            reasons = [f"{'.'.join(map(str, e['loc'])) or 'note'}: {e['msg']}" for e in error.errors()]
            return Line(number, raw, None, "; ".join(reasons))
        return Line(number, raw, known)


def unpacked(file: BufferedReader) -> BufferedReader | gzip.GzipFile:
    """Return a reader of what a file holds, decompressed if it is gzip by its first bytes, whatever its name."""
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == GZIP else file


def bounded_lines(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    """Yield the lines of a file; one that is longer than MAX_LINE_BYTES is cut to MAX_LINE_BYTES + 1 bytes."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        end = line
        while len(line) > MAX_LINE_BYTES and end and not end.endswith(b"\n"):
            end = file.readline(MAX_LINE_BYTES)
        yield line
