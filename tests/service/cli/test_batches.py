"""Batches of a file: bounded in items and in bytes."""

from __future__ import annotations

import pytest

from service.cli import batches as module
from service.cli.batches import batches


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([1, 1, 1, 1, 1], [[1, 1, 1], [1, 1]]),
        ([4, 6, 1], [[4, 6], [1]]),
        ([11, 2, 11], [[11], [2], [11]]),
    ],
)
def test_batches_are_bounded_in_items_and_in_bytes(
    sizes: list[int], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    assert list(batches(sizes, lambda size: size, 3)) == expected
