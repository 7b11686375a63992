"""`notellm export-notes` and `notellm import-notes`: all notes of a tenant to a file, and back, over HTTP."""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

import httpx2
import orjson
import typer
from rich.progress import Progress

from service.cli.batches import TOO_LARGE, batches
from service.cli.client import AdminUrl, AsJson, Key, Url, bearer, explain, explain_body, open_client
from service.cli.terminal import complain, err, files_for_owner_alone
from service.cli.transfer import TIMEOUT_SECONDS, Patience, TransferFailed, progress_bars, show_report
from service.disk import sync_file, sync_folder
from service.notes_file import MAX_LINE_BYTES, bounded_lines, unpacked

T = TypeVar("T")
VERSION = 1
"""Version of the export format that is understood."""
BATCH_SIZE = 100
"""Maximum notes in one request of an import, and ids in one request to remove notes."""
HEAD = b'{"export":'
"""First bytes of an export."""
MAX_HEAD_BYTES = 4096
"""Bound on the first line of an export, far above its length."""
GONE = 410
"""Status for a position that is no longer in the log of the service."""


def export_notes(
    file: Annotated[Path, typer.Argument(help="New file to write (JSONL); compressed if its name ends in .gz.")],
    *,
    vectors: Annotated[
        bool, typer.Option(help="Include the vectors, so that an import does not need to run the model.")
    ] = True,
    after: Annotated[str | None, typer.Option(help="Export only changes after this log position.")] = None,
    patience: Annotated[float, typer.Option(help="Seconds to keep retrying while the service is unavailable.")] = 90.0,
    url: Url,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Export all notes to a file. After an interruption, run the same command again to resume."""
    with files_for_owner_alone():
        show_report(lambda: Download(file, url, api_key, vectors, after, patience).run(), as_json)


def import_notes(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="File written by `notellm export-notes`.")],
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace notes that already exist. Required for an export of changes.")
    ] = False,
    patience: Annotated[float, typer.Option(help="Seconds to keep retrying while the service is unavailable.")] = 90.0,
    url: AdminUrl,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Import notes from an export. Vectors computed by the service's model are kept; other notes are read by the model.
    An export of changes (`export-notes --after`) replaces notes with the same IDs and removes the notes removed in it.
    After an interruption, run the same command again. Requires an API key with the scope admin, and notes.write for
    removals."""
    show_report(lambda: Upload(file, url, api_key, replace, patience).run(), as_json)


@dataclass(slots=True)
class Download:
    """One run of `notellm export-notes`. Lines go to FILE.part, which becomes FILE once the last one has arrived."""

    file: Path
    url: str
    api_key: str | None
    vectors: bool
    after: str | None
    patience: float

    def run(self) -> dict[str, Any]:
        """Export the notes. Return the last line of the export, and the seconds taken. Raises TransferFailed,
        OSError."""
        if self.file.exists():
            raise TransferFailed(f"{self.file} already exists: choose a new file")
        started, patience = time.monotonic(), Patience(self.patience)
        headers = bearer(self.api_key) | {"Accept-Encoding": "gzip"}
        with (
            self._locked(),
            open_client(self.url, headers, TIMEOUT_SECONDS) as client,
            progress_bars() as bars,
        ):
            task = bars.add_task("exporting", total=None)
            while (end := self._fetch(client, bars, task, patience)) is None:
                pass
            self._finish()
        return {**end, "seconds": round(time.monotonic() - started, 1)}

    @property
    def _part(self) -> Path:
        return self.file.with_name(f"{self.file.name}.part")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other runs from writing to FILE.part. Raises TransferFailed where one does."""
        with self._part.open("ab") as part:
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_named = os.path.samestat(os.fstat(part.fileno()), self._part.stat())
            except (BlockingIOError, FileNotFoundError):
                is_named = False
            if not is_named:  # locked, or renamed or removed by the other command in between
                raise TransferFailed(f"another command is writing {self._part}: wait for it")
            try:
                yield
            finally:
                if self._part.exists() and not self._part.stat().st_size:
                    self._part.unlink()

    def _fetch(self, client: httpx2.Client, bars: Progress, task: Any, patience: Patience) -> dict[str, Any] | None:
        """Fetch as much as the service sends. Return the last line, or None if the stream broke off."""
        head, last, done = self._resume()
        query = {"vectors": "base64"} if self.vectors else {}
        if head is not None:
            query |= {"after": last or head["after"] or "0-0", "begin": head["begin"]}
            bars.update(task, total=head["notes_about"] or None, completed=done)
        elif self.after:
            query["after"] = self.after
        try:
            with (
                client.stream("GET", "/notes/export", params=query) as response,
                self._part.open("ab") as part,
            ):
                if response.status_code == GONE and head is not None:
                    reason = explain_body(response.read(), response.status_code)
                    raise TransferFailed(
                        f"the export cannot be resumed from {self._part}: {reason} Remove this file to start again"
                    )
                if response.status_code != 200:
                    patience.after(response.status_code, response.read(), response.headers)
                    return None
                return self._copy(response, part, bars, task, head, patience)
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            patience.pause(f"{self.url} does not respond: {error}.")
            return None

    def _copy(
        self,
        response: httpx2.Response,
        part: IO[bytes],
        bars: Progress,
        task: Any,
        head: dict[str, Any] | None,
        patience: Patience,
    ) -> dict[str, Any] | None:
        """Append the lines of an answer. Return the last line, which counts all lines of the file; None if the stream
        broke off. `head`: the first line of the file, if it has lines already."""
        for text in lines_of(response):
            try:
                line = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                raise TransferFailed(f"the answer of {self.url} is not an export of a NoteLLM service") from error
            if "problem" in line:
                patience.pause(f"the service aborted the export: {line['problem']['detail']}")
                return None
            if "export" in line:
                if line["export"] != VERSION:
                    raise TransferFailed(
                        f"the service writes export format {line['export']}, but only format {VERSION} is supported"
                    )
                bars.update(task, total=line["notes_about"] or None)
                if head is not None:
                    self._check_same(head, line)
                    continue
            patience.reset()
            if "end" in line:
                part.flush()
                return self._append_end(part, line)
            part.write(text + b"\n")
            if "id" in line:
                bars.advance(task)
        patience.pause("the connection ended before the export was complete.")
        return None

    def _check_same(self, head: dict[str, Any], line: dict[str, Any]) -> None:
        """Raise TransferFailed if the first line of an answer belongs to another export than the file."""
        # A service of an older version sends neither field.
        in_both = [name for name in ("tenant", "vectors") if name in head and name in line]
        if changed := [name for name in in_both if head[name] != line[name]]:
            differences = ", ".join(f"{name} {head[name]}, here {line[name]}" for name in changed)
            raise TransferFailed(
                f"{self._part} belongs to another export ({differences}): remove it, or resume that export"
            )

    def _append_end(self, part: IO[bytes], line: dict[str, Any]) -> dict[str, Any]:
        """Append the last line, with counts of the whole file."""
        counts = _counts(self._part)
        end = line | {"notes": counts["notes"], "removed": counts["removed"]}
        part.write(orjson.dumps(end) + b"\n")
        return end

    def _resume(self) -> tuple[dict[str, Any] | None, str | None, int]:
        """Return the first line of FILE.part, the log position of its last one, and its number of notes; None, None and
        0 without lines. A last line that was cut off is removed. Raises TransferFailed if it is of another export."""
        if not self._part.exists():
            return None, None, 0
        head, last, notes, size = None, None, 0, 0
        with self._part.open("rb") as part:
            first = part.readline(MAX_HEAD_BYTES)
            if len(first) == MAX_HEAD_BYTES or first[: len(HEAD)] != HEAD[: len(first)]:
                raise TransferFailed(f"{self._part} is not a part of an export: remove it, or choose another file")
            part.seek(0)
            for text in part:
                try:
                    line = orjson.loads(text)
                except orjson.JSONDecodeError:
                    break
                if not text.endswith(b"\n"):
                    break
                size += len(text)
                head = head or line
                last = line.get("log_position", last)
                notes += "id" in line
                if "end" in line:
                    size -= len(text)  # the service sends the last line again
        os.truncate(self._part, size)
        if head is None:
            return None, None, 0
        if head["after"] != self.after:
            raise TransferFailed(
                f"{self._part} belongs to another export, after {head['after']}: remove it, or resume that export"
            )
        return head, last, notes

    def _finish(self) -> None:
        """Turn FILE.part into FILE, compressed if its name says so."""
        with self._part.open("rb") as part:
            sync_file(part)
            if self.file.suffix == ".gz":
                packed = self.file.with_name(f"{self.file.name}.new")
                try:
                    with packed.open("wb") as target:
                        with gzip.open(target, "wb", compresslevel=6) as compressor:
                            shutil.copyfileobj(part, compressor)
                        sync_file(target)
                    packed.replace(self.file)
                except OSError:  # such as a full disk, which needs the room
                    packed.unlink(missing_ok=True)
                    raise
                sync_folder(self.file.parent)  # before the part goes, which is the only other copy
                self._part.unlink()
            else:
                self._part.replace(self.file)
                sync_folder(self.file.parent)


@dataclass(frozen=True, slots=True)
class Contents:
    """Contents of an export file. `after`: log position after which it has the changes; None if it has all notes.
    `lines`: line numbers of the notes, for each note that of its last line. `removed`: ids of the notes that were
    removed, and not written again."""

    after: str | None
    lines: set[int]
    removed: set[str]


@dataclass(slots=True)
class Upload:
    """One run of `notellm import-notes`."""

    file: Path
    url: str
    api_key: str | None
    replace: bool
    patience: float

    def run(self) -> dict[str, Any]:
        """Import the file. Return the counts of results and vectors, and the seconds taken. Raises TransferFailed,
        OSError."""
        if not self.file.is_file():
            raise TransferFailed(f"{self.file} is not a regular file: it is read twice, so write it to a file first")
        started, contents = time.monotonic(), self._check()
        counts: Counter[str] = Counter(created=0, updated=0, unchanged=0, exists=0, expired=0, rejected=0, removed=0)
        vectors: Counter[str] = Counter(kept=0, read=0)
        patience = Patience(self.patience)
        with (
            open_client(self.url, bearer(self.api_key), TIMEOUT_SECONDS) as client,
            progress_bars() as bars,
        ):
            task = bars.add_task("importing", total=len(contents.lines))
            removed = set(contents.removed)
            for item in self._add(client, contents.lines, patience):
                counts[item["status"]] += 1
                vectors[item["vector"] or "none"] += 1
                if problem := item["problem"]:
                    complain(f"{item['id']}: {explain(problem, problem['status'], separator='; ')}")
                if item["status"] == "expired":
                    removed.add(item["id"])  # the service may have an older version of the note, without an expiry
                bars.advance(task)
            if counts.total() != len(contents.lines):
                raise TransferFailed(f"{self.file} changed while it was imported: run the same command again")
            if contents.after is not None:
                counts["removed"] = self._remove(client, removed, patience)
        if vectors["read"]:
            err.print(f"{vectors['read']} notes were read by the model: the file has no vectors of this model for them")
        report = {**counts, "vectors_kept": vectors["kept"], "vectors_read": vectors["read"]}
        return {**report, "seconds": round(time.monotonic() - started, 1)}

    def _check(self) -> Contents:
        """Read the file once, and return what to import. Raises TransferFailed for a file that is not a complete
        export, and for one of changes without `replace`."""
        last: dict[str, int] = {}
        removed: set[str] = set()
        counted: Counter[str] = Counter()
        head = end = None
        for number, text in self._lines():
            try:
                line = orjson.loads(text)
                if not isinstance(line, dict):
                    raise TypeError("not a JSON object")
                head = head or line
                if "removed" in line and "end" not in line:
                    counted["removed"] += 1
                    last.pop(line["removed"], None)
                    removed.add(line["removed"])
                elif "id" in line:
                    counted["notes"] += 1
                    last[line["id"]] = number
                    removed.discard(line["id"])
                end = line if "end" in line else None
            except (orjson.JSONDecodeError, TypeError) as error:
                raise TransferFailed(f"line {number} of {self.file} is not a line of an export: {error}") from error
        if head is None or head.get("export") != VERSION:
            raise TransferFailed(f"{self.file} is not an export of format {VERSION}")
        if head["after"] is not None and not self.replace:
            raise TransferFailed(
                f"{self.file} contains only the changes after {head['after']}. If the service has all earlier changes, "
                "apply it with --replace, which replaces and removes notes; otherwise import an export of all notes"
            )
        if end is None or (end["notes"], end["removed"]) != (counted["notes"], counted["removed"]):
            raise TransferFailed(f"{self.file} is incomplete: the export was interrupted, or lines are missing")
        return Contents(head["after"], set(last.values()), removed)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of the file with their numbers. Raises TransferFailed."""
        try:
            with self.file.open("rb") as file:
                for number, text in enumerate(bounded_lines(unpacked(file)), 1):
                    if len(text) > MAX_LINE_BYTES:
                        raise TransferFailed(f"line {number} of {self.file} is longer than {MAX_LINE_BYTES:,} bytes")
                    yield number, text
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TransferFailed(f"{self.file} is incomplete or not a gzip file: {error}") from error

    def _add(self, client: httpx2.Client, lines: set[int], patience: Patience) -> Iterator[dict[str, Any]]:
        """Add the notes of some lines; yield the result of each, with the note's id, which the service leaves out for a
        note too large to be read. Raises TransferFailed."""

        def send(batch: list[bytes]) -> httpx2.Response:
            headers, body = {"Content-Type": "application/x-ndjson"}, b"".join(batch)
            return client.post("/notes/import", content=body, params={"replace": self.replace}, headers=headers)

        notes = (text for number, text in self._lines() if number in lines)
        for batch in batches(notes, len, BATCH_SIZE):
            answers = self._answers(batch, send, patience, rejection_of_note)
            results = [result for answer in answers for result in answer["results"]]
            if len(results) != len(batch):
                raise TransferFailed(f"{self.url} returned {len(results)} results for {len(batch)} notes")
            for text, result in zip(batch, results, strict=True):
                yield result | {"id": result["id"] or orjson.loads(text)["id"]}

    def _remove(self, client: httpx2.Client, ids: Collection[str], patience: Patience) -> int:
        """Remove the notes with these ids, as far as they exist; return how many were removed."""

        def send(batch: list[str]) -> httpx2.Response:
            return client.post("/notes/delete", json={"ids": batch})

        answers = (self._answers(batch, send, patience) for batch in batches(sorted(ids), len, BATCH_SIZE))
        return sum(answer["count"] for answer in chain.from_iterable(answers))

    def _answers(
        self,
        batch: list[T],
        send: Callable[[list[T]], httpx2.Response],
        patience: Patience,
        rejection: Callable[[httpx2.Response], dict[str, Any]] | None = None,
    ) -> list[dict[str, Any]]:
        """Return the service's answers to a batch: several if it is too large for one request, and so is sent in
        halves. `rejection`: makes an answer from the refusal of a single item that is too large; None ends the run."""
        while True:
            try:
                response = send(batch)
                if response.is_success:
                    patience.reset()
                    return [response.json()]
                if response.status_code == TOO_LARGE and len(batch) > 1:
                    halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
                    return [answer for half in halves for answer in self._answers(half, send, patience, rejection)]
                if response.status_code == TOO_LARGE and rejection:
                    return [rejection(response)]
                patience.after(response.status_code, response.content, response.headers)
            except (httpx2.TransportError, ValueError) as error:  # ValueError: an answer that is not JSON, as a proxy's
                patience.pause(f"{self.url} does not respond like a NoteLLM service: {error}.")


def rejection_of_note(refusal: httpx2.Response) -> dict[str, Any]:
    """Return the answer to an import of one note whose request was refused."""
    detail = explain_body(refusal.content, refusal.status_code)
    problem = {"title": "Too large", "status": refusal.status_code, "detail": detail}
    return {"results": [{"id": None, "status": "rejected", "vector": None, "problem": problem}]}


def lines_of(response: httpx2.Response) -> Iterator[bytes]:
    """Yield the complete lines of an answer, which end with a line feed: notes may contain other line separators
    (U+2028)."""
    rest = b""
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def _counts(path: Path) -> Counter[str]:
    """Count the notes and removals of a file."""
    counts: Counter[str] = Counter()
    with path.open("rb") as file:
        for text in file:
            line = orjson.loads(text)
            counts["notes"] += "id" in line
            counts["removed"] += "removed" in line
    return counts
