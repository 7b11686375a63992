"""Tests of making a backup: from which servers, to which storages, and what ends one."""

from __future__ import annotations

import contextlib
import errno
import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis

from service.store.backup.backup import DATA_SET, make_backup
from service.store.backup.folder import BackupFolder
from service.store.backup.manifest import MANIFEST, BackupError
from service.store.clients import client_of
from service.store.embedded_redis import EmbeddedRedis, server_program
from service.store.tenants import REMOVING
from tests.service.conftest import DebianRedis, kill
from tests.service.store.backup.conftest import LOG, Interrupted, back_up, contents, fill, identity, interrupt, restore


@pytest.mark.parametrize("step", ["Receiving the data", "Checking that the data can be loaded", "Writing the backup"])
def test_interrupted_backup_leaves_none(source: Any, embedded: EmbeddedRedis, tmp_path: Path, step: str) -> None:
    fill(source)
    with pytest.raises(Interrupted):
        make_backup(embedded.url, str(tmp_path / "b"), interrupt(step))
    with pytest.raises(BackupError, match="there is no backup in"):
        restore(tmp_path / "b", embedded.url)
    assert os.listdir(tmp_path / "b") == []
    back_up(embedded.url, tmp_path / "b")


@pytest.mark.parametrize("whole", range(4), ids=["data", "manifest", "folder", "parent"])
def test_backup_that_does_not_reach_the_disk_is_none(
    source: Any, embedded: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    """`whole`: number of calls of fsync that succeed."""
    calls = count()

    def broken(file: int) -> None:
        if next(calls) >= whole:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    fill(source)
    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", broken)
        with pytest.raises(BackupError, match="Input/output error"):
            back_up(embedded.url, tmp_path / "b")
    assert os.listdir(tmp_path / "b") == []
    back_up(embedded.url, tmp_path / "b")


def test_backup_is_never_written_over_another(source: Any, embedded: EmbeddedRedis, tmp_path: Path) -> None:
    fill(source)
    back_up(embedded.url, tmp_path / "b")
    with pytest.raises(BackupError, match="use a new folder"):
        back_up(embedded.url, tmp_path / "b")


@pytest.mark.parametrize("step", ["Receiving the data", "Checking that the data can be loaded", "Writing the backup"])
def test_backup_that_another_one_overtakes_leaves_that_one_whole(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path, step: str
) -> None:
    fill(source)
    overtaken = False

    def overtake(name: str, done: int, total: int) -> None:
        nonlocal overtaken
        if name == step and not overtaken:
            overtaken = True
            with contextlib.suppress(BackupError):  # the data file of the slower one may be there
                back_up(embedded.url, tmp_path / "b")

    if step == "Writing the backup":
        make_backup(embedded.url, str(tmp_path / "b"), overtake)
    else:
        with pytest.raises(BackupError, match="use a new folder"):
            make_backup(embedded.url, str(tmp_path / "b"), overtake)
    restore(tmp_path / "b", other.url)
    assert contents(target) == contents(source)


@pytest.mark.parametrize("name", [DATA_SET, MANIFEST])
def test_file_of_another_backup_is_never_overwritten(
    source: Any, embedded: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The other backup writes its file behind the last look into the folder."""
    fill(source)
    (tmp_path / name).write_bytes(b"of another backup")
    monkeypatch.setattr(BackupFolder, "refuse_unless_empty", lambda folder: None)
    with pytest.raises(BackupError, match="use a new folder"):
        back_up(embedded.url, tmp_path)
    assert (tmp_path / name).read_bytes() == b"of another backup"


def test_storage_other_than_a_disk_is_reached_by_its_url(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis
) -> None:
    fill(source)
    back_up(embedded.url, "memory://backups/today")
    restore("memory://backups/today", other.url)
    assert contents(target) == contents(source)


def test_storage_that_is_not_there_is_named_before_data_are_received(
    source: Any, embedded: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = "service.store.backup.backup.receive_data_set"
    monkeypatch.setattr(receive, lambda *arguments: pytest.fail("data were received"))
    (tmp_path / "file").write_bytes(b"")
    for address, words in [(tmp_path / "file" / "b", "file"), ("nowhere://b", "nowhere")]:
        with pytest.raises(BackupError, match=words):
            back_up(embedded.url, address)


def test_server_with_a_password_and_a_database_is_backed_up(
    guarded_redis: DebianRedis, target: Any, other: EmbeddedRedis, tmp_path: Path
) -> None:
    url = f"{guarded_redis.url}/3"
    with client_of(url) as client:
        fill(client)
        assert back_up(url, tmp_path / "b").database == 3
        restore(tmp_path / "b", other.url)
        assert contents(target) == contents(client)
        restore(tmp_path / "b", url, replace=True)
        assert contents(target) == contents(client)


def test_server_that_is_unavailable_is_an_error_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(BackupError) as failure:
        back_up("redis://user:secret@127.0.0.1:1", tmp_path / "b")
    assert "secret" not in str(failure.value)
    assert isinstance(failure.value.__cause__, redis.RedisError)


def test_backup_of_a_tenant_that_is_being_removed_is_restored(
    source: Any, target: Any, embedded: EmbeddedRedis, other: EmbeddedRedis, tmp_path: Path
) -> None:
    fill(source)
    fill(source, 5, "{notes}:tenant:acme:")
    source.hset("{notes}:tenants", "acme", REMOVING + identity("{notes}:tenant:acme:"))
    source.delete("{notes}:tenant:acme:identity", "{notes}:tenant:acme:log", "{notes}:tenant:acme:note:n1")
    source.hset("{another}:note:n1", "text", "of another application")
    back_up(embedded.url, tmp_path / "b")
    restore(tmp_path / "b", other.url)
    assert contents(target) == contents(source)
    assert target.hgetall("{notes}:tenants") == source.hgetall("{notes}:tenants")


@pytest.mark.parametrize(("user", "databases"), [("", 32), ("limited:x@", 21)], ids=["config", "no-config"])
def test_data_of_another_application_in_a_database_of_a_high_number_are_in_the_backup(
    short_folder: Path, source: Any, embedded: EmbeddedRedis, tmp_path: Path, user: str, databases: int
) -> None:
    server = DebianRedis(short_folder, server_program())
    try:
        server.start("--databases", "32")
        with client_of(server.url) as client, client_of(server.url, 20) as theirs:
            fill(client)
            theirs.set("theirs", "1")
            client.execute_command("ACL", "SETUSER", "limited", "on", "nopass", "~*", "&*", "+@all", "-config")
            url = server.url.replace("//", f"//{user}")
            assert back_up(url, tmp_path / "b").databases == databases
            restore(tmp_path / "b", embedded.url)
            assert contents(source) == contents(client)
    finally:
        kill(server)


def test_key_of_another_type_in_the_place_of_a_log_is_an_error(
    source: Any, embedded: EmbeddedRedis, tmp_path: Path
) -> None:
    source.set(LOG, "no stream")
    with pytest.raises(BackupError, match="cannot be counted: WRONGTYPE"):
        back_up(embedded.url, tmp_path / "b")
