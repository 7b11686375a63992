"""NOTELLM_PURGE_SECONDS: a running service purges its store on schedule."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from tests.service.api.conftest import Serve, eventually_true

SECRET = "Under the third stone from the well lies what nobody was ever told."


@pytest.mark.slow
def test_removed_text_leaves_the_files_by_itself(serve: Serve, short_folder: Path) -> None:
    def content() -> bytes:
        folder = short_folder / "appendonlydir"
        return b"".join(path.read_bytes() for path in folder.iterdir() if path.exists())

    with serve(data_dir=short_folder, purge_seconds=0.5) as url, httpx2.Client(base_url=url, timeout=60) as client:
        client.post("/notes", json=[{"id": "gone", "title": "x", "content": SECRET}, {"id": "kept", "title": "y"}])
        eventually_true(lambda: SECRET.encode() in content())
        client.delete("/notes/gone")
        eventually_true(lambda: SECRET.encode() not in content())
        assert client.get("/notes/kept").status_code == 200
        metrics = client.get("/metrics").text
        assert "notellm_purge_timestamp_seconds 0.0" not in metrics
        assert client.post("/verify").json()["well"]
