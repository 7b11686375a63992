"""Followers of GET /changes after a restore or a loss of writes: those that the log cannot serve get 410 at once, and
have to begin again."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2

from service.store.backup.backup import make_backup
from service.store.backup.restore import restore_backup
from tests.service.api.conftest import Serve, eventually_true
from tests.service.conftest import running_embedded


def write(client: httpx2.Client, note_id: str) -> str:
    """Write a note; return its log position."""
    position: str = client.put(f"/notes/{note_id}", json={"title": note_id}).json()["log_position"]
    return position


def changes(client: httpx2.Client, after: str, wait: float = 0) -> httpx2.Response:
    return client.get("/changes", params={"after": after, "wait": wait})


def changed_ids(answer: httpx2.Response) -> list[str]:
    return [change["id"] for change in answer.json()["changes"]]


def is_told_to_begin_again(answer: httpx2.Response) -> bool:
    problem = answer.json()
    named = (answer.status_code, problem.get("type", "").rpartition("/")[2]) == (410, "log-cut")
    return named and "GET /notes/export" in problem["detail"]


def test_followers_that_a_restored_log_cannot_serve_get_410_at_once(
    serve: Serve, short_folder: Path, tmp_path: Path
) -> None:
    with (
        running_embedded(short_folder / "d") as server,
        serve(redis_url=server.url) as url,
        httpx2.Client(base_url=url, timeout=25) as client,  # shorter than the follower below would wait
        ThreadPoolExecutor() as threads,
    ):
        before, last = write(client, "a"), write(client, "b")
        make_backup(server.url, str(tmp_path / "b"), lambda *step: None)
        lost = write(client, "c")
        client.delete("/notes/a")
        ahead: str = client.get("/changes").json()["log_position"]
        waiting = threads.submit(changes, client, ahead, wait=30)
        restore_backup(str(tmp_path / "b"), server.url, lambda *step: None, replace=True)
        for after in (before, lost, ahead):
            assert is_told_to_begin_again(changes(client, after, wait=30)), after
            assert is_told_to_begin_again(client.get("/notes/export", params={"after": after})), after
        assert changes(client, last).json()["changes"] == []  # this follower has exactly the notes of the backup
        assert is_told_to_begin_again(waiting.result())

        eventually_true(lambda: client.get("/readyz").status_code == 200)
        write(client, "d")
        for after in (before, lost, ahead):
            assert is_told_to_begin_again(changes(client, after, wait=30)), after
            assert is_told_to_begin_again(client.get("/notes/export", params={"after": after})), after
        assert changed_ids(changes(client, last)) == ["d"]
        assert client.get("/notes/export", params={"after": last}).status_code == 200
        *notes, end = map(json.loads, client.get("/notes/export").text.splitlines())
        assert {line["id"] for line in notes[1:]} == {"a", "b", "d"}
        assert changes(client, end["end"]).json()["changes"] == []


def test_list_and_export_that_span_a_restore_get_410(serve: Serve, short_folder: Path, tmp_path: Path) -> None:
    with (
        running_embedded(short_folder / "d") as server,
        serve(redis_url=server.url) as url,
        httpx2.Client(base_url=url, timeout=25) as client,
    ):
        for note_id in ("a", "b", "c"):
            write(client, note_id)
        make_backup(server.url, str(tmp_path / "b"), lambda *step: None)
        client.put("/notes/a", json={"title": "another"})
        page = client.get("/notes", params={"limit": 1}).json()
        assert [note["id"] for note in page["notes"]] == ["b"]
        begin, first, *_ = map(json.loads, client.get("/notes/export").text.splitlines())
        restore_backup(str(tmp_path / "b"), server.url, lambda *step: None, replace=True)
        eventually_true(lambda: client.get("/readyz").status_code == 200)

        answer = client.get("/notes", params={"limit": 1, "cursor": page["next_cursor"]})
        problem = answer.json()
        assert (answer.status_code, problem["type"].rpartition("/")[2]) == (410, "store-replaced")
        assert "without its cursor" in problem["detail"]
        resumed = {"after": first["log_position"], "begin": begin["begin"]}
        assert is_told_to_begin_again(client.get("/notes/export", params=resumed))
        eventually_true(lambda: client.get("/notes").status_code == 200)
        assert [note["id"] for note in client.get("/notes").json()["notes"]] == ["a", "b", "c"]


def test_followers_of_notes_that_a_backup_of_none_lost_get_410(
    serve: Serve, short_folder: Path, tmp_path: Path
) -> None:
    with (
        running_embedded(short_folder / "d") as server,
        serve(redis_url=server.url) as url,
        httpx2.Client(base_url=url, timeout=25) as client,
    ):
        make_backup(server.url, str(tmp_path / "b"), lambda *step: None)
        lost = write(client, "a")
        restore_backup(str(tmp_path / "b"), server.url, lambda *step: None, replace=True)
        assert is_told_to_begin_again(changes(client, lost, wait=30))

        eventually_true(lambda: client.get("/readyz").status_code == 200)
        begin = client.get("/changes").json()["log_position"]
        write(client, "b")
        assert is_told_to_begin_again(changes(client, lost, wait=30))
        assert is_told_to_begin_again(client.get("/notes/export", params={"after": lost}))
        assert changed_ids(changes(client, begin)) == ["b"]


def test_followers_of_writes_that_the_store_has_lost_get_410_beside_newer_writes(
    serve: Serve, short_folder: Path
) -> None:
    folder, earlier_files = short_folder / "d", short_folder / "earlier"
    with serve(data_dir=folder) as url, httpx2.Client(base_url=url, timeout=25) as client:
        kept = write(client, "a")
    shutil.copytree(folder, earlier_files, ignore=shutil.ignore_patterns("*.sock"))
    with serve(data_dir=folder) as url, httpx2.Client(base_url=url, timeout=25) as client:
        lost = write(client, "b")
    shutil.rmtree(folder)
    earlier_files.rename(folder)
    with serve(data_dir=folder) as url, httpx2.Client(base_url=url, timeout=25) as client:
        write(client, "c")
        answer = changes(client, lost, wait=30)
        assert is_told_to_begin_again(answer)
        assert f"has no entry at {lost}" in answer.json()["detail"]
        assert is_told_to_begin_again(client.get("/notes/export", params={"after": lost}))
        assert changed_ids(changes(client, kept)) == ["c"]
        assert client.get("/notes/export", params={"after": kept}).status_code == 200
