"""`notellm export-notes` and `notellm import-notes`, against a running service."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import Result

from model.config import NoteLLMConfig
from model.data.dataset import read_notes
from service.cli.notes import Upload
from service.cli.reread import Reread, fields_of
from service.cli.transfer import TransferFailed
from service.errors import LimitExceeded
from service.recommender import Recommender
from service.settings import Settings
from tests.service.api.conftest import serving
from tests.service.process import NOTELLM, cache_of, call

Start = Callable[[str], contextlib.AbstractContextManager[str]]
StartWith = Callable[..., contextlib.AbstractContextManager[str]]


@pytest.fixture
def start_with(short_folder: Path, tiny_checkpoint: Path) -> StartWith:
    """Return a function that starts a service with given settings."""

    def open_service(**more: object) -> contextlib.AbstractContextManager[str]:
        settings = {"data_dir": short_folder / "z", "cache_dir": cache_of(tiny_checkpoint), "sample_notes": 0}
        return serving(Settings.model_validate(settings | {"checkpoint": str(tiny_checkpoint)} | more))

    return open_service


@pytest.fixture
def start(start_with: StartWith, short_folder: Path) -> Start:
    """Return a function that starts a service on the data folder of a name."""
    return lambda name: start_with(data_dir=short_folder / name)


@pytest.fixture
def url(start: Start) -> Iterator[str]:
    with start("a") as address:
        notes = [{"id": f"n{n}", "title": f"soup {n}", "author": f"a{n % 3}"} for n in range(20)]
        assert httpx2.post(f"{address}/notes", json=notes, timeout=60).status_code == 207
        yield address


def run(*arguments: str) -> Result:
    """Run the command in the test's process."""
    return call(arguments, {name: None for name in os.environ if name.startswith("NOTELLM_")}, Path.cwd())


def run_alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a new process, as the shell does."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NOTELLM_")}
    return subprocess.run([NOTELLM, *arguments], env=clean, capture_output=True, text=True, check=False)


