"""Servers to back up and to restore into, and helpers to fill and compare them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pytest

from service.store.backup.backup import make_backup
from service.store.backup.manifest import Manifest
from service.store.backup.restore import restore_backup
from service.store.clients import client_of
from service.store.embedded_redis import EmbeddedRedis
from tests.service.conftest import running_embedded

NOTE, LOG, IDENTITY = "{notes}:note:", "{notes}:log", "{notes}:identity"


def ignore_progress(step: str, done: int, total: int) -> None:
    """Progress callback that does nothing."""


class Interrupted(BaseException):
    """Raised by a test in the middle of a step, as Ctrl-C is."""


def interrupt(during: str) -> Any:
    """Return a progress callback that interrupts the work at a step, as if the process were killed."""

    def progress(step: str, done: int, total: int) -> None:
        if step == during:
            raise Interrupted

    return progress


def back_up(url: str, folder: Path | str) -> Manifest:
    return make_backup(url, str(folder), ignore_progress)


def restore(folder: Path | str, url: str, replace: bool = False) -> Manifest:
    return restore_backup(str(folder), url, ignore_progress, replace=replace)


def identity(prefix: str) -> str:
    """Return the identity of the store that `fill` writes."""
    return uuid5(NAMESPACE_URL, prefix).hex


def fill(client: Any, count: int = 3, prefix: str = "{notes}:") -> None:
    """Write notes as the store does, with the fields that a backup reads."""
    for number in range(count):
        position = client.xadd(f"{prefix}log", {"id": f"n{number}", "op": "put"})
        fields = {"document": f'{{"title": "Note {number}"}}', "space": "words-1", "vector": b"\x00\xff" * 8}
        client.hset(f"{prefix}note:n{number}", mapping={**fields, "revision": 1, "position": position})
    client.set(f"{prefix}identity", identity(prefix))


def contents(client: Any) -> dict[bytes, Any]:
    """Return all notes of a database, by key."""
    return {key: client.hgetall(key) for key in client.scan_iter(match="*:note:*")}


@pytest.fixture
def source(embedded: EmbeddedRedis) -> Iterator[Any]:
    """A client of the server that is backed up."""
    with client_of(embedded.url) as client:
        yield client


@pytest.fixture
def other(short_folder: Path) -> Iterator[EmbeddedRedis]:
    """The server that is restored into."""
    with running_embedded(short_folder / "other") as server:
        yield server


@pytest.fixture
def target(other: EmbeddedRedis) -> Iterator[Any]:
    """A client of the server that is restored into."""
    with client_of(other.url) as client:
        yield client
