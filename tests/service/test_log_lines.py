"""Log lines: all are written in order, and a full disk or a blocked reader loses lines but stops nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from service.log_lines import MAX_WAITING_LINES, LineWriter, line_writer


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_lines_are_written_in_order(pipe: tuple[int, int]) -> None:
    lines = LineWriter(pipe[1])
    lines.info("one")
    lines.warning("two")
    lines.info("three")
    lines.write()
    assert os.read(pipe[0], 100) == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("tell", [LineWriter.info, LineWriter.warning])
def test_line_is_written_without_further_calls(pipe: tuple[int, int], tell: object) -> None:
    lines = LineWriter(pipe[1])
    assert callable(tell)
    tell(lines, "said")
    assert os.read(pipe[0], 100) == b"said\n"  # waits for the line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full disk to offer")
def test_full_disk_loses_lines_and_the_writer_lives_on(pipe: tuple[int, int]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    lines = LineWriter(full)
    lines.warning("lost")
    lines.write()
    os.dup2(pipe[1], full)  # the disk has room again
    lines.info("kept")
    assert os.read(pipe[0], 100) == b"kept\n"  # written by the thread, which lives on
    os.close(full)


def test_lines_that_nobody_reads_stay_within_the_bound(pipe: tuple[int, int]) -> None:
    lines = LineWriter(pipe[1])
    for _ in range(3 * MAX_WAITING_LINES):  # more than the pipe takes: a blocking write would never return
        lines.info("x" * 100)
    assert len(lines._waiting) <= MAX_WAITING_LINES
    lines._waiting.clear()  # its thread lives on, and would write them to the next file with the pipe's number


def test_stream_without_a_file_has_no_line_writer() -> None:
    assert line_writer(StringIO()) is None


SAY = """
import logging
import structlog
from service.log_lines import configure_logging

write = configure_logging("console")
structlog.get_logger().info("request", path="/\\x1b[31mred\\r\\nforged \\x9b2J\\u202e")
logging.getLogger("theirs").warning("theirs \\x1b]0;title\\x07")
write()
"""


def test_console_lines_have_no_control_characters_of_callers() -> None:
    log = subprocess.run([sys.executable, "-c", SAY], capture_output=True, check=True).stderr.decode()
    assert r"x1b[31mred" in log
    assert r"x1b]0;title" in log
    assert len(log.splitlines()) == 2
    assert not [text for text in ("\x1b[31mred", "\x1b]", "\x07", "\x9b", "\u202e") if text in log]


FAIL = """
import logging, sys
import structlog
from service.log_lines import configure_logging

write = configure_logging(sys.argv[1])

def fail(secret):
    raise ValueError("said")

try:
    fail("".join(["hid", "den"]))
except ValueError:
    structlog.get_logger().exception("ours")
    logging.getLogger("theirs").exception("theirs")
write()
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_in_the_log_shows_no_variables(log_format: str) -> None:
    log = subprocess.run([sys.executable, "-c", FAIL, log_format], capture_output=True, text=True, check=True).stderr
    assert log.count("ValueError") >= 2
    assert "said" in log
    assert "hidden" not in log
