"""The `notellm` command as a process: start, stop, SIGKILL, and its ingest."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import redis

from service.cli.ingest import Ingest
from service.cli.main import REJECTED
from service.cli.transfer import TransferFailed
from service.notes_file import Line
from tests.service.conftest import DebianRedis, kill
from tests.service.process import NOTELLM, Process, alive, running, wait_until

pytestmark = pytest.mark.slow
KEY = "the-bootstrap-key-of-these-tests"


@pytest.fixture
def service(tiny_checkpoint: Path) -> Iterator[Process]:
    """A service that the test may kill."""
    with running(tiny_checkpoint) as process:
        yield process


@pytest.fixture(scope="module")
def shared(tiny_checkpoint: Path) -> Iterator[Process]:
    """A service that several tests use and leave alive."""
    with running(tiny_checkpoint) as process:
        yield process


@pytest.fixture
def notes_file(tmp_path: Path) -> Path:
    """A gzip file of 150 notes: lines 10 and 20 are invalid, and the others have an unknown field."""
    lines = [json.dumps({"id": f"n{i}", "title": f"note {i}", "caption": "extra"}) for i in range(1, 151)]
    lines[9], lines[19] = "{broken", json.dumps({"id": "n20", "title": ""})
    path = tmp_path / "notes.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def test_start_is_log_lines_where_nobody_watches(shared: Process) -> None:
    wait_until(lambda: '"event": "serving"' in shared.log)
    lines = [json.loads(line) for line in shared.log.splitlines() if line.startswith("{")]  # libraries write text
    assert "Loading the model" in [line["step"] for line in lines if line["event"] == "starting"]
    assert [line["url"] for line in lines if line["event"] == "serving"] == [shared.url]


def test_sigterm_finishes_requests_in_flight_and_ends_redis(service: Process) -> None:
    server = service.redis_pid()
    body = json.dumps([{"id": f"w{i}", "title": f"in flight {i}"} for i in range(100)]).encode()
    address = httpx2.URL(service.url)
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        head = "POST /notes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert b" 100 " in connection.recv(1024)  # the request is being read, so it is in flight
        service.send(signal.SIGTERM)
        connection.sendall(body)
        assert b" 207 " in connection.recv(1024)
    service.wait()
    assert not alive(server)
    service.start()
    assert httpx2.get(f"{service.url}/notes/w99").status_code == 200


def test_sigterm_is_told_by_readyz_while_requests_are_served(tiny_checkpoint: Path) -> None:
    with (
        running(tiny_checkpoint, NOTELLM_DRAIN_SECONDS="600") as service,
        httpx2.Client(base_url=service.url) as client,
    ):
        service.send(signal.SIGTERM)
        wait_until(lambda: client.get("/readyz").status_code == 503)
        answer = client.get("/readyz").json()
        assert {name: check["ok"] for name, check in answer["checks"].items() if not check["ok"]} == {"drain": False}
        added = client.post("/notes", json={"title": "in time"})
        assert (added.status_code, added.headers["connection"]) == (201, "close")
        assert client.get("/livez").status_code == 200
        service.send(signal.SIGTERM)  # a second signal ends the drain
        service.wait()


AS_FIRST_PROCESS = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
"""Command that runs another one as the first process of a namespace, as in a container."""


def makes_namespaces() -> bool:
    """Whether `unshare` is installed, and the kernel lets it make a namespace."""
    return bool(shutil.which(AS_FIRST_PROCESS[0])) and not subprocess.run([*AS_FIRST_PROCESS, "true"]).returncode


@pytest.mark.parametrize("started", [False, True])
def test_sigterm_ends_the_first_process_of_a_container(tiny_checkpoint: Path, tmp_path: Path, started: bool) -> None:
    if not makes_namespaces():
        # Not `require`, which fails in CI: no package makes up for a kernel that forbids namespaces, as in a container.
        pytest.skip("the kernel allows no namespace here, or unshare is not installed")
    service = Process(tmp_path, tiny_checkpoint, NOTELLM_REDIS_URL="redis://127.0.0.1:9")  # nothing listens there
    process = subprocess.Popen([*AS_FIRST_PROCESS, NOTELLM, "serve"], env=service.environment)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        wait_until(lambda: service.answers("/startupz") if started else service.listens())
        os.kill(int(children.read_text()), signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()


def test_interrupt_at_a_terminal_ends_service_and_redis_without_draining(tiny_checkpoint: Path) -> None:
    with running(tiny_checkpoint, NOTELLM_DRAIN_SECONDS="600") as service:
        server = service.redis_pid()
        assert service.end(signal.SIGINT) == 0
        assert not alive(server)


def test_acknowledged_notes_survive_sigkill_of_the_service(service: Process) -> None:
    acknowledged = [httpx2.post(f"{service.url}/notes", json={"title": f"kept {i}"}).json()["id"] for i in range(20)]
    server = service.redis_pid()
    service.end(signal.SIGKILL)
    wait_until(lambda: not alive(server))
    service.start()
    for note_id in acknowledged:
        found = httpx2.get(f"{service.url}/notes/{note_id}/similar", params={"k": 1})
        assert found.status_code == 200
    assert httpx2.get(f"{service.url}/readyz").json()["notes"] == 20


def test_embedded_server_is_restarted_after_sigkill(service: Process) -> None:
    acknowledged = [httpx2.post(f"{service.url}/notes", json={"title": f"kept {i}"}).json()["id"] for i in range(5)]
    first = service.redis_pid()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not alive(first))
    wait_until(service.ready)
    assert service.redis_pid() != first
    for note_id in acknowledged:
        assert httpx2.get(f"{service.url}/notes/{note_id}").status_code == 200
    assert httpx2.post(f"{service.url}/notes", json={"title": "after"}).status_code == 201


def test_ingest_reports_bad_lines_and_resumes(shared: Process, notes_file: Path) -> None:
    first = shared.call("ingest", str(notes_file), "--json")
    report: dict[str, Any] = json.loads(first.stdout)
    assert (first.exit_code, report["created"], report["rejected"], report["last_line"]) == (REJECTED, 148, 2, 150)
    assert "caption" in first.stderr
    rejected = shared.folder / f"{notes_file.name}.rejects.jsonl"
    assert rejected.stat().st_mode & 0o077 == 0
    rejects = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert [r["line"] for r in rejects] == [10, 20]
    assert all(r["reason"] for r in rejects)
    repeated = shared.call("ingest", str(notes_file), "--json")
    again = json.loads(repeated.stdout)
    assert (again["created"], again["unchanged"], again["last_line"]) == (0, 0, 150)
    assert (repeated.exit_code, again["rejected"]) == (REJECTED, 2), "the file has lines that were not taken"
    assert "nothing was sent: all 150 lines were already sent to this model" in " ".join(repeated.stderr.split())
    anew = json.loads(shared.call("ingest", str(notes_file), "--restart", "--json").stdout)
    assert (anew["created"], anew["unchanged"]) == (0, 148)


def test_ingest_under_another_key_begins_with_the_first_line(shared: Process) -> None:
    file = shared.folder / "two-keys.jsonl"
    file.write_text("".join(json.dumps({"id": f"k{n}", "title": f"note {n}", "[/b]": 1}) + "\n" for n in range(3)))
    first = shared.call("ingest", str(file), "--json")
    assert (first.exit_code, "'[/b]' is not a field of a note" in first.stderr) == (0, True)
    assert json.loads(shared.call("ingest", str(file), "--json").stdout)["unchanged"] == 0
    other = shared.call("ingest", str(file), "--json", "--api-key", "another")
    assert json.loads(other.stdout)["unchanged"] == 3


def test_ingest_of_another_model_begins_with_the_first_line(shared: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shared.folder / "two-models.jsonl"
    file.write_text("".join(json.dumps({"id": f"m{n}", "title": f"note {n}"}) + "\n" for n in range(3)))
    assert json.loads(shared.call("ingest", str(file), "--json").stdout)["created"] == 3
    get = httpx2.Client.get

    def of_another_model(client: httpx2.Client, path: str) -> httpx2.Response:
        return httpx2.Response(200, json=get(client, path).json() | {"space": "of another model"})

    monkeypatch.setattr(httpx2.Client, "get", of_another_model)
    other = shared.call("ingest", str(file), "--json")
    assert json.loads(other.stdout)["unchanged"] == 3
    assert "nothing was sent" not in other.stderr


def test_ingest_whose_state_was_cut_off_begins_with_the_first_line(shared: Process) -> None:
    file = shared.folder / "cut-off.jsonl"
    file.write_text('{"id": "cut", "title": "a note"}\n')
    shared.call("ingest", str(file))
    for state in (shared.folder / "d" / "ingest").glob("*.json"):
        if json.loads(state.read_text())["file"] == str(file):
            state.write_text("")
    again = shared.call("ingest", str(file), "--json")
    assert (again.exit_code, json.loads(again.stdout)["unchanged"]) == (0, 1)
    assert "cannot be read: starting at the first line" in " ".join(again.stderr.split())


def test_ingest_goes_through_a_queue_shorter_than_its_batches(tiny_checkpoint: Path, notes_file: Path) -> None:
    with running(tiny_checkpoint, NOTELLM_QUEUE_NOTES="10") as service:
        report = json.loads(service.call("ingest", str(notes_file), "--json", "--patience", "0").stdout)
    assert (report["created"], report["rejected"]) == (148, 2)


def test_ingest_whose_answer_was_lost_stores_once(shared: Process) -> None:
    file = shared.folder / "without-ids.jsonl"
    file.write_text("".join(f'{{"title": "without an id {n}"}}\n' for n in range(70)))
    shared.call("ingest", str(file))
    before = httpx2.get(f"{shared.url}/readyz").json()["notes"]
    for state in (shared.folder / "d" / "ingest").glob("*.json"):
        acknowledged = json.loads(state.read_text())
        if acknowledged["file"] == str(file):
            state.write_text(json.dumps(acknowledged | {"line": 0, "rejected": 0}))  # as it was before the first answer
    again = json.loads(shared.call("ingest", str(file), "--json").stdout)
    assert (again["created"], httpx2.get(f"{shared.url}/readyz").json()["notes"]) == (70, before)


def test_ingest_without_a_service_says_how_to_resume(shared: Process, notes_file: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    result = shared.call("ingest", str(notes_file), "--patience", "0", "--url", nowhere)
    assert result.exit_code == 1
    assert "again to resume" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("file", "restart", "advice"),
    [
        ("notes.jsonl", False, "Run the same command again to resume."),
        ("notes.jsonl", True, "Run the same command again, without --restart, to resume."),
        ("-", False, "Standard input cannot be resumed: run the command with the lines that are missing."),
    ],
)
def test_ingest_that_fails_advises_what_resumes_it(tmp_path: Path, file: str, restart: bool, advice: str) -> None:
    ingest = Ingest(Path(file), "http://127.0.0.1:9", None, tmp_path, "", None, None, restart, 0.0)
    with httpx2.Client(base_url=ingest.url) as client, pytest.raises(TransferFailed) as error:
        ingest._post(client, "key", [Line(1, b"", {"title": "soup"})])
    assert str(error.value).endswith(advice)


def test_ingest_whose_rejects_would_replace_its_file_is_refused(shared: Process) -> None:
    file = shared.folder / "own.jsonl"
    file.write_text('{"broken\n{"title": "soup"}\n')
    result = shared.call("ingest", str(file), "--rejects", str(file))
    assert result.exit_code == 1
    assert "choose another one for --rejects" in " ".join(result.stderr.split())
    assert file.read_text() == '{"broken\n{"title": "soup"}\n'


def test_ingest_beside_another_one_of_the_file_is_refused(shared: Process) -> None:
    file = shared.folder / "twice.jsonl"
    file.write_text('{"title": "soup, twice"}\n')
    assert shared.call("ingest", str(file)).exit_code == 0
    for path in (shared.folder / "d" / "ingest").glob("*.lock"):
        with path.open("ab") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            result = shared.call("ingest", str(file))
            if result.exit_code:
                break
    else:
        pytest.fail("no lock keeps another run out")
    assert "another command is sending this file" in " ".join(result.stderr.split())


def test_ingest_that_was_broken_off_tells_of_all_rejected_lines_once(
    shared: Process, notes_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shared.folder / "broken-off.jsonl"
    lines = gzip.decompress(notes_file.read_bytes()).splitlines()
    lines[99] = b"{broken"
    file.write_bytes(b"\n".join(lines))
    post, keys = Ingest._post, list[str]()

    def fail_at_the_second(ingest: Ingest, client: httpx2.Client, key: str, batch: list[Line]) -> Any:
        keys.append(key)
        if len(keys) == 2:
            raise TransferFailed("the service does not answer")
        return post(ingest, client, key, batch)

    monkeypatch.setattr(Ingest, "_post", fail_at_the_second)
    assert shared.call("ingest", str(file)).exit_code == 1
    resumed = shared.call("ingest", str(file), "--json")
    assert (resumed.exit_code, json.loads(resumed.stdout)["rejected"]) == (REJECTED, 3)
    rejects = (shared.folder / "broken-off.jsonl.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in rejects] == [10, 20, 100]


@pytest.mark.parametrize("second_answer", ["lost", "refused"])
def test_ingest_in_halves_that_was_broken_off_resumes_also_without_the_bound(
    shared: Process, monkeypatch: pytest.MonkeyPatch, second_answer: str
) -> None:
    file = shared.folder / f"halves-{second_answer}.jsonl"
    file.write_text("".join(f'{{"title": "without an id, {second_answer}, {n}"}}\n' for n in range(70)))
    before = httpx2.get(f"{shared.url}/readyz").json()["notes"]
    post, accepted = httpx2.Client.post, list[int]()

    def post_through_a_proxy(client: httpx2.Client, path: str, *, content: bytes, **options: Any) -> httpx2.Response:
        notes = len(json.loads(content))
        if notes > 20:
            return httpx2.Response(413, text="the proxy's own page")
        accepted.append(notes)
        if len(accepted) == 2:
            if second_answer == "lost":
                post(client, path, content=content, **options)
            raise httpx2.ReadError("the connection was lost")
        return post(client, path, content=content, **options)

    monkeypatch.setattr(httpx2.Client, "post", post_through_a_proxy)
    assert shared.call("ingest", str(file), "--patience", "0").exit_code == 1
    assert accepted == [16, 16]
    monkeypatch.undo()
    resumed = shared.call("ingest", str(file), "--json")
    assert (resumed.exit_code, json.loads(resumed.stdout)["created"]) == (0, 54)
    assert httpx2.get(f"{shared.url}/readyz").json()["notes"] == before + 70


def test_ingest_goes_on_with_a_line_that_expired_meanwhile(shared: Process) -> None:
    file = shared.folder / "expiring.jsonl"
    soon, past = ((datetime.now(UTC) + timedelta(seconds=seconds)).isoformat() for seconds in (10, -10))
    lines = [
        {"id": "soon", "title": "expires soon", "expires_at": soon},
        {"id": "past", "title": "has expired", "expires_at": past},
        {"id": "stays", "title": "stays"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert shared.call("ingest", str(file)).exit_code == REJECTED
    for state in (shared.folder / "d" / "ingest").glob("*.json"):
        acknowledged = json.loads(state.read_text())
        if acknowledged["file"] == str(file):
            state.write_text(json.dumps(acknowledged | {"line": 0, "rejected": 0}))  # as it was before the first answer
    wait_until(lambda: datetime.now(UTC).isoformat() > soon)
    again = shared.call("ingest", str(file), "--json")
    report = json.loads(again.stdout)
    assert (again.exit_code, report["created"], report["rejected"], report["last_line"]) == (REJECTED, 2, 1, 3)
    (reject,) = map(json.loads, (shared.folder / "expiring.jsonl.rejects.jsonl").read_text().splitlines())
    assert (reject["line"], "/expires_at: must be in the future" in reject["reason"]) == (2, True)


def test_url_with_a_slash_at_its_end_is_that_without(shared: Process) -> None:
    assert shared.call("status", "--url", f"{shared.url}/").exit_code == 0


def test_text_without_hashtags_is_told_why(shared: Process) -> None:
    answer = shared.call("hashtags", "a bowl", "--min-score", "1")
    assert answer.exit_code == 0
    assert "none: " in answer.stderr
    assert "none: None" not in answer.stderr


def test_ingest_that_is_refused_says_which_option_is_wrong(shared: Process, notes_file: Path) -> None:
    result = shared.call("ingest", str(notes_file), "--generate", "hashtag")
    assert (result.exit_code, "/query/generate: must be hashtags, category or both" in result.stderr) == (1, True)


def test_ingest_reads_notes_from_standard_input(shared: Process) -> None:
    command = [NOTELLM, "ingest", "-", "--json"]
    result = subprocess.run(
        command, input=b'{"id": "piped", "title": "piped"}\n', env=shared.environment, capture_output=True, check=True
    )
    assert json.loads(result.stdout)["created"] == 1


def test_every_command_prints_a_table_or_json(shared: Process) -> None:
    for i in range(3):
        httpx2.post(f"{shared.url}/notes", json={"id": f"c{i}", "title": f"command {i}"})
    for arguments in (
        ("similar", "c0"),
        ("similar", "--title", "command"),
        ("hashtags", "a title", "a content"),
        ("hashtags", "a title", "--policy", "grounded", "--block", "title"),
        ("category", "a title", "--among", "Food", "--among", "Pets"),
        ("category", "a title", "--among", "Food", "--among", "Pets", "--all-categories"),
        ("category", "a title", "--among", "Food", "--among", "Pets", "--min-probability", "1"),
        ("status",),
    ):
        people, programs = shared.call(*arguments), shared.call(*arguments, "--json")
        assert people.exit_code == programs.exit_code == 0, people.stderr
        assert people.stdout
        assert isinstance(json.loads(programs.stdout), dict)
    unknown = shared.call("similar", "nobody")
    assert (unknown.exit_code, "There is no note" in unknown.stderr) == (1, True)


def test_similar_takes_examples_and_options(shared: Process) -> None:
    for i in range(6):
        note = {"id": f"e{i}", "title": f"example {i // 2}", "author": f"e-{i % 3}"}
        httpx2.post(f"{shared.url}/notes", json=note)
    options = ("--positive", "e0", "--positive", "e-none", "--negative", "e5", "--skip-missing", "--diversity", "0.3")
    options += ("--max-per-author", "1", "--collapse-above", "0.99", "--explain", "-k", "5", "--sources", "auto")
    people, programs = shared.call("similar", *options), shared.call("similar", *options, "--json")
    assert people.exit_code == programs.exit_code == 0, people.stderr
    answer = json.loads(programs.stdout)
    assert answer["missing"] == ["e-none"]
    authors = [item["author"] for item in answer["items"] if item["author"]]
    assert len(set(authors)) == len(authors) > 1
    missing = "ignored examples (not found, unreadable, or embedded by another model): e-none"
    for words in ("relevance", "words 0", "behaviour 0", missing, "left out: ", "max_per_author"):
        assert words in people.stdout
    beside = shared.call("similar", "e0", "--title", "example 1", "--strategy", "best_score", "-k", "1", "--json")
    assert len(json.loads(beside.stdout)["items"]) == 1
    refused = shared.call("similar", "--negative", "e0")
    assert (refused.exit_code, "/strategy" in refused.stderr) == (1, True)
    nothing = shared.call("similar")
    assert (nothing.exit_code, "--positive" in nothing.stderr) == (2, True)
    misspelt = shared.call("similar", "e0?")
    assert (misspelt.exit_code, "must be a string of 1 to 128 characters" in misspelt.stderr) == (1, True)


def test_similar_takes_weights_of_sources_as_they_are(shared: Process) -> None:
    words = [f"w{i}x" for i in range(24)]
    titles = {"s0": " ".join(words[:12]), "s1": " ".join(words[11:])}  # they share one word
    titles |= {f"other{i}": f"other {i}" for i in range(4)}  # a word that all notes have would weigh nothing
    for note_id, title in titles.items():
        assert httpx2.post(f"{shared.url}/notes", json={"id": note_id, "title": title}).status_code == 201
    body = json.dumps({"sources": {"content": 1, "words": 0.5, "behaviour": 1}})
    for options, words_count in ((("--sources", "auto"), False), (("--body", body), True)):
        answer = json.loads(shared.call("similar", "s0", *options, "--explain", "--json").stdout)
        assert any(item["explanation"]["words"] for item in answer["items"]) is words_count


def test_least_score_of_hashtags_is_an_option(shared: Process, tmp_path: Path) -> None:
    assert json.loads(shared.call("hashtags", "a bowl", "--min-score", "1", "--json").stdout)["hashtags"] == []
    file = tmp_path / "few.jsonl"
    file.write_text('{"id": "few", "title": "a bowl"}\n')
    assert shared.call("ingest", str(file), "--generate", "hashtags", "--min-score", "1").exit_code == 0
    assert httpx2.get(f"{shared.url}/notes/few").json()["hashtags"] == []


def test_similar_takes_every_field_of_a_search(shared: Process) -> None:
    """Each field of POST /similar has an option or is left to --body, and each option does what its field does."""
    schema = httpx2.get(f"{shared.url}/openapi.json").json()["components"]["schemas"]["SimilarIn"]
    shown = shared.call("similar", "--help").stdout
    options = {"k": "-k", "on_missing": "--skip-missing", "hashtags": "--body", "filter": "--body", "boost": "--body"}
    for field in schema["properties"]:
        assert options.get(field, f"--{field.replace('_', '-')}") in shown, field
    notes = [
        {"id": f"w{i}", "title": f"walk {i}", "author": "wim", "hashtags": ["w", "even" if i % 2 == 0 else "odd"]}
        for i in range(6)
    ]
    position = httpx2.post(f"{shared.url}/notes", json=notes).json()["results"][-1]["log_position"]

    def found(*arguments: str) -> dict[str, Any]:
        result = shared.call("similar", *arguments, "--author", "wim", "--json")
        assert result.exit_code == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer | {"ids": [item["id"] for item in answer["items"]]}

    even = found("w0", "--all-hashtag", "w", "--all-hashtag", "even", "--min-log-position", position, "--exact")
    assert sorted(even["ids"]) == ["w2", "w4"]
    assert sorted(found("w0", "--exclude", "w1", "--exclude", "w2")["ids"]) == ["w3", "w4", "w5"]
    assert found("w0", "--created-before", "2001-01-01T00:00:00Z")["ids"] == []
    assert found("w0", "-k", "1", "--include", "revision")["items"][0]["revision"] == 1
    assert "1. revision: 1" in shared.call("similar", "w0", "-k", "1", "--include", "revision").stdout
    first = found("w0", "-k", "3", "--cursor", "*")
    second = found("w0", "-k", "3", "--cursor", first["next_cursor"])
    assert first["ids"] + second["ids"] == found("w0")["ids"]
    assert "next page: --cursor" in shared.call("similar", "w0", "-k", "1", "--cursor", "*").stdout
    body = {
        "positive": [{"note_id": "w1", "weight": 2}],
        "filter": {"not": {"hashtag": "even"}},
        "boost": [{"weight": 5, "match": {"hashtag": "odd"}}],
    }
    weighted = found("--positive", "w0", "--body", json.dumps(body), "--explain")
    assert sorted(weighted["ids"]) == ["w3", "w5"]
    assert weighted["items"][0]["explanation"]["boosts"] == [5.0]
    wrong = shared.call("similar", "w0", "--body", "[1]")
    assert (wrong.exit_code, "--body" in wrong.stderr) == (2, True)


def test_notes_are_listed_removed_and_followed(shared: Process) -> None:
    def answer(*arguments: str) -> Any:
        people, programs = shared.call(*arguments), shared.call(*arguments, "--json")
        assert people.exit_code == programs.exit_code == 0, people.stderr
        assert people.stdout
        return json.loads(programs.stdout)

    before = answer("changes")["log_position"]
    notes = [{"id": f"l{i}", "title": f"list {i}", "author": "lea" if i % 2 else "leo"} for i in range(6)]
    assert httpx2.post(f"{shared.url}/notes", json=notes).status_code == 207
    page = answer("list-notes", "--author", "lea", "--limit", "2")
    assert [note["id"] for note in page["notes"]] == ["l1", "l3"]
    rest = answer("list-notes", "--author", "lea", "--limit", "2", "--cursor", page["next_cursor"])
    assert [note["id"] for note in rest["notes"]] == ["l5"]
    assert "--cursor" in shared.call("list-notes", "--limit", "1").stdout
    tried = answer("delete-notes", "--author", "lea", "--dry-run")
    assert (tried["dry_run"], tried["ids"], tried["log_position"]) == (True, ["l1", "l3", "l5"], None)
    receipt = json.loads(shared.call("delete-notes", "--author", "lea", "--json").stdout)
    assert (receipt["ids"], receipt["ids_sha256"]) == (tried["ids"], tried["ids_sha256"])
    by_ids = json.loads(shared.call("delete-notes", "l0", "nobody", "--json").stdout)
    assert (by_ids["ids"], by_ids["missing"]) == (["l0"], ["nobody"])
    changes = [(change["op"], change["id"]) for change in answer("changes", "--after", before)["changes"]]
    removed = ["l1", "l3", "l5", "l0"]
    assert changes == [("put", f"l{i}") for i in range(6)] + [("delete", note_id) for note_id in removed]
    for misused in ((), ("l2", "--author", "leo")):
        result = shared.call("delete-notes", *misused)
        assert (result.exit_code, "--author" in result.stderr) == (2, True)
    assert httpx2.get(f"{shared.url}/notes/l2").status_code == 200


def test_client_finds_the_service_by_host_and_port(shared: Process) -> None:
    environment = {name: value for name, value in shared.environment.items() if name != "NOTELLM_URL"}
    command = [NOTELLM, "status", "--json"]
    result = subprocess.run(
        command, env=environment | {"NOTELLM_HOST": "0.0.0.0"}, capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout)["ready"] is True


def test_hashtags_of_two_words_are_readable_in_a_table(shared: Process) -> None:
    for i in range(2):
        note = {"id": f"tagged{i}", "title": "tagged", "hashtags": ["night bus", "budget travel"]}
        httpx2.post(f"{shared.url}/notes", json=note)
    command = [NOTELLM, "similar", "tagged0"]
    result = subprocess.run(
        command, env=shared.environment | {"COLUMNS": "200"}, capture_output=True, text=True, check=True
    )
    assert "night bus, budget travel" in result.stdout


def test_keys_are_created_listed_rotated_and_revoked(tiny_checkpoint: Path) -> None:
    with running(tiny_checkpoint, NOTELLM_BOOTSTRAP_KEY=KEY, NOTELLM_HOST="0.0.0.0") as service:
        assert "Authorization: Bearer" in service.call("keys", "list").stderr
        service.environment["NOTELLM_API_KEY"] = KEY
        created = service.call(
            "keys", "create", "website", "--scope", "similar", "--scope", "notes.write", "--days", "1"
        )
        (token,) = created.stdout.split()
        prefix = token.split("_")[1]
        (listed,) = json.loads(service.call("keys", "list", "--json").stdout)["keys"]
        assert (listed["prefix"], listed["scopes"]) == (prefix, ["notes.write", "similar"])
        assert prefix in service.call("keys", "list").stdout
        (fresh,) = service.call("keys", "rotate", prefix, "--overlap", "0").stdout.split()
        assert service.call("similar", "--title", "bread", "--api-key", token).exit_code == 1
        assert service.call("similar", "--title", "bread", "--api-key", fresh).exit_code == 0
        lines = service.folder / "lines.jsonl"
        lines.write_text('{"id": "a", "title": "bread"}')
        assert service.call("ingest", str(lines), "--api-key", fresh).exit_code == 0
        assert service.call("keys", "revoke", prefix).exit_code == 0
        assert service.call("ingest", str(lines), "--restart", "--api-key", fresh).exit_code == 1
        assert not [secret for secret in (KEY, token, fresh) if secret.split("_", 2)[-1] in service.log]


def test_verify_of_an_index_that_differs_fails_and_repairs_it(service: Process) -> None:
    assert httpx2.post(f"{service.url}/notes", json={"id": "a", "title": "a"}).status_code == 201
    with redis.Redis(unix_socket_path=str(service.folder / "d" / "redis.sock")) as store:
        vector = np.frombuffer(store.hget("{notes}:note:a", "vector"), "<f4")
        store.hset("{notes}:note:a", "vector", (-vector).tobytes())  # without an entry in the log
    found = service.call("verify", "--json")
    assert (found.exit_code, json.loads(found.stdout)["differing"]["different"]["ids"]) == (1, ["a"])
    assert json.loads(service.call("verify", "--repair", "--json").stdout)["repaired"] is True
    assert service.call("verify").exit_code == 0


def test_status_of_a_service_without_its_store_fails_and_names_the_check(
    tiny_checkpoint: Path, guarded_redis: DebianRedis
) -> None:
    with running(tiny_checkpoint, NOTELLM_REDIS_URL=guarded_redis.url) as process:
        assert process.call("status").exit_code == 0
        kill(guarded_redis)
        wait_until(lambda: not process.answers("/readyz"))
        answer = process.call("status")
        assert (answer.exit_code, "NOT OK" in answer.stdout) == (1, True)
