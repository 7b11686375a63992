"""Tests of ServiceProcess: a benchmark's service ends with the benchmark, and lists its notes over all pages."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import httpx2
import pytest

from benchmarks.harness import service_process
from benchmarks.harness.service_process import ServiceProcess


def test_service_ends_where_its_benchmark_fails(tiny_checkpoint: Path) -> None:
    pids = []

    def benchmark(folder: str) -> None:
        with ServiceProcess(Path(folder)) as service:
            service.environment["NOTELLM_CHECKPOINT"] = str(tiny_checkpoint)
            service.start()
            pids.append(service.pid)
            raise RuntimeError("the benchmark failed")

    with tempfile.TemporaryDirectory(prefix="nl-") as folder:  # short, since a unix socket's path has a length limit
        with pytest.raises(RuntimeError, match="the benchmark failed"):
            benchmark(folder)
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)


def test_service_lists_the_notes_of_its_index_over_all_pages(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_process, "MAX_PAGE", 2)
    with tempfile.TemporaryDirectory(prefix="nl-") as folder, ServiceProcess(Path(folder)) as service:
        service.environment["NOTELLM_CHECKPOINT"] = str(tiny_checkpoint)
        service.start()
        assert service.listed_ids() == set()
        notes = [{"id": f"n{i}", "title": "tea"} for i in range(5)]
        httpx2.post(f"{service.url}/notes", json=notes, timeout=60).raise_for_status()
        assert service.listed_ids() == {note["id"] for note in notes}


def test_service_that_never_started_needs_no_end(tmp_path: Path) -> None:
    with ServiceProcess(tmp_path) as service:
        assert not service.log.exists()
