"""Byte-by-byte search of files for what must no longer be in them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import orjson

CHUNK_BYTES = 4 * 2**20
"""Bytes of a file that are searched at a time."""
MIN_PIECE, MAX_PIECES = 32, 64
"""Least length of a piece in bytes, and most pieces, in which a text is searched for: a remnant of twice the length of
a piece is found wherever it begins. Shorter pieces would be found in other texts too."""
LOST_AND_FOUND = "lost+found"
"""Folder at the top of a volume (ext4) for what a check of the volume finds; often root alone can list it."""


@dataclass(frozen=True, slots=True)
class Needle:
    """A text that is searched for in any of its `forms`; `name` is its name in the report."""

    name: str
    forms: tuple[bytes, ...]

    @classmethod
    def of_id(cls, note_id: str) -> Needle:
        """Return the needle for the id of a note."""
        return cls(f"id {note_id}", _forms(note_id))

    @classmethod
    def of_text(cls, name: str, text: str) -> Needle:
        """Return the needle for a text: its pieces, as UTF-8 and as JSON with and without escapes, and with the line
        ends of every system, since a file may have others than the note had."""
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
    """Occurrence of a needle: the file, and the offset in bytes of its first match."""

    needle: str
    file: str
    offset: int


@dataclass(frozen=True, slots=True)
class Search:
    """Result of a search through all files of some folders. `unread`: files and folders that could not be read, each
    with the reason."""

    files: int
    bytes: int
    findings: tuple[Finding, ...]
    unread: tuple[str, ...] = ()


def search_folders(folders: Iterable[Path], needles: Sequence[Needle]) -> Search:
    """Search every file below the folders."""
    files = size = 0
    findings: list[Finding] = []
    paths, unread = files_below(folders)
    for path in paths:
        try:
            length, findings_of_file = _search_file(path, needles)
        except FileNotFoundError:  # a file of the server, or a snapshot, that was replaced meanwhile
            continue
        except OSError as error:
            unread.append(f"{path}: {error.strerror}")
            continue
        files, size = files + 1, size + length
        findings += findings_of_file
    # The server removes a replaced file in a thread of its own, a moment later; findings in removed files do not count.
    return Search(files, size, tuple(finding for finding in findings if Path(finding.file).exists()), tuple(unread))


def _forms(text: str) -> tuple[bytes, ...]:
    """Return the forms in which a text may be written: as UTF-8, and within a JSON string."""
    escaped = orjson.dumps(text)[1:-1], json.dumps(text)[1:-1].encode()
    return tuple(dict.fromkeys((text.encode(), *escaped)))


def files_below(folders: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Return every file below the folders once, following links, since the store's files may lie on another disk; and
    the reasons why folders or their entries could not be read."""
    files: dict[Path, Path] = {}
    walked: set[str] = set()
    errors: list[OSError] = []
    for folder in folders:
        for parent, below, names in os.walk(folder, onerror=errors.append, followlinks=True):
            if os.path.realpath(parent) in walked:
                below.clear()
                continue
            walked.add(os.path.realpath(parent))
            for path in (Path(parent, name) for name in names):
                try:
                    if stat.S_ISREG(path.stat().st_mode):
                        files[path.resolve()] = path
                except OSError as error:
                    errors.append(error)
    return sorted(files.values()), [
        f"{error.filename}: {error.strerror}" for error in errors if not _is_ignorable(error)
    ]


def _is_ignorable(error: OSError) -> bool:
    """Return whether a path that cannot be read has no data of a store: it no longer exists, is a link to nothing, or
    is LOST_AND_FOUND."""
    if isinstance(error, FileNotFoundError):
        return True
    path = Path(error.filename)
    return path.name == LOST_AND_FOUND and path.parent.resolve().is_mount()


def _search_file(path: Path, needles: Sequence[Needle]) -> tuple[int, list[Finding]]:
    """Return the length of a file, and the first finding of each needle in it."""
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
