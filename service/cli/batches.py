"""Batches of the commands that send a file of notes: bounded in notes and in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
TOO_LARGE = 413
"""Status of a request whose batch is too large for the service: the batch is then sent in halves."""
MAX_BYTES = 4 * 2**20
"""Maximum bytes of a batch: a quarter of what a service accepts by default (max_body_bytes of GET /limits)."""


def batches(items: Iterable[T], size: Callable[[T], int], max_items: int) -> Iterator[list[T]]:
    """Yield batches of at most `max_items` items and MAX_BYTES; an item that is larger is a batch of its own. `size`:
    returns the bytes of an item. The same items always give the same batches."""
    batch: list[T] = []
    left = MAX_BYTES
    for item in items:
        if batch and (len(batch) == max_items or size(item) > left):
            yield batch
            batch, left = [], MAX_BYTES
        batch.append(item)
        left -= size(item)
    if batch:
        yield batch
