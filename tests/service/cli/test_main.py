"""The command line without a service: version, completion, and settings that are refused in one line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli.client import checked_key
from service.cli.main import app

NOTELLM = str(Path(sys.executable).with_name("notellm"))
CLIENT_COMMANDS = [
    ("ingest", "nothing.jsonl"),
    ("similar", "a"),
    ("hashtags", "a title"),
    ("category", "a title"),
    ("status",),
    ("verify",),
    ("list-notes",),
    ("delete-notes", "a"),
    ("changes",),
    ("export-notes", "nothing.jsonl"),
    ("import-notes", __file__),
    ("keys", "list"),
    ("keys", "create", "a name", "--scope", "similar"),
    ("keys", "rotate", "abcdefghij"),
    ("keys", "revoke", "abcdefghij"),
]


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Fail a test whose command leaves another umask in this process, under which later tests create files."""
    before = os.umask(0o022)
    yield
    assert os.umask(before) == 0o022


def run(*arguments: str, **environment: str) -> Result:
    clean = {name: None for name in os.environ if name.startswith("NOTELLM_")}
    return CliRunner().invoke(app, arguments, env=clean | environment)


def test_version_option_prints_the_installed_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"notellm {version('notellm')}\n")


def test_shell_completion_completes_a_command() -> None:
    asked = {"_NOTELLM_COMPLETE": "complete_bash", "COMP_WORDS": "notellm sim", "COMP_CWORD": "1"}
    result = subprocess.run([NOTELLM], env=os.environ | asked, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["similar"]


def test_help_offers_to_install_completion() -> None:
    assert "--install-completion" in run("--help").stdout


@pytest.mark.parametrize("command", ["serve", "openapi"])
@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("NOTELLM_PORT", "http", "NOTELLM_PORT is 'http'; it must be a whole number from 0 to 65535"),
        ("NOTELLM_PORT", "65536", "NOTELLM_PORT is '65536'; it must be a whole number from 0 to 65535"),
        ("NOTELLM_DEVICE", "tpu", "NOTELLM_DEVICE is 'tpu'; it must be one of auto, cpu, cuda"),
        ("NOTELLM_SAMPLE_NOTES", "-1", "NOTELLM_SAMPLE_NOTES is '-1'; it must be a whole number of at least 0"),
        ("NOTELLM_REQUEST_SECONDS", "0", "NOTELLM_REQUEST_SECONDS is '0'; it must be a number above 0"),
        (
            "NOTELLM_REDIS_URL",
            "http://:hidden@r",
            "NOTELLM_REDIS_URL must begin with redis://, rediss:// or unix://, with the password percent-encoded",
        ),
        ("NOTELLM_REDIS_URL", "", "NOTELLM_REDIS_URL is empty; unset it to use the embedded server"),
        ("NOTELLM_DATA_DIR", "", "NOTELLM_DATA_DIR must not be empty: name a file or folder, or unset it"),
        ("NOTELLM_ADMIN_PORT", "8000", "NOTELLM_ADMIN_PORT must differ from NOTELLM_PORT"),
    ],
)
def test_wrong_setting_is_refused_in_one_line(command: str, variable: str, value: str, line: str) -> None:
    result = run(command, **{variable: value})
    assert (result.exit_code, result.stderr, result.stdout) == (2, f"{line}\n", "")


@pytest.mark.parametrize("command", ["serve", "openapi", "status"])
def test_unknown_setting_is_refused_with_the_nearest_one(command: str) -> None:
    result = run(command, NOTELLM_CATEGORYS="Food", NOTELLM_ZZZ="1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "NOTELLM_CATEGORYS is not a setting; did you mean NOTELLM_CATEGORIES?",
        "NOTELLM_ZZZ is not a setting; see docs/configuration.md for all settings",
    ]


def test_two_wrong_settings_are_refused_in_a_line_each() -> None:
    result = run("serve", NOTELLM_PORT="http", NOTELLM_MAX_K="0")
    assert result.exit_code == 2
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["NOTELLM_PORT", "NOTELLM_MAX_K"]


@pytest.mark.parametrize("arguments", CLIENT_COMMANDS, ids=[arguments[0] for arguments in CLIENT_COMMANDS])
def test_client_with_a_wrong_port_is_refused_in_one_line(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, NOTELLM_PORT="http")
    assert result.exit_code == 2
    assert result.stderr == "NOTELLM_PORT is 'http'; it must be a whole number from 0 to 65535\n"


