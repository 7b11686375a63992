"""Backups in S3, through s3fs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest

from service.store.backup.backup import DATA_SET
from service.store.backup.manifest import MANIFEST, BackupError
from service.store.embedded_redis import EmbeddedRedis
from tests.optional import require
from tests.service.store.backup.conftest import back_up, contents, fill, restore
from tests.service.store.backup.s3 import Objects, serving_s3


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    """An S3 server to which the environment variables point."""
    require(importlib.util.find_spec("s3fs") is not None, "s3fs is not installed")
    with serving_s3() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server


def test_backup_goes_to_s3_and_comes_back(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, s3: Objects
) -> None:
    fill(source)
    source.set("large", os.urandom(60 * 2**20))  # larger than one part of an upload
    back_up(embedded.url, "s3://bucket/notes/today")
    assert s3.objects.keys() == {f"/bucket/notes/today/{name}" for name in (DATA_SET, MANIFEST)}
    restore("s3://bucket/notes/today", other.url)
    assert contents(target) == contents(source)
    with pytest.raises(BackupError, match="use a new folder"):
        back_up(embedded.url, "s3://bucket/notes/today")
