"""`notellm purge` on the store of a service, which runs or is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from tests.service.conftest import DebianRedis
from tests.service.process import NOTELLM, Process, call, running, wait_until

pytestmark = pytest.mark.slow

SECRET = "Under the third stone from the well lies what my grandmother never told anybody about."


@pytest.fixture
def service(tiny_checkpoint: Path) -> Iterator[Process]:
    with running(tiny_checkpoint) as process:
        for note in ("removed-01", "kept-01"):
            body = {
                "id": note,
                "title": "Lemon tart",
                "content": SECRET if note == "removed-01" else "",
                "author": note,
            }
            httpx2.post(f"{process.url}/notes", json=body, timeout=60)
        (process.folder / "secret.txt").write_text(f"{SECRET}\n")
        yield process


def purge(service: Process) -> tuple[int, dict[str, Any]]:
    ended = service.call("purge", "--id", "removed-01", "--text", "secret.txt", "--wait", "60", "--json")
    assert ended.stdout, ended.stderr
    return ended.exit_code, json.loads(ended.stdout)


def test_purge_beside_a_running_service_proves_that_nothing_is_left(service: Process) -> None:
    refused = service.call("purge", "--id", "removed-01")
    assert (refused.exit_code, "delete it first" in refused.stderr) == (1, True)
    httpx2.delete(f"{service.url}/notes/removed-01")
    status, report = purge(service)
    assert (status, report["proved"], report["search"]["findings"]) == (0, True, [])
    found = httpx2.get(f"{service.url}/notes/kept-01/similar")
    assert (found.status_code, found.json()["items"]) == (200, [])
    assert httpx2.post(f"{service.url}/notes", json={"id": "next", "title": "Lemon tart"}).status_code == 201
    assert json.loads(service.call("verify", "--json").stdout)["well"]


def test_text_that_is_still_there_is_reported_with_its_place(service: Process) -> None:
    (service.folder / "d" / "left.txt").write_text(json.dumps({"text": SECRET}))
    httpx2.delete(f"{service.url}/notes/removed-01")
    status, report = purge(service)
    (finding,) = report["search"]["findings"]
    assert (status, finding["needle"], finding["file"][-8:]) == (1, "secret.txt", "left.txt")


def test_data_folder_of_a_stopped_service_is_purged(service: Process) -> None:
    httpx2.delete(f"{service.url}/notes/removed-01")
    service.end(signal.SIGTERM)
    ended = service.run("purge", "--id", "removed-01", "--text", "secret.txt")
    assert ended.returncode == 0, ended.stderr
    service.start()
    assert httpx2.get(f"{service.url}/notes/kept-01").status_code == 200
    assert httpx2.get(f"{service.url}/notes/removed-01").status_code == 404


def test_folder_of_another_redis_is_told_as_not_searched(
    debian_redis: DebianRedis, tmp_path: Path, short_folder: Path
) -> None:
    variables = {"NOTELLM_REDIS_URL": debian_redis.url, "NOTELLM_DATA_DIR": str(tmp_path), "COLUMNS": "200"}
    options = ["purge", "--id", "removed-01", "--tenant", "acme", "--folder"]
    for folder, searched in ((tmp_path, False), (short_folder, True)):
        ended = call([*options, str(folder)], variables, tmp_path)
        assert (ended.exit_code, "NOT SEARCHED" in ended.stdout) == (0 if searched else 1, not searched), ended.stderr


def test_purge_that_is_ended_leaves_the_settings_of_the_server_as_they_were(
    debian_redis: DebianRedis, tmp_path: Path
) -> None:
    variables = {"NOTELLM_REDIS_URL": debian_redis.url, "NOTELLM_DATA_DIR": str(tmp_path)}
    with redis.Redis.from_url(debian_redis.url, decode_responses=True) as admin:
        admin.mset({f"key {number}": "" for number in range(100)})
        admin.config_set("rdb-key-save-delay", 1_000_000)  # microseconds: writing the file takes longer than the test
        with subprocess.Popen([NOTELLM, "purge"], env=os.environ | variables) as purging:
            wait_until(lambda: bool(admin.info("persistence")["aof_rewrite_in_progress"]))
            assert admin.config_get("rdbcompression") == {"rdbcompression": "no"}
            purging.terminate()
            assert purging.wait(60) == 128 + signal.SIGTERM
        assert admin.config_get("rdbcompression") == {"rdbcompression": "yes"}
        assert admin.keys("{notes}:*") == []