def test_serve_without_its_checkpoint_says_so_in_one_line(tmp_path: Path) -> None:
    environment = os.environ | {
        "NOTELLM_CHECKPOINT": str(tmp_path),
        "NOTELLM_DATA_DIR": str(tmp_path / "data"),
        "NOTELLM_CACHE_DIR": str(tmp_path / "cache"),
        "NOTELLM_PORT": "0",
    }
    result = subprocess.run([NOTELLM, "serve"], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 3  # uvicorn's status for a failed start
    assert "Traceback" not in result.stderr
    assert f"{tmp_path} has no .safetensors file" in result.stderr


def test_serve_on_a_taken_port_is_refused_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run("serve", NOTELLM_PORT=str(port))
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2
    assert f"NOTELLM_PORT is {port}" in line
    assert "free" in line


def test_serve_on_an_unknown_host_is_refused_in_one_line() -> None:
    result = run("serve", NOTELLM_HOST="no-such-host.invalid")
    (line,) = result.stderr.splitlines()
    assert (result.exit_code, "NOTELLM_HOST is 'no-such-host.invalid'" in line) == (2, True)


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({"NOTELLM_HOST": "0.0.0.0", "NOTELLM_PORT": "9"}, "http://127.0.0.1:9"),
        ({"NOTELLM_HOST": "::", "NOTELLM_PORT": "9"}, "http://[::1]:9"),
        ({"NOTELLM_HOST": "::1", "NOTELLM_PORT": "9"}, "http://[::1]:9"),
        ({"NOTELLM_PORT": "9"}, "http://127.0.0.1:9"),
        ({"NOTELLM_PORT": "9", "NOTELLM_URL": "http://127.0.0.1:10"}, "http://127.0.0.1:10"),
    ],
)
def test_client_without_a_service_names_the_url_it_tried(environment: dict[str, str], url: str) -> None:
    result = run("status", **environment)
    assert (result.exit_code, result.stderr.split()[0]) == (1, url)


@pytest.mark.parametrize(
    ("arguments", "port"),
    [
        (("keys", "list"), 10),
        (("keys", "create", "a name", "--scope", "similar"), 10),
        (("keys", "rotate", "abcdefghij"), 10),
        (("keys", "revoke", "abcdefghij"), 10),
        (("verify",), 10),
        (("status",), 9),
        (("similar", "a"), 9),
    ],
)
def test_command_for_those_who_run_the_service_talks_to_the_admin_port(arguments: tuple[str, ...], port: int) -> None:
    result = run(*arguments, NOTELLM_PORT="9", NOTELLM_ADMIN_PORT="10")
    assert result.exit_code == 1
    assert f"http://127.0.0.1:{port}" in result.stderr


@pytest.mark.parametrize("command", [("backup", "copy"), ("purge",)])
def test_command_in_a_folder_without_a_store_makes_none(tmp_path: Path, command: tuple[str, ...]) -> None:
    result = run(*command, NOTELLM_DATA_DIR=str(tmp_path / "typo"))
    assert result.exit_code == 1
    assert f"there is no store in {tmp_path / 'typo'}" in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_line_end_of_an_api_key_is_left_out() -> None:
    assert checked_key("nlm_abc_secret\r\n") == "nlm_abc_secret"
    assert checked_key(" ") is None


@pytest.mark.parametrize("key", ["nlm_abc sec", "nlm_abc_s\u00e9c"])
def test_api_key_that_no_header_can_hold_is_refused_without_being_shown(key: str) -> None:
    result = run("status", "--url", "http://127.0.0.1:9", NOTELLM_API_KEY=key)
    assert result.exit_code == 2
    assert "has spaces" in result.stderr
    assert "sec" not in result.stderr + result.stdout


@pytest.mark.parametrize("prefix", ["../notes/x", "..", "a b", ""])
def test_prefix_of_a_key_cannot_name_another_path(prefix: str) -> None:
    assert run("keys", "revoke", "--url", "http://127.0.0.1:9", "--", prefix).exit_code == 2


def test_whole_key_is_no_prefix_and_is_not_shown() -> None:
    result = run("keys", "revoke", "nlm_abcdefghij_hidden", "--url", "http://127.0.0.1:9")
    assert (result.exit_code, "is a whole key" in result.stderr, "hidden" in result.stderr) == (2, True, False)


