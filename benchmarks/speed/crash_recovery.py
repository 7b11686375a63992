"""SIGKILL in the middle of an ingest: first the service, then the embedded server; every acknowledged note is checked.

.venv/bin/python benchmarks/speed/crash_recovery.py DATA/kuairec/notes.jsonl.gz [LINES]
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.harness.report import row, write
from benchmarks.harness.service_process import Running


def main(source: Path, lines: int | None) -> None:
    with tempfile.TemporaryDirectory(prefix="nl-") as name:
        folder = Path(name)
        notes = folder / "notes.jsonl"
        with gzip.open(source) as packed:
            notes.write_bytes(b"".join(islice(packed, lines)))
        ids = [json.loads(line)["id"] for line in notes.open()]
        service = Running(folder)
        service.start()
        rows = [row("lines of the file", len(ids), "", against=source.parent.name)]

        ingest = service.cli.ingest(str(notes), "--patience", "0")
        wait_for_line(folder, len(ids) // 3)
        service.end(signal.SIGKILL)
        ingest.wait()
        line = acknowledged_line(folder)
        restart = service.start()
        rows += check(service, folder, ids[:line], "SIGKILL of the service")
        rows.append(row("until ready again", round(restart, 1), "s"))

        ingest = service.cli.ingest(str(notes))
        wait_for_line(folder, 2 * len(ids) // 3)
        killed = time.perf_counter()
        os.kill(service.redis_pid(), signal.SIGKILL)
        line = acknowledged_line(folder)
        wait_for_line(folder, line + 1)
        rows.append(
            row(
                "SIGKILL of the embedded server: until the next batch is stored",
                round(time.perf_counter() - killed, 1),
                "s",
            )
        )
        report = json.loads(ingest.communicate()[0])
        rows += check(service, folder, ids, "SIGKILL of the embedded server, and the rest of the file")
        rows.append(
            row(
                "notes that the resumed ingest sent again",
                report["unchanged"],
                "",
                reach="at most one batch (64)",
                held=report["unchanged"] <= 64,
            )
        )
        service.end()
    write("kill", rows)


def check(service: Running, folder: Path, ids: list[str], what: str) -> list[dict[str, Any]]:
    """Every acknowledged id that was not rejected is there once, at revision 1, and is found."""
    rejects = folder / "notes.jsonl.rejects.jsonl"
    rejected = {json.loads(json.loads(line)["text"])["id"] for line in rejects.open()} if rejects.exists() else set()
    expected = [i for i in ids if i not in rejected]
    lost = doubled = not_found = 0
    with httpx2.Client(base_url=service.url, timeout=60) as client:
        for note_id in expected:
            answer = client.get(f"/notes/{note_id}")
            lost += answer.status_code != 200
            doubled += answer.json().get("revision", 1) != 1
            not_found += client.get(f"/notes/{note_id}/similar", params={"k": 1}).status_code != 200
        indexed = client.get("/readyz").json()["notes"]
    rows = [row(f"{what}: acknowledged notes", len(expected), "", spread=f"{indexed} in the index")]
    for name, count in (("lost", lost), ("written twice", doubled), ("not found by similar", not_found)):
        rows.append(row(f"{what}: {name}", count, "", reach="0", held=count == 0))
    return rows


def acknowledged_line(folder: Path) -> int:
    states = list((folder / "data" / "ingest").glob("*.json"))
    return int(json.loads(states[0].read_text())["line"]) if states else 0


def wait_for_line(folder: Path, line: int) -> None:
    while acknowledged_line(folder) < line:
        time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
