"""The service of a benchmark ends with it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from benchmarks.harness.service_process import ServiceProcess


def test_service_ends_where_its_benchmark_fails(tiny_checkpoint: Path) -> None:
    pids = []

    def benchmark(folder: str) -> None:
        with ServiceProcess(Path(folder)) as service:
            service.environment["NOTELLM_CHECKPOINT"] = str(tiny_checkpoint)
            service.start()
            pids.append(service.pid)
            raise RuntimeError("the benchmark failed")

    with tempfile.TemporaryDirectory(prefix="nl-") as folder:  # short: a unix socket's path is limited
        with pytest.raises(RuntimeError, match="the benchmark failed"):
            benchmark(folder)
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)


def test_service_that_never_started_needs_no_end(tmp_path: Path) -> None:
    with ServiceProcess(tmp_path) as service:
        assert not service.log.exists()
