"""Search of files for what must not be in them any more, byte by byte."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import orjson

CHUNK_BYTES = 4 * 2**20
"""Bytes of a file that are looked through at a time."""
MIN_PIECE, MAX_PIECES = 32, 64
"""A text is looked for in pieces of at least so many bytes, and in at most so many pieces: a remnant of twice the
length of a piece is found wherever it begins. Shorter pieces would be found in other texts too."""


@dataclass(frozen=True, slots=True)
class Needle:
    """A text that is looked for in any of its `forms`; `name` is what the report calls it."""

    name: str
    forms: tuple[bytes, ...]

    @classmethod
    def of_id(cls, note_id: str) -> Needle:
        """Return the needle for the id of a note."""
        return cls(f"id {note_id}", _forms(note_id))

    @classmethod
    def of_text(cls, name: str, text: str) -> Needle:
        """Return the needle for a text: its pieces, as UTF-8 and as JSON in both ways of writing it, and with the ends
        of lines of every system: a file may have others than the note had."""
        forms: dict[bytes, None] = {}
        lines = text.replace("\r\n", "\n")
        for form in chain.from_iterable(map(_forms, dict.fromkeys((text, lines, lines.replace("\n", "\r\n"))))):
            size = max(MIN_PIECE, -(-len(form) // MAX_PIECES))
            pieces = [form[begin : begin + size] for begin in range(0, len(form), size)]
            if len(pieces) > 1 and len(pieces[-1]) < MIN_PIECE:
                pieces[-1] = form[-size:]
            forms |= dict.fromkeys(pieces)
        return cls(name, tuple(forms))


@dataclass(frozen=True, slots=True)
class Finding:
    """A needle that was found: in which file, and at which of its bytes first."""

    needle: str
    file: str
    offset: int


@dataclass(frozen=True, slots=True)
class Search:
    """Result of a search through all files of some folders."""

    files: int
    bytes: int
    findings: tuple[Finding, ...]


def search_folders(folders: Iterable[Path], needles: Sequence[Needle]) -> Search:
    """Look through every file below the folders. Raises OSError where one, or a folder, cannot be read."""
    files = size = 0
    findings: list[Finding] = []
    distinct = {path.resolve(): path for folder in folders for path in _files(folder)}
    for path in sorted(distinct.values()):
        try:
            length, findings_of_file = _search_file(path, needles)
        except FileNotFoundError:  # a file of the server, or a snapshot, that another one has replaced
            continue
        files, size = files + 1, size + length
        findings += findings_of_file
    # A file that the server has replaced is removed by a thread of its own, a moment later.
    return Search(files, size, tuple(finding for finding in findings if Path(finding.file).exists()))


def _forms(text: str) -> tuple[bytes, ...]:
    """Return how a text may be written: as it is, and within a string of JSON."""
    escaped = orjson.dumps(text)[1:-1], json.dumps(text)[1:-1].encode()
    return tuple(dict.fromkeys((text.encode(), *escaped)))


def _files(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, also through links: the store's files may lie on another disk. Raises OSError
    for a folder that cannot be listed."""
    walked: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=_raise_unless_gone, followlinks=True):
        if os.path.realpath(parent) in walked:
            folders.clear()
            continue
        walked.add(os.path.realpath(parent))
        yield from (path for path in (Path(parent, name) for name in names) if _is_file(path))


def _raise_unless_gone(error: OSError) -> None:
    """Raise the error of listing a folder, but for one that was removed meanwhile."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _is_file(path: Path) -> bool:
    """Return whether there is a file. Raises OSError where that cannot be told, as Path.is_file of Python 3.14 does
    not."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:  # a link to nothing
        return False


def _search_file(path: Path, needles: Sequence[Needle]) -> tuple[int, list[Finding]]:
    """Return the length of a file, and the first place of each needle in it."""
    overlap = max((len(form) for needle in needles for form in needle.forms), default=1) - 1
    findings: dict[str, Finding] = {}
    begin, tail = 0, b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            content = tail + chunk
            for needle in needles:
                if needle.name not in findings:
                    places = [place for form in needle.forms if (place := content.find(form)) >= 0]
                    if places:
                        findings[needle.name] = Finding(needle.name, str(path), begin - len(tail) + min(places))
            begin += len(chunk)
            tail = content[-overlap:] if overlap else b""
    return begin, list(findings.values())
