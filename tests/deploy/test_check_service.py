"""The check of an installed service, which `helm test` and deploy/smoke.sh run: it passes, and it can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.deploy.chart import CHART
from tests.service.process import running

pytestmark = pytest.mark.slow
SCRIPT = CHART / "files" / "check_service.py"


def check(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, url], capture_output=True, text=True, check=False)


def test_check_of_a_running_service_leaves_nothing(tiny_checkpoint: Path):
    with running(tiny_checkpoint) as service:
        result, elsewhere = check(service.url), check(f"{service.url}/elsewhere")
        assert httpx2.get(f"{service.url}/readyz").json()["notes"] == 0
    assert (result.returncode, result.stderr) == (0, "")
    assert elsewhere.returncode == 1
    assert "POST /notes answered 404 instead of 201" in elsewhere.stderr


def test_check_without_a_service_fails():
    result = check("http://127.0.0.1:9")
    assert result.returncode == 1
    assert "refused" in result.stderr
