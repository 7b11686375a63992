"""Fixtures of the tests of all routes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def patient_reads() -> Iterator[None]:
    """Give reads a minute for the store, so that a busy machine degrades no answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.read_time.READ_SECONDS", 60.0)
        yield
