"""SIGKILL during an ingest, first of the service, then of the embedded server; every acknowledged note is checked.

python -m benchmarks.speed.crash_recovery DATA/kuairec/notes.jsonl.gz [LINES]
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import httpx2

from benchmarks.harness.report import Row, row, write
from benchmarks.harness.service_process import POLL_SECONDS, ServiceProcess

INGEST_BATCH_SIZE = 64
"""Notes of one ingest request; a resumed ingest may send at most this many again."""


@dataclass(frozen=True, slots=True)
class Check:
    """Number of acknowledged notes and of notes in the index; then how many of the acknowledged ones are lost, written
    twice or missing from the index."""

    acknowledged: int
    indexed: int
    lost: int
    written_twice: int
    not_indexed: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Checks after each SIGKILL; seconds until the service was ready again, and until the next batch was stored;
    notes that the resumed ingest sent again."""

    lines: int
    service_killed: Check
    restart: float
    server_killed: Check
    next_batch: float
    sent_again: int


def measure(source: Path, lines: int | None) -> Figures:
    """Ingest the first `lines` of a file (None: all), with a SIGKILL at one third and at two thirds of them."""
    with tempfile.TemporaryDirectory(prefix="nl-") as name, ServiceProcess(Path(name)) as service:
        folder = service.folder
        notes = folder / "notes.jsonl"
        with gzip.open(source) as packed:
            notes.write_bytes(b"".join(islice(packed, lines)))
        ids = [json.loads(line)["id"] for line in notes.open()]
        service.start()

        ingest = service.ingest(str(notes), "--patience", "0")
        wait_for_line(folder, len(ids) // 3)
        service.stop(signal.SIGKILL)
        ingest.wait()
        line = acknowledged_line(folder)
        restart = service.start()
        service_killed = check(service, folder, ids[:line])

        ingest = service.ingest(str(notes))
        wait_for_line(folder, 2 * len(ids) // 3)
        killed = time.perf_counter()
        os.kill(service.redis_pid(), signal.SIGKILL)
        line = acknowledged_line(folder)
        wait_for_line(folder, line + 1)
        next_batch = time.perf_counter() - killed
        report = json.loads(ingest.communicate()[0])
        server_killed = check(service, folder, ids)
    return Figures(len(ids), service_killed, restart, server_killed, next_batch, report["unchanged"])


def check(service: ServiceProcess, folder: Path, ids: Sequence[str]) -> Check:
    """Check that each acknowledged note that was not rejected is stored once, at revision 1, and in the index."""
    rejects = folder / "notes.jsonl.rejects.jsonl"
    rejected = {json.loads(json.loads(line)["text"])["id"] for line in rejects.open()} if rejects.exists() else set()
    expected = [note_id for note_id in ids if note_id not in rejected]
    lost = written_twice = 0
    with httpx2.Client(base_url=service.url, timeout=60) as client:
        for note_id in expected:
            answer = client.get(f"/notes/{note_id}")
            lost += answer.status_code != 200
            written_twice += answer.json().get("revision", 1) != 1
    # GET /notes/{id}/similar would not show it: it takes the vector from the store if the index lacks the note.
    indexed = service.listed_ids()
    return Check(len(expected), len(indexed), lost, written_twice, len(set(expected) - indexed))


def acknowledged_line(folder: Path) -> int:
    """Return the last line of the file that the ingest has recorded as acknowledged."""
    states = list((folder / "data" / "ingest").glob("*.json"))
    return int(json.loads(states[0].read_text())["line"]) if states else 0


def wait_for_line(folder: Path, line: int) -> None:
    """Wait until a line of the file is acknowledged."""
    while acknowledged_line(folder) < line:
        time.sleep(POLL_SECONDS)


def rows(figures: Figures, data: str) -> list[Row]:
    """Return the rows of the result; `data` names the data set."""
    return [
        row(f"lines of the ingested file, {data}", figures.lines),
        *check_rows("SIGKILL of the service", figures.service_killed),
        row("SIGKILL of the service: time until ready", round(figures.restart, 1), "s"),
        row("SIGKILL of the embedded server: time until the next batch is stored", round(figures.next_batch, 1), "s"),
        *check_rows("SIGKILL of the embedded server, then the rest of the file", figures.server_killed),
        row(
            "notes resent by the resumed ingest", figures.sent_again,
            target=f"≤ one batch ({INGEST_BATCH_SIZE})", met=figures.sent_again <= INGEST_BATCH_SIZE,
        ),
    ]  # fmt: skip


def check_rows(what: str, check: Check) -> list[Row]:
    counts = {
        "lost": check.lost,
        "written twice": check.written_twice,
        "missing from the index": check.not_indexed,
    }
    what = f"{what}: acknowledged notes"
    return [
        row(what, check.acknowledged, spread=f"{check.indexed} in the index"),
        *(row(f"{what} {name}", count, target="0", met=count == 0) for name, count in counts.items()),
    ]


if __name__ == "__main__":
    path, lines = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None
    write("crash_recovery", rows(measure(path, lines), path.resolve().parent.name))
