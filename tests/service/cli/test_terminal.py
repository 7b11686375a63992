"""Output of the commands for people, and their end by a hang-up signal."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from service.cli.terminal import out, show


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("[/b] [red]x", "[/b] [red]x"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\u202eturned", r"\u202eturned"),
        ("brød 🍞 日本", "brød 🍞 日本"),
    ],
)
def test_table_shows_hostile_text_as_it_is(cell: str, shown: str) -> None:
    with out.capture() as captured:
        show({}, False, ("name", "other"), [(cell, None)])
    assert shown in captured.get()


def test_table_cuts_no_long_word() -> None:
    path = "/var/lib/" + "notellm" * 20 + ".aof"
    with out.capture() as captured:
        show({}, False, ("what", "which", "where"), [("NOT SEARCHED", "not readable", path)])
    cells = [line.split("│")[3].strip() for line in captured.get().splitlines() if line.startswith("│")]
    assert "".join(cells) == path


def test_json_is_json_where_colours_are_forced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes a pipe for a terminal then
    show({"name": "brød 🍞", "count": 2}, True, (), [])
    assert json.loads(capsys.readouterr().out) == {"name": "brød 🍞", "count": 2}


HANG_UP = """
import os, signal
from service.cli.terminal import clean_up_when_ended
signal.signal(signal.SIGHUP, signal.{before})
clean_up_when_ended()
os.kill(os.getpid(), signal.SIGHUP)
"""


@pytest.mark.parametrize(
    ("before", "status"), [("SIG_DFL", 129), ("SIG_IGN", 0)]
)  # nohup makes a command ignore the signal
def test_hangup_ends_a_command_that_cleans_up_but_not_under_nohup(before: str, status: int) -> None:
    command = [sys.executable, "-c", HANG_UP.format(before=before)]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == status
