"""Programs and devices that some tests need and a developer's machine may lack."""

from __future__ import annotations

import os

import pytest


def require(present: bool, reason: str) -> None:
    """Skip the test unless its requirement is `present`. In CI the test fails instead: .ci/run installs everything."""
    if not present:
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