def report_of(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def report_alone(*arguments: str) -> dict[str, Any]:
    """Return the report of the command, run in a new process."""
    result = run_alone(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def contents(url: str) -> dict[str, Any]:
    """Return the stored notes by id, without the fields that each store counts itself."""
    lines = map(json.loads, httpx2.get(f"{url}/notes/export", params={"vectors": "base64"}).text.splitlines())
    own = ("revision", "log_position")
    return {line["id"]: {n: v for n, v in line.items() if n not in own} for line in lines if "id" in line}


@pytest.mark.parametrize(
    ("name", "report_of"), [("notes.jsonl", report_of), ("notes.jsonl.gz", report_alone)], ids=["here", "alone"]
)
def test_exported_notes_are_imported_with_their_vectors(
    url: str, start: Start, tmp_path: Path, name: str, report_of: Callable[..., dict[str, Any]]
) -> None:
    file = tmp_path / name
    assert report_of("export-notes", str(file), "--url", url)["notes"] == 20
    assert os.listdir(tmp_path) == [name]
    assert file.stat().st_mode & 0o077 == 0
    assert len((gzip.decompress(file.read_bytes()) if name.endswith("gz") else file.read_bytes()).splitlines()) == 22
    with start("b") as other:
        report = report_of("import-notes", str(file), "--url", other)
        assert (report["created"], report["vectors_kept"], report["vectors_read"]) == (20, 20, 0)
        assert contents(other) == contents(url)
        again = report_of("import-notes", str(file), "--url", other)
        assert (again["created"], again["exists"]) == (0, 20)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("notes.jsonl", ["notes.jsonl.part", "folder"]),
        ("notes.jsonl.gz", ["notes.jsonl.gz.part", "notes.jsonl.gz.new", "folder", "removed notes.jsonl.gz.part"]),
    ],
)
def test_export_is_on_the_disk_before_its_part_is_removed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: list[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    steps: list[str] = []
    unlink = Path.unlink

    def remove(path: Path, missing_ok: bool = False) -> None:
        steps.append(f"removed {path.name}")
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", lambda file: steps.append(Path(f"/proc/self/fd/{file}").resolve().name))
    monkeypatch.setattr(Path, "unlink", remove)
    result = run("export-notes", str(folder / name), "--url", url)
    assert result.exit_code == 0, result.output
    assert steps == expected


def test_changes_since_an_export_are_applied_with_their_removals_however_often(
    url: str, start: Start, tmp_path: Path
) -> None:
    whole, changes = str(tmp_path / "all.jsonl"), tmp_path / "changes.jsonl"
    end = report_of("export-notes", whole, "--url", url)["end"]
    assert httpx2.delete(f"{url}/notes/n1").status_code == 200
    assert httpx2.patch(f"{url}/notes/n2", json={"title": "stew"}).status_code == 200
    httpx2.delete(f"{url}/notes/n3")
    assert httpx2.put(f"{url}/notes/n3", json={"title": "again"}).status_code == 201
    assert httpx2.put(f"{url}/notes/new", json={"title": "new"}).status_code == 201
    httpx2.put(f"{url}/notes/brief", json={"title": "x"})
    httpx2.delete(f"{url}/notes/brief")
    assert httpx2.patch(f"{url}/notes/n4", json={"expires_at": "2099-01-01T00:00:00Z"}).status_code == 200
    report_of("export-notes", str(changes), "--after", end, "--url", url)
    changes.write_text(changes.read_text().replace("2099-01-01", "2020-01-01"))  # it has expired since the export
    with start("b") as other:
        report_of("import-notes", whole, "--url", other)
        before = contents(other)
        refused = run("import-notes", str(changes), "--url", other)
        assert (refused.exit_code, "apply it with --replace" in " ".join(refused.stderr.split())) == (1, True)
        assert contents(other) == before
        report = report_of("import-notes", str(changes), "--replace", "--url", other)
        counts = report["created"], report["updated"], report["expired"], report["removed"]
        assert counts == (1, 2, 1, 2)
        assert contents(other) == {name: note for name, note in contents(url).items() if name != "n4"}
        again = report_of("import-notes", str(changes), "--replace", "--url", other)
        assert (again["unchanged"], again["created"], again["updated"], again["removed"]) == (3, 0, 0, 0)
        assert contents(other) == {name: note for name, note in contents(url).items() if name != "n4"}


def test_removals_that_are_too_large_for_one_request_are_sent_in_parts(
    url: str, start_with: StartWith, tmp_path: Path
) -> None:
    ids = [f"{n:0>100}" for n in range(40)]
    notes = [{"id": note_id, "title": "soup"} for note_id in ids]
    assert httpx2.post(f"{url}/notes", json=notes, timeout=60).status_code == 207
    whole, changes = str(tmp_path / "all.jsonl"), str(tmp_path / "changes.jsonl")
    end = report_of("export-notes", whole, "--url", url)["end"]
    assert httpx2.post(f"{url}/notes/delete", json={"ids": ids}).json()["count"] == 40
    report_of("export-notes", changes, "--after", end, "--url", url)
    with start_with(max_note_bytes=1024) as other:
        report_of("import-notes", whole, "--url", other)
        assert report_of("import-notes", changes, "--replace", "--url", other)["removed"] == 40
        assert contents(other).keys() == contents(url).keys()


def test_exported_notes_can_be_trained_on(url: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl.gz"
    report_of("export-notes", str(file), "--url", url)
    notes = read_notes(file)
    assert {name: note.title for name, note in notes.items()} == {f"n{n}": f"soup {n}" for n in range(20)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(b'{"export": 1}\n' * 1000)[:40], "is incomplete or not a gzip file"),
        (b"no archive", "is not a line of an export"),
    ],
    ids=["cut off", "no archive"],
)
def test_archive_that_is_broken_is_refused_by_its_name(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "notes.jsonl.gz"
    file.write_bytes(content)
    result = run_alone("import-notes", str(file), "--url", "http://127.0.0.1:9")
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)
    assert f"notes.jsonl.gz {reason}" in " ".join(result.stderr.split())


def test_notes_without_vectors_are_read_by_the_model_and_that_is_said(url: str, start: Start, tmp_path: Path) -> None:
    file = str(tmp_path / "notes.jsonl")
    report_of("export-notes", file, "--no-vectors", "--url", url)
    with start("b") as other:
        result = run("import-notes", file, "--url", other)
        assert result.exit_code == 0, result.stderr
        assert "20 notes were read by the model" in result.stderr
        assert contents(other).keys() == contents(url).keys()


