"""Contract step: the tests of the engine's and the index's contracts, run by PyTorch and FAISS on the card."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

from benchmarks import ROOT
from benchmarks.gpu_kit.options import LEFT_OUT, Options
from benchmarks.harness.report import Row, row

ENGINE_TESTS = tuple(
    f"tests/model/inference/test_{name}.py"
    for name in (
        "gpu", "long_notes", "scheduler", "category_scoring", "candidate_scoring", "generation_adapter", "beam_search",
        "engine",
    )
)  # fmt: skip
"""Files of the engine's contract, fast ones first. NOTELLM_TEST_DEVICE says where their engines run."""
INDEX_TESTS = ("tests/service/index/test_gpu.py", "tests/service/index/test_sealed.py")
"""Files of the index's contract, which use a card if FAISS finds one."""
REHEARSED = INDEX_TESTS[:1]
MAX_PROCESSES = 4
"""Bound on the files tested in parallel; nothing is timed here."""
JUNIT_COUNTS = ("tests", "failures", "errors", "skipped")
NOT_COLLECTED = (2, 4)
"""Exit statuses of pytest if a file of tests, or a conftest.py, could not be imported."""
MISSING_MODULE = re.compile(r"No module named '([\w.]+)'")


def rows(options: Options) -> Iterator[Row]:
    """Yield one row for each file of tests. Raises ModuleNotFoundError if pytest or its plugin is missing."""
    for module in ("pytest", "pytest_timeout"):  # pyproject.toml configures both
        import_module(module)
    files = REHEARSED if options.rehearsal else (*INDEX_TESTS, *ENGINE_TESTS)
    with ThreadPoolExecutor(min(MAX_PROCESSES, os.cpu_count() or 1)) as pool:
        yield from pool.map(run_tests, files)


def run_tests(file: str) -> Row:
    """Run the tests of a file in their own process, since a CUDA error makes the process unusable."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
        pytest = subprocess.run(
            [*command, f"--junitxml={report}", file],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        counts = report.read_text("utf-8") if report.is_file() else ""
    print(pytest.stdout, file=sys.stderr, flush=True)
    if pytest.returncode in NOT_COLLECTED and (missing := MISSING_MODULE.search(pytest.stdout)):
        return row(file, LEFT_OUT, spread=f"no module {missing[1]} here")
    return counted(file, counts, pytest.returncode, time.perf_counter() - started)


def counted(file: str, report: str, status: int, seconds: float) -> Row:
    """Return the row of a file's tests: how many passed, and whether none failed. `report`: JUnit's XML, "" if the
    process ended before writing it."""
    suite = ElementTree.fromstring(report or "<none/>").find("testsuite")
    counts = {} if suite is None else suite.attrib
    tests, failures, errors, skipped = (int(counts.get(name, 0)) for name in JUNIT_COUNTS)
    return row(
        file, f"{tests - failures - errors - skipped} passed",
        spread=f"{failures + errors} failed, {skipped} skipped, status {status}, {seconds:.0f} s",
        target="none fails", met=status == 0 and tests > skipped,
    )  # fmt: skip