class ErrorPage(BaseHTTPRequestHandler):
    """Answers like a proxy whose service is unavailable."""

    def do_GET(self) -> None:
        page = b"<html><h1>502 Bad Gateway</h1></html>"
        self.send_response(502)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing: standard error is the command's."""


@pytest.mark.parametrize("command", [["export-events"], ["export-notes", "--patience", "0"]], ids=["events", "notes"])
def test_error_page_of_a_proxy_is_told_by_its_status(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), ErrorPage) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        result = run(*command, "out.jsonl", NOTELLM_URL=f"http://127.0.0.1:{proxy.server_port}")
        proxy.shutdown()
    assert result.exit_code == 1
    assert "The response with status 502 is not from a NoteLLM service." in result.stderr


class WelcomePage(ErrorPage):
    """Answers every request with a page, as the front end of a web site does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>\n<h1>Welcome</h1>\n</html>\n")


@pytest.mark.parametrize("command", [["export-events"], ["export-notes", "--patience", "0"]], ids=["events", "notes"])
def test_page_of_a_web_site_replaces_no_file(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.jsonl").write_text("of last week")
    with ThreadingHTTPServer(("127.0.0.1", 0), WelcomePage) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        result = run(*command, "out.jsonl", NOTELLM_URL=f"http://127.0.0.1:{site.server_port}")
        site.shutdown()
    assert (result.exit_code, (tmp_path / "out.jsonl").read_text()) == (1, "of last week")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("url", ["http://localhost:80a", "localhost:8000", "ftp://localhost", "http://"])
def test_url_that_no_request_can_be_sent_to_is_refused_at_once(url: str, tmp_path: Path) -> None:
    for command in (["status"], ["ingest", "-"], ["export-notes", str(tmp_path / "notes.jsonl")]):
        result = run(*command, "--url", url)
        assert (result.exit_code, "Traceback" in result.stderr) == (2, False)
        assert "--url" in result.stderr


class EmptyAnswer(ErrorPage):
    """Answers like a proxy that has no service to forward requests to, and no page either."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_proxy_of_the_environment_is_not_used_to_reach_this_machine(host: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), ErrorPage) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        answer = run("status", "--url", f"http://{host}:{page.server_port}", HTTP_PROXY="http://127.0.0.1:9")
        page.shutdown()
    assert "Connection refused" not in answer.stderr
    assert "Expecting value" in answer.stderr, "the page has answered"


def test_socks_proxy_of_the_environment_is_named() -> None:
    answer = run("status", "--url", "http://127.0.0.1:9", ALL_PROXY="socks5://127.0.0.1:1")
    assert answer.exit_code == 2
    assert "ALL_PROXY names a SOCKS proxy" in " ".join(answer.stderr.replace("│", " ").split())


def test_status_of_a_service_whose_proxy_answers_nothing_is_told_in_a_line() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyAnswer) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        result = run("status", NOTELLM_URL=f"http://127.0.0.1:{proxy.server_port}")
        proxy.shutdown()
    assert (result.exit_code, "status 503 is not from a NoteLLM service" in result.stderr) == (1, True)


