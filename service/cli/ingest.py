"""Ingest of a file of notes into a running service, over HTTP: in batches, with progress, resumed after a break.

Each batch has an Idempotency-Key, so that it is not stored twice if its answer is lost and it is sent again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import httpx2
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.cli.batches import TOO_LARGE, batches
from service.cli.client import bearer, explain, open_client
from service.cli.terminal import complain
from service.cli.transfer import TIMEOUT_SECONDS, Patience, TransferFailed
from service.disk import sync_file, sync_folder
from service.notes_file import STDIN, Line, NotesFile

BATCH_SIZE = 64
"""Maximum notes of one request, and so the most that are sent again after a break."""
HIDDEN = (401, 403, 404)
"""Statuses of GET /readyz behind a proxy that does not forward it."""


@dataclass(slots=True)
class _State:
    """How far a run is, as its state file says.

    `run`: its name, from which the keys of its requests are made. `line`: the last acknowledged line. `rejected`:
    number of rejected lines up to there. `until`: last line of the next request if a batch was too large and is sent in
    parts; 0 if the next request is a whole batch.
    """

    run: str = field(default_factory=lambda: uuid4().hex)
    line: int = 0
    rejected: int = 0
    until: int = 0


@dataclass(slots=True)
class Ingest:
    """One run of `notellm ingest`. `state_folder` keeps the state of the run of each file, service and model."""

    file: Path
    url: str
    api_key: str | None
    state_folder: Path
    generate: str
    min_score: float | None
    rejects: Path | None
    restart: bool
    patience: float

    def run(self, console: Console) -> dict[str, Any]:
        """Add the notes. Return the counts of notes created, updated and unchanged, of lines of the file rejected
        (including those before a break), the last line, seconds, and notes per second. Raises TransferFailed, and
        OSError if the file cannot be read."""
        rejects_path = self._rejects_path()
        if self.file != STDIN and rejects_path.exists() and rejects_path.samefile(self.file):
            raise TransferFailed(f"{rejects_path} is the file to read: choose another one for --rejects")
        notes = NotesFile(self.file)
        counts: Counter[str] = Counter(created=0, updated=0, unchanged=0, rejected=0)
        started = time.monotonic()
        say = partial(console.print, highlight=False, markup=False)
        with ExitStack() as stack:
            client = stack.enter_context(open_client(self.url, bearer(self.api_key), TIMEOUT_SECONDS))
            state_file = self._state_file(client)
            stack.enter_context(_locked(state_file))
            state = self._resumed(state_file)
            self._remember(state_file, state)
            progress = stack.enter_context(_progress(console))
            rejects = stack.enter_context(_Rejects(rejects_path, append=state.line > 0))
            task = progress.add_task("adding", total=notes.size, rate="")
            if state.line:
                say(f"resuming after line {state.line}; --restart starts at the first line")
            rejected_before = state.rejected
            for batch in _batches(notes.lines(after=state.line), state.until):
                parts = [batch]
                while parts:
                    part = parts.pop(0)
                    if self._add(client, part, state.run, counts, rejects):
                        state.line, state.rejected = part[-1].number, rejected_before + counts["rejected"]
                    else:
                        parts[:0] = part[: len(part) // 2], part[len(part) // 2 :]
                    state.until = parts[0][-1].number if parts else 0
                    self._remember(state_file, state)
                rate = f"{counts.total() / (time.monotonic() - started):.1f} notes/s"
                progress.update(task, completed=notes.position, rate=rate)
        if state.line and not counts.total():
            say(f"nothing was sent: all {state.line} lines were already sent to this model; --restart sends them again")
        for name, count in notes.ignored.items():
            say(f"field {name!r} is not a field of a note: it was left out of {count} notes")
        if state.rejected:
            say(f"rejected lines: {state.rejected}; see {rejects_path}")
        seconds = time.monotonic() - started
        rate_now = round(counts.total() / seconds, 2) if seconds else 0.0
        return {
            **counts,
            "rejected": state.rejected,
            "last_line": state.line,
            "seconds": round(seconds, 1),
            "notes_per_second": rate_now,
        }

    def _add(self, client: httpx2.Client, batch: list[Line], run: str, counts: Counter[str], rejects: _Rejects) -> bool:
        """Send the valid lines of a batch, and count the results of all its lines. Return False if they are too large
        together."""
        valid = [line for line in batch if line.note is not None]
        results = self._post(client, f"{run}-{batch[0].number}-{batch[-1].number}", valid) if valid else []
        if results is None:
            return False
        if len(results) != len(valid):
            raise TransferFailed(f"{self.url} returned {len(results)} results for {len(valid)} notes")
        result_of = dict(zip((line.number for line in valid), results, strict=True))
        for line in batch:  # after the answer, so that rejects of a batch that is sent again are written once
            status, reason = "rejected", line.reason
            if result := result_of.get(line.number):
                status = result["status"]
                reason = explain(result["problem"], TOO_LARGE, separator="; ") if status == "rejected" else None
            counts[status] += 1
            if status == "rejected":
                rejects.write(line, reason)
        return True

    def _post(self, client: httpx2.Client, key: str, lines: list[Line]) -> list[Any] | None:
        """Send lines under an Idempotency-Key and return their results; None if they are too large together. A line
        that is too large alone is rejected. Requests are retried for `patience` seconds without a connection, and after
        409 (the lines are being stored), 429, 502, 503 and 504."""
        patience = Patience(self.patience, self._advice)
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        body = orjson.dumps([line.note for line in lines])
        while True:
            try:
                response = client.post("/notes", content=body, params=self._params, headers=headers)
                if response.status_code == 207:
                    results: list[Any] = response.json()["results"]
                    return results
                if response.status_code == TOO_LARGE:
                    return [_rejection(response)] if len(lines) == 1 else None
                patience.after(response.status_code, response.content, response.headers)
            except (httpx2.TransportError, ValueError) as error:
                patience.pause(f"{self.url} does not respond: {error}.")

    @property
    def _params(self) -> dict[str, Any]:
        """Query parameters of POST /notes: `generate` and `min_score`, if given."""
        params = {"generate": self.generate or None, "min_score": self.min_score}
        return {name: value for name, value in params.items() if value is not None}

    @property
    def _advice(self) -> str:
        """Advice of the error that ends the run, which has sent a part of the file. A second run that starts at the
        first line would store notes without ids twice."""
        if self.file == STDIN:
            return "Standard input cannot be resumed: run the command with the lines that are missing."
        return f"Run the same command again{', without --restart,' if self.restart else ''} to resume."

    def _rejects_path(self) -> Path:
        name = "stdin" if self.file == STDIN else self.file.name
        return self.rejects or Path(f"{name}.rejects.jsonl")

    def _state_file(self, client: httpx2.Client) -> Path | None:
        """File that keeps the last acknowledged line; None for standard input, which cannot be resumed."""
        if self.file == STDIN:
            return None
        stat = self.file.stat()
        key = f"{self.file.resolve()} {stat.st_size} {stat.st_mtime_ns} {self.url} {self.generate}"
        key += f" {self._space(client)}"
        key += f" {self.api_key}" if self.api_key else ""
        key += "" if self.min_score is None else f" {self.min_score}"
        return self.state_folder / "ingest" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def _space(self, client: httpx2.Client) -> str:
        """Return the vector space of the model that serves; "" if a proxy does not forward GET /readyz. A service that
        does not answer or has not loaded its model is asked again for `patience` seconds. Raises TransferFailed."""
        patience = Patience(self.patience)
        while True:
            try:
                response = client.get("/readyz")
                if response.status_code in HIDDEN:
                    complain(f"GET /readyz returned {response.status_code}: a change of the model cannot be detected")
                    return ""
                if space := response.json().get("space"):
                    return str(space)
                patience.pause(f"{self.url} has not loaded its model yet.")
            except (httpx2.TransportError, ValueError, AttributeError) as error:
                patience.pause(f"{self.url} does not respond: {error}.")

    def _resumed(self, path: Path | None) -> _State:
        """Return the state of the run that this one resumes, or a new one."""
        if not self.restart and path and path.is_file():
            try:
                stored = json.loads(path.read_text())
                line, rejected, until = stored["line"], stored.get("rejected", 0), stored.get("until", 0)
                return _State(stored.get("run") or uuid4().hex, int(line), int(rejected), int(until))
            except (ValueError, KeyError, AttributeError):  # cut off by a power failure
                complain(f"{path} cannot be read: starting at the first line")
        return _State()

    def _remember(self, path: Path | None, state: _State) -> None:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            with fresh.open("wb") as file:
                file.write(json.dumps({"file": str(self.file), "url": self.url, **asdict(state)}).encode())
                sync_file(file)
            fresh.replace(path)
            sync_folder(path.parent)


@contextmanager
def _locked(state_file: Path | None) -> Iterator[None]:
    """Keep another run with the same state file out. Raises TransferFailed where one is under way."""
    if state_file is None:
        yield
        return
    state_file.parent.mkdir(parents=True, exist_ok=True)
    with state_file.with_suffix(".lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TransferFailed("another command is sending this file to this service: wait for it") from error
        yield


def _batches(lines: Iterator[Line], until: int) -> Iterator[list[Line]]:
    """Yield the lines up to the number `until` as the first batch, and then batches of all others. So a request that an
    interrupted run may have sent is repeated with the same lines and under the same idempotency key."""
    first: list[Line] = []
    while until and (not first or first[-1].number < until) and (line := next(lines, None)):
        first.append(line)
    if first:
        yield first
    yield from batches(lines, lambda line: len(line.raw), BATCH_SIZE)


def _rejection(refusal: httpx2.Response) -> dict[str, Any]:
    """Return the result of a line whose request was refused, with the problem if a proxy did not replace it."""
    problem = refusal.json() if "json" in refusal.headers.get("content-type", "") else None
    return {"status": "rejected", "problem": problem}


class _Rejects:
    """The file of rejected lines, created at the first one: {"line", "reason", "text"} each."""

    def __init__(self, path: Path, append: bool) -> None:
        self._path = path
        self._mode = "ab" if append else "wb"
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Rejects:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file:
            self._file.close()

    def write(self, line: Line, reason: str | None) -> None:
        self._file = self._file or self._path.open(self._mode)
        text = line.raw.decode("utf-8", "replace").rstrip("\n")
        self._file.write(orjson.dumps({"line": line.number, "reason": reason, "text": text}) + b"\n")
        self._file.flush()


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[rate]}"))
    return Progress(
        *columns, TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console
    )
