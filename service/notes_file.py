"""Files of notes: JSONL, plain or gzip, or standard input. One reader for sample notes and for `notellm ingest`."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson
from pydantic import ValidationError

from service.api.schemas.notes import NoteIn

STDIN = Path("-")


@dataclass(frozen=True, slots=True)
class Line:
    """`number` counts from 1. Either a note, as the wire wants it, or the reason why there is none."""

    number: int
    raw: bytes
    note: dict[str, Any] | None
    reason: str | None = None


@dataclass(slots=True)
class NotesFile:
    """Fields that a note does not have are left out, and counted in `ignored`. `position`: bytes read of the file."""

    path: Path
    ignored: Counter[str] = field(default_factory=Counter)
    position: int = 0

    @property
    def size(self) -> int | None:
        """Of the file as it lies on disk; None for standard input."""
        return None if self.path == STDIN else self.path.stat().st_size

    def lines(self, after: int = 0) -> Iterator[Line]:
        """Non-blank lines behind number `after`. OSError when the file cannot be read."""
        with self._open() as file:
            for number, raw in enumerate(self._raw_lines(file), 1):
                if number > after and raw.strip():
                    yield self._parse(number, raw)

    def _open(self) -> IO[bytes]:
        return sys.stdin.buffer if self.path == STDIN else self.path.open("rb")

    def _raw_lines(self, file: IO[bytes]) -> Iterator[bytes]:
        packed = self.path.suffix == ".gz"
        try:
            for raw in gzip.GzipFile(fileobj=file) if packed else file:
                self.position = file.tell() if packed else self.position + len(raw)
                yield raw
        except (EOFError, zlib.error) as error:
            raise gzip.BadGzipFile(f"{self.path}: {error}") from error

    def _parse(self, number: int, raw: bytes) -> Line:
        try:
            value = orjson.loads(raw)
            if not isinstance(value, dict):
                return Line(number, raw, None, "not a JSON object")
            known = {k: v for k, v in value.items() if k in NoteIn.model_fields}
            self.ignored.update(value.keys() - known.keys())
            NoteIn.model_validate(known)
        except orjson.JSONDecodeError as error:
            return Line(number, raw, None, f"not JSON: {error}")
        except ValidationError as error:
            reasons = [f"{'.'.join(map(str, e['loc'])) or 'note'}: {e['msg']}" for e in error.errors()]
            return Line(number, raw, None, "; ".join(reasons))
        return Line(number, raw, known)