@pytest.fixture
def another(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with another vector space."""
    folder = tmp_path / "another"
    shutil.copytree(tiny_checkpoint, folder)
    replace(NoteLLMConfig.load(folder), prompt_version="note-first/2").save(folder)
    return folder


def test_notes_of_another_model_are_read_again_once(
    start_with: StartWith, short_folder: Path, another: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cli.reread.PAGE_SIZE", 7)
    folder = short_folder / "m"
    notes = [{"id": f"n{n}", "title": f"soup {n}", "author": "tom"} for n in range(20)]
    with start_with(data_dir=folder) as url:
        assert httpx2.post(f"{url}/notes", json=notes, params={"generate": "category"}, timeout=60).status_code == 207
        before = contents(url)
    with start_with(data_dir=folder, checkpoint=str(another)) as url:
        assert httpx2.get(f"{url}/notes/n1/similar").status_code == 409
        report = Reread(url, None, [], 3, 90).run()
        assert (report["read"], report["unchanged"]) == (20, 0)
        assert httpx2.get(f"{url}/readyz").json()["notes_of_another_model"] == 0
        assert httpx2.get(f"{url}/notes/n1/similar").status_code == 200
        after = contents(url)
        assert after.keys() == before.keys()
        for name, note in after.items():
            changed = {field for field in note if note[field] != before[name][field]}
            assert changed == {"space", "vector"}
        again = report_of("reread", "--url", url)
        assert (again["read"], again["unchanged"]) == (0, 20)


def test_hashtags_are_generated_anew_from_notes_that_are_read_later(
    start_with: StartWith, short_folder: Path, another: Path
) -> None:
    folder, text = short_folder / "m", "a soup of red lentils, lemon and cumin"
    bare = [{"id": f"bare{n}", "title": text, "content": str(n)} for n in range(3)]
    tagged = [{"id": f"tagged{n}", "title": text, "content": str(n), "hashtags": ["lentils"]} for n in range(3)]
    with start_with(data_dir=folder) as url:
        for notes in (bare, tagged):  # either model reads the bare ones first
            answer = httpx2.post(f"{url}/notes", json=notes, params={"generate": "hashtags"}, timeout=60)
            assert answer.status_code == 207

    def hashtags(url: str) -> list[list[str]]:
        notes = httpx2.post(f"{url}/notes/get", json={"ids": [note["id"] for note in bare + tagged]}).json()["notes"]
        return [note["hashtags"] for note in notes]

    with start_with(data_dir=folder, checkpoint=str(another)) as url:
        report = Reread(url, None, ["hashtags"], 1, 90).run()
        assert (report["read"], report["hashtags_written"], report["hashtags_of_authors"]) == (6, 3, 3)
        written = hashtags(url)
        assert all("lentils" in ones for ones in written[:3])
        assert written[3:] == [["lentils"]] * 3
        again = report_of("reread", "--generate", "hashtags", "--url", url)
        assert (again["read"], again["hashtags_written"]) == (0, 3)
        assert hashtags(url) == written


def test_hashtags_that_an_author_gives_while_they_are_generated_stay(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    send = Reread._send

    def edit_first(own: Reread, client: httpx2.Client, method: str, path: str, *arguments: Any) -> httpx2.Response:
        if (method, path) == ("PATCH", "/notes/n1") and {"hashtags": []} in arguments:
            httpx2.patch(f"{url}/notes/n1", json={"hashtags": ["hers"]})
        if (method, path) == ("PATCH", "/notes/n2") and {"hashtags": []} in arguments:
            httpx2.delete(f"{url}/notes/n2")
        return send(own, client, method, path, *arguments)

    monkeypatch.setattr(Reread, "_send", edit_first)
    report = Reread(url, None, ["hashtags"], 1, 90).run()
    assert (report["hashtags_written"], report["hashtags_of_authors"], report["removed"]) == (18, 1, 1)
    assert httpx2.get(f"{url}/notes/n1").json()["hashtags"] == ["hers"]


@pytest.mark.parametrize("values", [["category,hashtags"], ["category", "hashtags"], ["category, hashtags"]])
def test_fields_of_reread_may_be_separated_by_commas_or_repeated(values: list[str]) -> None:
    assert fields_of(values) == ["category", "hashtags"]


def test_reread_refuses_an_unknown_field_before_it_calls_the_service() -> None:
    result = run("reread", "--generate", "hashtag", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert "name hashtags or category" in " ".join(result.stderr.split())


def test_reread_takes_a_note_over_a_bound_that_was_lowered(start_with: StartWith, short_folder: Path) -> None:
    folder = short_folder / "m"
    notes = [{"id": "long", "title": "a", "content": "soup " * 300}, {"id": "short", "title": "a"}]
    with start_with(data_dir=folder) as url:
        assert httpx2.post(f"{url}/notes", json=notes, timeout=60).status_code == 207
    with start_with(data_dir=folder, max_note_bytes=1024) as url:
        report = report_of("reread", "--url", url)
    assert (report["read"], report["unchanged"], report["rejected"]) == (0, 2, 0)


def test_reread_names_a_note_that_the_service_refuses_and_goes_on(
    start_with: StartWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = Recommender.change

    async def changed(recommender: Recommender, note_id: str, *arguments: Any) -> Any:
        if note_id == "refused":
            raise LimitExceeded("max_note_bytes", 1024)
        return await change(recommender, note_id, *arguments)

    monkeypatch.setattr(Recommender, "change", changed)
    with start_with() as url:
        notes = [{"id": "refused", "title": "a"}, {"id": "taken", "title": "a"}]
        assert httpx2.post(f"{url}/notes", json=notes, timeout=60).status_code == 207
        result = run("reread", "--url", url, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["unchanged"], report["rejected"]) == (1, 1, 1)
    assert "refused: " in result.stderr


def test_export_that_was_killed_goes_on_where_it_was(url: str, tmp_path: Path) -> None:
    lines = httpx2.get(f"{url}/notes/export", params={"vectors": "base64"}).text.splitlines()
    part = tmp_path / "notes.jsonl.part"
    part.write_text("\n".join(lines[:8]) + "\n" + lines[8][:30])
    httpx2.delete(f"{url}/notes/n1")
    httpx2.patch(f"{url}/notes/n2", json={"author": "tom"})
    report = report_of("export-notes", str(tmp_path / "notes.jsonl"), "--url", url)
    assert (report["notes"], report["removed"]) == (21, 1)
    written = (tmp_path / "notes.jsonl").read_text().splitlines()
    assert written[:8] == lines[:8]
    state: dict[str, str] = {}
    for line in map(json.loads, written):
        state |= {line["id"]: line["log_position"]} if "id" in line else {}
        state.pop(line.get("removed", "") if "end" not in line else "", None)
    now = httpx2.post(f"{url}/notes/get", json={"ids": [f"n{n}" for n in range(20)]}).json()["notes"]
    assert state == {note["id"]: note["log_position"] for note in now}


def test_line_without_an_end_is_refused_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("service.notes_file", "service.cli.notes"):
        monkeypatch.setattr(f"{module}.MAX_LINE_BYTES", 2000)
    file = tmp_path / "notes.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"export": 1, "after": null}\n' + b"x" * 10_000))
    with pytest.raises(TransferFailed, match=r"line 2 of .*notes\.jsonl\.gz is longer than 2,000 bytes"):
        Upload(file, "http://127.0.0.1:9", None, replace=False, patience=0).run()


@contextlib.contextmanager
def cutting(url: str, sizes: list[int]) -> Iterator[str]:
    """Run a proxy to a service that ends each of its first connections after one of `sizes` bytes of the answer."""
    port = int(url.rpartition(":")[2])
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket, size: int | None) -> None:
        with client, socket.create_connection(("127.0.0.1", port)) as service, contextlib.suppress(OSError):
            service.sendall(client.recv(65536).replace(b"keep-alive", b"close"))
            while (size is None or size > 0) and (data := service.recv(min(65536, size or 65536))):
                client.sendall(data)
                size = None if size is None else size - len(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                serve(client, sizes.pop(0) if sizes else None)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_export_goes_on_where_its_connection_was_cut(url: str, tmp_path: Path) -> None:
    whole = httpx2.get(f"{url}/notes/export", params={"vectors": "base64"}).text.splitlines()
    with cutting(url, [0, 700, 1500, 2500]) as way:
        report_of("export-notes", str(tmp_path / "notes.jsonl"), "--url", way)
    assert (tmp_path / "notes.jsonl").read_text().splitlines() == whole


def test_file_that_is_there_is_not_overwritten(url: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text("mine")
    result = run("export-notes", str(file), "--url", url)
    assert (result.exit_code, file.read_text()) == (1, "mine")
    assert "already exists" in result.stderr


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda lines: lines[:-1], "is incomplete"),
        (lambda lines: lines[:3] + lines[4:], "is incomplete"),
        (lambda lines: lines[1:], "is not an export of format 1"),
        (lambda lines: [*lines[:3], "{", *lines[3:]], "line 4 of"),
        (lambda lines: [json.dumps(json.loads(lines[0]) | {"after": "1-0"}), *lines[1:]], "only the changes"),
        (lambda lines: [], "is not an export of format 1"),
        (lambda lines: ['[{"id": "a", "title": "soup"}]'], "not a JSON object"),
    ],
)
def test_file_that_is_no_whole_export_is_refused(
    url: str, tmp_path: Path, damage: Callable[[list[str]], list[str]], reason: str
) -> None:
    lines = httpx2.get(f"{url}/notes/export").text.splitlines()
    file = tmp_path / "notes.jsonl"
    file.write_text("".join(f"{line}\n" for line in damage(lines)))
    result = run("import-notes", str(file), "--url", url)
    assert (result.exit_code, reason in result.stderr) == (1, True), result.stderr


def test_import_says_in_words_why_notes_are_rejected(start_with: StartWith, tmp_path: Path) -> None:
    large, wrong = {"id": "large", "title": "x" * 400_000}, {"id": "wrong", "title": "soup", "vector": "AAAA"}
    file = tmp_path / "notes.jsonl"
    with start_with(max_note_bytes=1000) as url:
        head, end = map(json.loads, httpx2.get(f"{url}/notes/export").text.splitlines())
        file.write_text("".join(f"{json.dumps(line)}\n" for line in (head, large, wrong, end | {"notes": 2})))
        result = run("import-notes", str(file), "--url", url, "--json")
    assert json.loads(result.stdout)["rejected"] == 2, result.stderr
    said = dict(line.split(": ", 1) for line in result.stderr.splitlines() if line.startswith(("large", "wrong")))
    assert said["large"].endswith("See GET /limits.")
    assert said["wrong"].endswith("; /vector: must be 32-bit floats in base64")


def test_notes_that_are_too_large_for_one_request_together_are_sent_in_parts(
    url: str, start_with: StartWith, tmp_path: Path
) -> None:
    notes = [{"id": f"long{n}", "title": f"soup {n}", "content": f"{n} words " * 1000} for n in range(9)]
    assert httpx2.post(f"{url}/notes", json=notes, timeout=60).status_code == 207
    file, lines = tmp_path / "notes.jsonl", tmp_path / "lines.jsonl"
    report_of("export-notes", str(file), "--url", url)
    with start_with(max_body_bytes=40_000, max_note_bytes=30_000) as small:
        report = report_of("import-notes", str(file), "--url", small)
        assert (report["created"], report["rejected"]) == (29, 0)
        lines.write_text("".join(json.dumps(note | {"id": f"again-{note['id']}"}) + "\n" for note in notes))
        with lines.open("a") as more:
            more.write(json.dumps({"id": "whole", "title": "x", "content": "y" * 60_000}) + "\n")
        result = run("ingest", str(lines), "--url", small, "--json", "--rejects", str(tmp_path / "rejects.jsonl"))
        assert (json.loads(result.stdout)["created"], json.loads(result.stdout)["rejected"]) == (9, 1), result.stderr
        assert "max_body_bytes" in (tmp_path / "rejects.jsonl").read_text()
        assert len(contents(small)) == 38


def test_note_that_is_too_large_for_a_request_alone_does_not_end_an_import(
    url: str, start_with: StartWith, tmp_path: Path
) -> None:
    long = {"id": "a-long", "title": "soup", "content": "words " * 6600}
    assert httpx2.post(f"{url}/notes", json=long, timeout=60).status_code == 201
    file = tmp_path / "notes.jsonl"
    report_of("export-notes", str(file), "--url", url)
    with start_with(max_body_bytes=40_000) as small:
        result = run("import-notes", str(file), "--url", small, "--json")
        report = json.loads(result.stdout)
        assert (report["created"], report["rejected"]) == (20, 1), result.stderr
        assert "a-long: " in result.stderr
        assert httpx2.get(f"{small}/limits").json()["max_import_bytes"] == 40_000


def test_export_that_another_command_is_writing_is_left_to_it(url: str, tmp_path: Path) -> None:
    part = tmp_path / "notes.jsonl.part"
    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = run("export-notes", str(tmp_path / "notes.jsonl"), "--url", url)
    assert (result.exit_code, part.exists()) == (1, True)
    assert "another command is writing" in " ".join(result.stderr.split())
    assert report_of("export-notes", str(tmp_path / "notes.jsonl"), "--url", url)["notes"] == 20


@pytest.mark.parametrize("text", ['{"id": "mine"}\n{"id": "too"}\n', "plain text\n", "no line end", "x" * 10_000])
def test_part_that_is_none_of_an_export_stays_as_it_is(url: str, tmp_path: Path, text: str) -> None:
    part = tmp_path / "notes.jsonl.part"
    part.write_text(text)
    result = run("export-notes", str(tmp_path / "notes.jsonl"), "--url", url)
    assert (result.exit_code, part.read_text()) == (1, text)
    assert "is not a part of an export" in " ".join(result.stderr.split())


def test_full_disk_while_an_export_is_compressed_leaves_its_part_alone(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "notes.jsonl.gz"
    with monkeypatch.context() as full:
        full.setattr(shutil, "copyfileobj", raise_no_space)
        result = run("export-notes", str(file), "--url", url)
    assert (result.exit_code, os.listdir(tmp_path)) == (1, ["notes.jsonl.gz.part"])
    assert report_of("export-notes", str(file), "--url", url)["notes"] == 20


def raise_no_space(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_import_from_a_pipe_is_refused_since_it_reads_twice(url: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result = run("import-notes", str(pipe), "--url", url)
    assert result.exit_code == 1
    assert "write it to a file first" in " ".join(result.stderr.split())


def test_import_knows_a_compressed_export_by_its_first_bytes(url: str, start: Start, tmp_path: Path) -> None:
    file = tmp_path / "export"
    file.write_bytes(gzip.compress(httpx2.get(f"{url}/notes/export").content))
    with start("b") as other:
        assert report_of("import-notes", str(file), "--url", other)["created"] == 20


def test_export_that_could_not_begin_leaves_no_file(tmp_path: Path) -> None:
    result = run("export-notes", str(tmp_path / "n.jsonl"), "--url", "http://127.0.0.1:9", "--patience", "0")
    assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])


def test_texts_with_other_ends_of_lines_are_exported_and_imported(url: str, start: Start, tmp_path: Path) -> None:
    texts = ["one\u2028two", "one\u2029two", "one\u0085two", "one\x0btwo"]
    answer = httpx2.post(f"{url}/notes", json=[{"id": f"lines{n}", "title": text} for n, text in enumerate(texts)])
    assert answer.status_code == 207
    file = str(tmp_path / "notes.jsonl")
    assert report_of("export-notes", file, "--url", url)["notes"] == 24
    with start("b") as other:
        assert report_of("import-notes", file, "--url", other)["created"] == 24
        assert [httpx2.get(f"{other}/notes/lines{n}").json()["title"] for n in range(4)] == texts


def test_export_of_another_kind_is_not_gone_on_with(url: str, tmp_path: Path) -> None:
    lines = httpx2.get(f"{url}/notes/export").text.splitlines()
    (tmp_path / "notes.jsonl.part").write_text("\n".join(lines[:8]) + "\n")
    result = run("export-notes", str(tmp_path / "notes.jsonl"), "--url", url)
    assert (
        result.exit_code,
        "belongs to another export (vectors None, here base64)" in " ".join(result.stderr.split()),
    ) == (1, True)
    head = json.dumps(json.loads(lines[0]) | {"tenant": "films"})
    (tmp_path / "notes.jsonl.part").write_text("\n".join([head, *lines[1:8]]) + "\n")
    result = run("export-notes", str(tmp_path / "notes.jsonl"), "--no-vectors", "--url", url)
    assert (
        result.exit_code,
        "belongs to another export (tenant films, here default)" in " ".join(result.stderr.split()),
    ) == (1, True)
