"""Parts of a machine that some tests need and a developer's machine may lack."""

from __future__ import annotations

import os

import pytest


def require(present: bool, reason: str) -> None:
    """Skip the test where such a part is not present. In CI it fails: .ci/run installs them all."""
    if not present:
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
