"""Tests of deploy/audit.sh: it passes, fails or prints NOT AUDITED, depending on pip-audit's output. A script stands in
for pip-audit, since these tests cannot reach a vulnerability service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_image import ROOT

FINDING = 'echo "jinja2 2.4.1 CVE-2016-10745 2.8.1"; exit 1'
NO_FINDING = "echo No known vulnerabilities found"
NO_SERVICE = 'echo "Dependency not found on PyPI and could not be audited" >&2; exit 1'


@pytest.mark.parametrize(
    ("known", "locks", "torch", "status"),
    [
        (FINDING, NO_FINDING, NO_FINDING, 0),
        (FINDING, FINDING, NO_FINDING, 1),
        (FINDING, NO_FINDING, FINDING, 1),
        (FINDING, NO_SERVICE, NO_FINDING, 1),
        (NO_FINDING, NO_FINDING, NO_FINDING, 3),
        (NO_SERVICE, NO_FINDING, NO_FINDING, 3),
    ],
    ids=["none", "some", "some of PyTorch", "not looked up", "knows none", "no service"],
)
def test_audit_fails_on_findings_and_says_where_it_could_not_ask(
    tmp_path: Path, known: str, locks: str, torch: str, status: int
) -> None:
    pip_audit = tmp_path / "pip-audit"
    cases = f"*serve.txt*) {locks} ;; *torch.txt*) {torch} ;; *) {known} ;;"
    pip_audit.write_text(f'#!/bin/sh\ncase "$*" in {cases} esac\n')
    pip_audit.chmod(0o755)
    environment = os.environ | {"PIP_AUDIT": str(pip_audit), "PYTHON": sys.executable}
    ended = subprocess.run([ROOT / "deploy" / "audit.sh"], env=environment, capture_output=True, text=True)
    assert ended.returncode == status
    assert ("NOT AUDITED" in ended.stderr) == (status == 3)
