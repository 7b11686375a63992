"""Tests of the commands for an installed service: the check of `helm test` and deploy/smoke.sh, and a load."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.harness import scenario
from benchmarks.speed import load
from tests.deploy.chart import CHART, ROOT
from tests.service.process import running

pytestmark = pytest.mark.slow
KEY = "the-bootstrap-key-of-these-tests"
SCRIPT = CHART / "files" / "check_service.py"


@pytest.fixture(scope="module")
def url(tiny_checkpoint: Path) -> Iterator[str]:
    """Address of a service without notes."""
    with running(tiny_checkpoint) as service:
        yield service.url


def check(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, url], capture_output=True, text=True, check=False)


def test_check_of_a_service_passes_and_leaves_nothing(url: str):
    result = check(url)
    assert (result.returncode, result.stderr) == (0, "")
    assert httpx2.get(f"{url}/readyz").json()["notes"] == 0


def test_check_sends_its_key(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    with running(tiny_checkpoint, NOTELLM_BOOTSTRAP_KEY=KEY) as service:
        refused = check(service.url)
        assert (refused.returncode, "401 instead of 201" in refused.stderr) == (1, True)
        monkeypatch.setenv("NOTELLM_API_KEY", KEY)
        assert check(service.url).returncode == 0


def test_check_of_something_else_says_its_answer(url: str):
    result = check(f"{url}/elsewhere")
    assert result.returncode == 1
    assert "POST /notes answered 404 instead of 201" in result.stderr


@pytest.mark.parametrize(
    ("failing", "failure"),
    [
        ("POST", "AssertionError: POST /notes answered 503 instead of"),
        ("GET", "answered 503 instead of"),
        ("position", "KeyError: 'log_position'"),
    ],
)
def test_check_that_fails_half_way_deletes_its_notes(failing: str, failure: str):
    """The service refuses the second note, refuses every search, or sends an answer without `log_position`."""
    stored: dict[str, Any] = {}
    added: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            note = json.loads(self.rfile.read(int(self.headers["content-length"])))
            added.append(note)
            stored[note["id"]] = note  # even if the answer is 503: the write may have succeeded
            answer = {} if failing == "position" else {"log_position": "1-0"}
            self.answer(503 if failing == "POST" and len(added) == 2 else 201, answer)

        def do_GET(self) -> None:
            self.answer(503 if "/similar" in self.path else 404, {})

        def do_DELETE(self) -> None:
            self.answer(404 if stored.pop(self.path.rpartition("/")[2], None) is None else 200, {})

        def answer(self, status: int, body: object) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = check(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert (result.returncode, failure in result.stderr) == (1, True)
    assert len(added) == 2
    assert stored == {}
    for note in added:
        assert timedelta(0) < datetime.fromisoformat(note["expires_at"]) - datetime.now(UTC) <= timedelta(hours=1)


def test_check_without_a_service_fails():
    result = check("http://127.0.0.1:9")
    assert result.returncode == 1
    assert "refused" in result.stderr


def test_scenario_runs_against_a_service(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenario, "FOLDER", tmp_path)
    text = (ROOT / "deploy" / "load" / "mixed.toml").read_text()
    (tmp_path / "mixed.toml").write_text(re.sub(r"clients = \d+\nrounds = \d+", "clients = 4\nrounds = 2", text))
    httpx2.post(f"{url}/notes", json={"id": "a", "title": "bread"}, timeout=60).raise_for_status()
    lines = asyncio.run(load.run("mixed", url, ["a"]))
    assert sorted(line.split(":")[0] for line in lines) == ["embed", "generate", "similar"]
    with pytest.raises(httpx2.HTTPStatusError):
        asyncio.run(load.run("mixed", url, ["unknown"]))
