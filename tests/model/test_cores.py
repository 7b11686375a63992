"""Cores that a process may use, under the quotas of both versions of cgroups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from model import cores


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder in place of /sys/fs/cgroup, on a machine of eight cores."""
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("800000 100000", None), ("max 100000", None)],
)
def test_quota_is_read_in_whole_cores(cgroup: Path, text: str, expected: int | None) -> None:
    (cgroup / "cpu.max").write_text(f"{text}\n")
    assert (cores.quota_cores(), cores.usable_cores()) == (expected, expected or 8)


@pytest.mark.parametrize(("quota", "expected"), [("300000", 3), ("-1", None)])
def test_quota_of_the_first_version_of_cgroups_is_read(cgroup: Path, quota: str, expected: int | None) -> None:
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (cgroup / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert (cores.quota_cores(), cores.usable_cores()) == (expected, expected or 8)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that binds a process to cores")
def test_cores_that_the_process_may_not_run_on_do_not_count(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cgroup / "cpu.max").write_text("300000 100000\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {2, 5})
    assert (cores.quota_cores(), cores.usable_cores()) == (None, 2)


@pytest.mark.usefixtures("cgroup")
def test_machine_without_cgroups_uses_all_cores() -> None:
    assert (cores.quota_cores(), cores.usable_cores()) == (None, 8)
