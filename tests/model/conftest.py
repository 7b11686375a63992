"""Fixtures of the tests of model/."""

from __future__ import annotations

import unicodedata
from typing import Literal

import pytest


@pytest.fixture
def normalised_lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the texts that the test has passed to unicodedata.normalize so far."""
    lengths: list[int] = []
    normalize = unicodedata.normalize

    def recorded(form: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> str:
        lengths.append(len(text))
        return normalize(form, text)

    monkeypatch.setattr(unicodedata, "normalize", recorded)
    return lengths
