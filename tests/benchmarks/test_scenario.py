"""Tests of load scenarios: files are read and use existing API operations. tests/deploy runs one on a service."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.harness import http_load, scenario
from benchmarks.harness.scenario import Request, Scenario
from benchmarks.speed import clients, load, overload

NAMES = sorted(path.stem for path in scenario.FOLDER.glob("*.toml"))
PATHS = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]


@pytest.mark.parametrize("name", NAMES)
def test_scenario_asks_for_operations_of_the_api(name: str):
    for request in Scenario.load(name).requests.values():
        path = request.path.partition("?")[0].replace("{id}", "{note_id}")
        assert request.method.lower() in PATHS[path]


def test_unknown_field_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenario, "FOLDER", tmp_path)
    for line in ("client = 3", "clients = 3\n[requests.a]\nmethod = 'GET'\npath = '/'\nrates = 2"):
        (tmp_path / "bad.toml").write_text(f"{line}\n{'' if 'requests' in line else '[requests]'}")
        with pytest.raises(TypeError, match=r"client|rates"):
            Scenario.load("bad")


def test_text_and_id_are_filled_in():
    request = Request("POST", "/notes/{id}?k=1", {"content": "{text}", "k": 10})
    assert request.filled("bread", "a1") == ("/notes/a1?k=1", {"content": "bread", "k": 10})
    assert Request("GET", "/livez").filled("bread", "a1") == ("/livez", None)


def test_benchmarks_take_their_loads_from_the_files():
    mixed, reads, heavy = (Scenario.load(name) for name in ("mixed", "reads", "overload"))
    assert (mixed.clients, mixed.rounds, tuple(mixed.requests)) == (clients.CLIENTS, clients.ROUNDS, clients.KINDS)
    assert (mixed.requests["generate"].body or {})["count"] == clients.HASHTAGS
    assert (reads.clients, reads.seconds) == (http_load.CONNECTIONS, http_load.SECONDS)
    assert (heavy.clients, heavy.patience) == (overload.CLIENTS, overload.PATIENCE)
    note, read = heavy.requests["note"], heavy.requests["read"]
    assert (note.times_possible, read.rate) == (overload.FACTOR, overload.READS_PER_SECOND)


def test_scenario_with_rates_names_its_benchmark():
    with pytest.raises(ValueError, match=r"benchmarks\.speed\.overload runs it"):
        asyncio.run(load.run("overload", "http://127.0.0.1:9", ["a"]))
