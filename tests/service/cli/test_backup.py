"""`notellm backup` and `notellm restore` on the store of a service, which runs or is stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest

from service.cli.store import describe_store, store_url
from service.settings import Settings
from service.store.known_position import KnownPositions
from tests.service.process import Process, running, wait_until

pytestmark = pytest.mark.slow

NOTES = [{"id": f"n{i}", "title": f"Lemon tart {i}", "author": "tom"} for i in range(20)]


@pytest.fixture
def service(tiny_checkpoint: Path) -> Iterator[Process]:
    with running(tiny_checkpoint) as process:
        yield process


def answers(service: Process) -> list[object]:
    """Return the notes, and the items similar to each of them."""
    with httpx2.Client(base_url=service.url, timeout=60) as client:
        notes = [client.get(f"/notes/{note['id']}").json() for note in NOTES]
        return [*notes, *(client.get(f"/notes/{note['id']}/similar").json()["items"] for note in NOTES)]


def test_restore_beside_a_running_service_brings_its_answers_back(service: Process, tmp_path: Path) -> None:
    httpx2.post(f"{service.url}/notes", json=NOTES, timeout=60)
    before = answers(service)
    backup = service.call("backup", str(tmp_path / "b"), "--json")
    assert backup.exit_code == 0, backup.stderr
    assert [entry["notes"] for entry in json.loads(backup.stdout)["notes"]] == [len(NOTES)]
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "b").iterdir()} == {0}
    for note in NOTES:
        httpx2.delete(f"{service.url}/notes/{note['id']}")
    httpx2.post(f"{service.url}/notes", json={"id": "later", "title": "Lemon tart"}, timeout=60)
    refused = service.call("restore", str(tmp_path / "b"))
    assert (refused.exit_code, "--replace" in refused.stderr) == (1, True)
    restored = service.run("restore", str(tmp_path / "b"), "--replace")
    assert restored.returncode == 0, restored.stderr
    wait_until(lambda: httpx2.get(f"{service.url}/notes/n1/similar").json().get("items") == before[len(NOTES) + 1])
    wait_until(service.ready)
    assert answers(service) == before
    assert httpx2.get(f"{service.url}/notes/later").status_code == 404
    assert json.loads(service.call("verify", "--json").stdout)["well"]


def test_store_of_a_stopped_service_is_backed_up_and_restored(service: Process, tmp_path: Path) -> None:
    httpx2.post(f"{service.url}/notes", json=NOTES, timeout=60)
    before = answers(service)
    service.end(signal.SIGTERM)
    assert service.call("backup", str(tmp_path / "b")).exit_code == 0
    restored = service.call("restore", str(tmp_path / "b"), "--replace")
    assert restored.exit_code == 0, restored.stderr
    service.start()
    assert answers(service) == before


def test_folder_without_a_backup_is_refused_in_one_line_behind_the_target(service: Process, tmp_path: Path) -> None:
    refused = service.call("restore", str(tmp_path))
    target, message = filter(None, refused.stderr.splitlines())
    assert (refused.exit_code, target) == (1, f"Restoring into {service.environment['NOTELLM_DATA_DIR']}")
    assert "there is no backup in" in message


@pytest.mark.parametrize("command", [("backup", "b"), ("restore", "b"), ("purge",)])
def test_store_of_another_user_is_left_alone(
    service: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Sequence[str]
) -> None:
    service.end(signal.SIGTERM)
    created = os.fstat
    as_root = lambda file: SimpleNamespace(st_uid=created(file).st_uid + 1)  # noqa: E731
    monkeypatch.setattr("service.cli.store.os", SimpleNamespace(fstat=as_root))
    refused = service.call(*command)
    data = service.environment["NOTELLM_DATA_DIR"]
    assert refused.exit_code == 1
    assert f"the store in {data} belongs to user {os.getuid()}: run the command as that user" in refused.stderr
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("joined", [True, False])
def test_service_that_joined_the_store_of_a_command_is_told_of(
    short_folder: Path, capsys: pytest.CaptureFixture[str], joined: bool
) -> None:
    with contextlib.ExitStack() as service:
        with store_url(Settings.model_validate({"data_dir": short_folder})):
            if joined:
                service.enter_context(contextlib.closing(KnownPositions(short_folder)))
        assert ("the service restarts it" in capsys.readouterr().err) == joined


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("rediss://user:pass%40word@redis.example:6380/3?password=pass", "rediss://redis.example:6380/3, database 3"),
        ("redis://redis.example", "redis://redis.example, database 0"),
        ("unix://user:password@/run/redis.sock?db=1", "unix:///run/redis.sock, database 1"),
    ],
)
def test_store_is_named_without_its_password(url: str, name: str) -> None:
    assert describe_store(Settings.model_validate({"redis_url": url})) == name
