"""Output of the commands, for people and for programs; and their settings: a wrong one is refused in one line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from service.settings import Settings
from service.settings_errors import describe_errors, describe_unknown

out = Console()
err = Console(stderr=True)

FAILED = 1
MISUSED = 2
"""Exit statuses: FAILED if the service or its answer is at fault, MISUSED if the command's options or settings are."""


def complain(*lines: str) -> None:
    """Write error messages to stderr, each on a line of its own however long it is."""
    for line in lines:
        err.print(line, style="red", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def exit_as_misuse_on(*errors: type[Exception]) -> Iterator[None]:
    """End the command with the message of one of these errors, which its options or settings have caused."""
    try:
        yield
    except errors as error:
        complain(str(error))
        raise typer.Exit(MISUSED) from error


def clean_up_when_ended() -> None:
    """Have SIGTERM and SIGHUP end the command like an exception, so that it leaves nothing half done. Signals that are
    ignored stay ignored: under `nohup` the command goes on after a logout."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _: sys.exit(128 + received))


@contextlib.contextmanager
def files_for_owner_alone() -> Iterator[None]:
    """Make files and folders created in the block, by any thread of this process, unreadable for other users."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def read_settings() -> Settings:
    """Read the settings of the environment; a wrong or unknown one ends the command with a line that names it."""
    wrong = describe_unknown(os.environ)
    try:
        settings = Settings.from_environment()
    except ValidationError as error:
        wrong += describe_errors(error)
    if wrong:
        complain(*wrong)
        raise typer.Exit(MISUSED)
    return settings


def show(answer: Any, as_json: bool, columns: Sequence[str | Column], rows: Sequence[tuple[Any, ...]]) -> None:
    """Write an answer: as JSON for programs, as a table for people."""
    if as_json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    table = Table(*(Column(column, overflow="fold") if isinstance(column, str) else column for column in columns))
    for row in rows:
        table.add_row(*("" if cell is None else Text(printable(cell)) for cell in row))
    out.print(table)


def printable(text: str) -> str:
    """Return a text with its control characters escaped: the name of a key or the text of a note must not control the
    terminal. Markup is harmless: rich does not interpret it in a Text."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