class BrokenOff(ErrorPage):
    """Answers like a service that ends a stream of reads when its key is revoked."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        self.wfile.write(b'{"user":"u","note":"a","time":1.0,"rating":1.0}\n')
        self.wfile.write(b'{"problem":{"status":401,"title":"No key","detail":"This key is not valid."}}\n')


def test_export_of_events_that_was_broken_off_writes_no_file(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BrokenOff) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        result = run("export-events", str(tmp_path / "clicks.jsonl"), NOTELLM_URL=url)
        server.shutdown()
    assert result.exit_code == 1
    assert "aborted the export: This key is not valid." in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


class BrokenOffOnce(ErrorPage):
    """Answers like a service whose store fails in the middle of an export of notes, and works for the next request."""

    head = b'{"export":1,"tenant":"default","after":null,"begin":"0-0","notes_about":2}\n'

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.head)
        if "after=1-0" in self.path:
            self.wfile.write(b'{"id":"b","log_position":"2-0"}\n')
            self.wfile.write(b'{"end":"2-0","notes":1,"removed":0,"unreadable":0}\n')
        else:
            self.wfile.write(b'{"id":"a","log_position":"1-0"}\n')
            self.wfile.write(b'{"problem":{"status":503,"title":"No store","detail":"The store is unavailable."}}\n')


def test_export_of_notes_that_was_broken_off_is_told_and_gone_on_with(tmp_path: Path) -> None:
    file, part = tmp_path / "notes.jsonl", tmp_path / "notes.jsonl.part"
    with ThreadingHTTPServer(("127.0.0.1", 0), BrokenOffOnce) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        broken = run("export-notes", str(file), "--no-vectors", "--patience", "0", NOTELLM_URL=url)
        assert broken.exit_code == 1
        assert "aborted the export: The store is unavailable. Run the same command" in " ".join(broken.stderr.split())
        assert (file.exists(), len(part.read_bytes().splitlines())) == (False, 2)
        ended = run("export-notes", str(file), "--no-vectors", "--patience", "0", "--json", NOTELLM_URL=url)
        server.shutdown()
    assert (ended.exit_code, json.loads(ended.stdout)["notes"]) == (0, 2)
    lines = list(map(json.loads, file.read_bytes().splitlines()))
    assert [line.get("id") for line in lines] == [None, "a", "b", None]
    assert (lines[-1]["end"], part.exists()) == ("2-0", False)


class Gone(ErrorPage):
    """Answers like a service whose log begins after the requested position."""

    def do_GET(self) -> None:
        problem = b'{"status":410,"detail":"The log begins later."}'
        self.send_response(410)
        self.send_header("Content-Length", str(len(problem)))
        self.end_headers()
        self.wfile.write(problem)


def test_export_that_can_never_go_on_names_the_file_to_remove(tmp_path: Path) -> None:
    part = tmp_path / "notes.jsonl.part"
    part.write_text('{"export":1,"tenant":"default","after":null,"begin":"1-0","notes_about":2}\n')
    with ThreadingHTTPServer(("127.0.0.1", 0), Gone) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        result = run("export-notes", str(tmp_path / "notes.jsonl"), "--no-vectors", NOTELLM_URL=url)
        server.shutdown()
    told = "".join(result.stderr.split())
    assert (result.exit_code, f"{part}:Thelogbeginslater.Removethisfiletostartagain" in told) == (1, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_address_that_others_reach_is_refused_without_a_key(host: str) -> None:
    result = run("serve", NOTELLM_HOST=host, NOTELLM_PORT="0")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line == (
        f"NOTELLM_HOST is {host!r}, which other machines can reach, but NOTELLM_BOOTSTRAP_KEY is not set: set it "
        "(openssl rand -hex 32), or set NOTELLM_INSECURE=1 if a proxy authenticates callers"
    )


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"NOTELLM_BOOTSTRAP_KEY": "too-short"},
            "NOTELLM_BOOTSTRAP_KEY must have 32 to 200 ASCII characters and no spaces",
        ),
        ({"NOTELLM_BOOTSTRAP_KEY_FILE": "/nowhere/key"}, "NOTELLM_BOOTSTRAP_KEY_FILE must be a readable file"),
        (
            {"NOTELLM_BOOTSTRAP_KEY": "k" * 32, "NOTELLM_BOOTSTRAP_KEY_FILE": "/nowhere/key"},
            "NOTELLM_BOOTSTRAP_KEY_FILE must not be set together with NOTELLM_BOOTSTRAP_KEY",
        ),
        ({"NOTELLM_INSECURE": "perhaps"}, "NOTELLM_INSECURE is 'perhaps'; it must be 1 or 0"),
    ],
)
def test_wrong_bootstrap_key_is_refused_without_being_shown(variables: dict[str, str], line: str) -> None:
    result = run("serve", **variables)
    assert (result.exit_code, result.stderr) == (2, f"{line}\n")


def test_purge_proves_nothing_about_an_empty_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTELLM_DATA_DIR", str(tmp_path / "d"))
    (tmp_path / "removed.txt").write_text(" \n")
    result = CliRunner().invoke(app, ["purge", "--text", str(tmp_path / "removed.txt")])
    assert (result.exit_code, (tmp_path / "d").exists()) == (2, False)


@pytest.mark.parametrize("days", ["nan", "inf", "1e9", "1e30"])
def test_key_with_an_expiry_that_is_no_date_is_refused_with_the_option(days: str) -> None:
    result = run("keys", "create", "shop", "--scope", "similar", "--days", days, "--url", "http://127.0.0.1:1")
    assert (result.exit_code, "--days" in result.stderr) == (2, True), result.stderr
