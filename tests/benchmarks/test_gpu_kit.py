"""Tests of the GPU kit without a card: packed parts join and run, and each step ends and reports what it skipped."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_kit import __main__ as command_line
from benchmarks.gpu_kit import run, start
from benchmarks.gpu_kit.contract import counted
from benchmarks.gpu_kit.options import LEFT_OUT, Options
from benchmarks.gpu_kit.pack import add_file, as_wheel, pack
from benchmarks.gpu_kit.parts import Parts
from benchmarks.harness.report import RESULTS, Row, commit, row

JUNIT = '<testsuites><testsuite tests="9" failures="{failures}" errors="0" skipped="2" /></testsuites>'


@pytest.fixture
def rehearsal(tmp_path: Path) -> Options:
    return Options("cpu", None, tmp_path)


@pytest.mark.slow
def test_packed_parts_join_and_rehearse_on_a_cpu(tiny_checkpoint: Path, backbone_folder: Path, tmp_path: Path) -> None:
    """The kit packs the committed files, joins its parts and runs its steps with the packages of this environment."""
    out, size = tmp_path / "out", 8 << 20
    assert pack(out, tiny_checkpoint, carried=("structlog",), part_bytes=size) == 0
    sizes = [part.stat().st_size for part in sorted(out.glob("part-*"))]
    assert len(sizes) > 2
    assert sizes[:-1] == [size] * (len(sizes) - 1)
    command = [sys.executable, "start.py", "engine", "index", "--device", "cpu", "--cache", str(backbone_folder.parent)]
    assert subprocess.run(command, cwd=out, check=False, timeout=100).returncode == 0
    results = {name: json.loads((out / "results" / f"gpu_{name}.json").read_text()) for name in ("engine", "index")}
    for name, result in results.items():
        assert (result["name"], result["commit"]) == (f"gpu_{name}", commit())
        assert all(line["met"] is not False for line in result["rows"])
    measured = [line["what"] for result in results.values() for line in result["rows"]]
    assert [what for what in measured if "batch 2" in what] == [
        "prefill to vectors, batch 2",
        "decode, batch 2",
        "vector, 5 hashtags and a category out of 20, batch 2",
    ]
    assert "2,000 rows: recall@10 on the GPU" in measured


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damaged_parts_are_named_and_nothing_is_unpacked(damage: str, tmp_path: Path) -> None:
    with Parts(tmp_path, 10) as parts:
        parts.write(bytes(25))
    assert sorted(parts.digests) == ["part-00", "part-01", "part-02"]
    (tmp_path / "part-01").write_bytes(b"changed") if damage == "changed" else (tmp_path / "part-01").unlink()
    with pytest.raises(SystemExit, match="missing or damaged: part-01"):
        start.unpack(tmp_path, {"commit": "abc", "parts": parts.digests})
    assert not list(tmp_path.glob("un*"))


def test_archives_that_begin_alike_are_unpacked_apart(tmp_path: Path) -> None:
    targets, first_parts = [], set()
    for content in (b"one", b"two"):
        with Parts(tmp_path, 1 << 14) as parts, tarfile.open(fileobj=parts, mode="w|") as archive:
            add_file(archive, "padding", bytes(1 << 15))
            add_file(archive, "file", content)
        first_parts.add(parts.digests["part-00"])
        targets.append(start.unpack(tmp_path, {"parts": parts.digests}))
    assert len(first_parts) == 1
    assert [(target / "file").read_bytes() for target in targets] == [b"one", b"two"]


def test_installed_distribution_becomes_a_wheel() -> None:
    names = zipfile.ZipFile(BytesIO(as_wheel("pytest-timeout"))).namelist()
    assert "pytest_timeout.py" in names
    assert any(name.endswith(".dist-info/METADATA") for name in names)
    assert not any(".pyc" in name or ".." in name for name in names)


def test_packing_what_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, absent = tmp_path / "out", tmp_path / "absent"
    assert pack(out, checkpoint=absent) == pack(out, wheels=absent) == pack(tmp_path.parent) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{absent} is no folder of a checkpoint",
        f"{absent} holds no wheel",
        f"{tmp_path.parent} is not an empty folder",
    ]
    assert not out.exists()


def test_step_beyond_its_time_is_stopped_and_says_so(rehearsal: Options) -> None:
    saved: list[Row] = []
    rows = run.run_step("engine", 0, rehearsal, saved.append)
    assert rows == saved
    assert [(line["value"], line["spread"], line["met"]) for line in rows] == [("failed", "stopped after 0 s", False)]


def test_step_that_breaks_says_its_status(tmp_path: Path) -> None:
    broken = Options("cpu", tmp_path / "no checkpoint", tmp_path)
    rows = run.run_step("engine", 60, broken, lambda _: None)
    assert [(line["value"], line["spread"]) for line in rows] == [("failed", "its process ended with status 1")]


def test_all_steps_take_less_than_25_minutes() -> None:
    minute = 60  # for unpacking
    assert run.CARD_SECONDS + sum(run.STEP_SECONDS.values()) + minute < 25 * 60


def test_missing_module_leaves_a_step_out(rehearsal: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    (rehearsal.cache / "faiss.py").write_text("raise ModuleNotFoundError(name='faiss')")
    monkeypatch.setenv("PYTHONPATH", str(rehearsal.cache))
    (line,) = run.run_step("index", 60, rehearsal, lambda _: None)
    assert (line["value"], line["spread"], line["met"]) == (LEFT_OUT, "no module faiss here", None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("name", "reason"), [("card", "finds no card here"), ("index", "it takes faiss-gpu")])
def test_machine_without_card_leaves_steps_out(name: str, reason: str, tmp_path: Path) -> None:
    (line,) = run.run_step(name, 60, Options("cuda", None, tmp_path), lambda _: None)
    assert line["value"] == LEFT_OUT
    assert reason in line["spread"]


def test_exit_status_tells_failures_before_what_was_left_out() -> None:
    fine, failed, left_out = row("a", 1, met=True), row("b", 1, met=False), row("c", LEFT_OUT)
    assert run.exit_status([fine]) == run.DONE
    assert run.exit_status([fine, left_out]) == run.SOMETHING_LEFT_OUT
    assert run.exit_status([left_out, failed, fine]) == run.FAILED


@pytest.mark.parametrize(
    ("report", "status", "value", "met"),
    [
        (JUNIT.format(failures=0), 0, "7 passed", True),
        (JUNIT.format(failures=3), 1, "4 passed", False),
        ("", -11, "0 passed", False),  # a process that was ended by a signal wrote no report
    ],
)
def test_contract_row_counts_tests_and_is_met_where_none_failed(
    report: str, status: int, value: str, met: bool
) -> None:
    line = counted("tests/test_it.py", report, status, 1.0)
    assert (line["value"], line["met"]) == (value, met)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "engines"], "no such step: engines; there are contract, engine, index"),
        (["run", "--device", "cpu", "--results", str(RESULTS)], "a rehearsal is no result"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_kit", *arguments])
    with pytest.raises(SystemExit):
        command_line.main()
    assert message in capsys.readouterr().err
