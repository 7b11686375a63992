"""Tests of the checks in the two-replica benchmark: secrets in logs, lost notes, and its balancer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.harness.service_process import ServiceProcess
from benchmarks.speed.replicas import MARK, PASSWORD, Balancer, count_lost, marked_texts, printed_secrets


def test_lines_with_a_secret_are_counted_in_all_logs(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "serve.log").write_text(f"well\n{next(marked_texts())}\nredis://:{PASSWORD}@host\n")
    (tmp_path / "redis.log").write_text(f"well\n{MARK}\n")
    assert printed_secrets(tmp_path) == 3


def test_balancer_chooses_among_replicas(tmp_path: Path) -> None:
    replicas = [ServiceProcess(tmp_path), ServiceProcess(tmp_path)]
    balancer = Balancer(replicas)
    assert {balancer.choose_port() for _ in range(100)} == {replica.port for replica in replicas}


def test_note_that_one_index_lacks_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = [ServiceProcess(tmp_path), ServiceProcess(tmp_path)]
    listed = {replicas[0].port: {"a", "b", "c"}, replicas[1].port: {"a", "c"}}
    monkeypatch.setattr(ServiceProcess, "listed_ids", lambda replica: listed[replica.port])
    assert asyncio.run(count_lost(replicas, ["a", "b"])) == 1
    assert asyncio.run(count_lost(replicas, ["a", "c"])) == 0
