"""Retries, progress bars and reports of the commands that send or fetch many notes over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.cli.client import explain_body
from service.cli.terminal import FAILED, complain, err, out

TIMEOUT_SECONDS = 300.0
"""Bound on the wait for the next lines, or for the answer to a batch."""
RETRY_SECONDS = 0.5
"""Seconds before a request is sent again, if the service names none."""
TRY_AGAIN = (409, 429, 502, 503, 504)
"""Statuses after which a request is sent again; 502 is a proxy's."""


class TransferFailed(Exception):
    """A command cannot go on; the message says why, and what to do."""


class Patience:
    """Bounds how long a service may fail to answer. The `seconds` begin with the first failure, and start anew after a
    success. `advice`: what the caller can do once they are over."""

    def __init__(self, seconds: float, advice: str = "Run the same command again to resume.") -> None:
        self._seconds = seconds
        self._advice = advice
        self._deadline: float | None = None

    def reset(self) -> None:
        self._deadline = None

    def pause(self, reason: str, seconds: float = RETRY_SECONDS) -> None:
        """Wait before the next attempt. Raises TransferFailed if the time would be over by then."""
        self._deadline = self._deadline or time.monotonic() + self._seconds
        if time.monotonic() + seconds > self._deadline:
            raise TransferFailed(f"{reason} {self._advice}")
        time.sleep(seconds)

    def after(self, status: int, body: bytes, headers: httpx2.Headers) -> None:
        """Wait after an answer that is no success. Raises TransferFailed for a status that is not in TRY_AGAIN, and
        when the time is over."""
        reason = explain_body(body, status)
        if status not in TRY_AGAIN:
            raise TransferFailed(f"the service rejected the request: {reason}")
        try:
            seconds = float(headers.get("retry-after", RETRY_SECONDS))
        except ValueError:  # a date, from a proxy
            seconds = RETRY_SECONDS
        self.pause(reason, seconds)


def show_report(run: Callable[[], dict[str, Any]], as_json: bool, rejected: int = FAILED) -> None:
    """Run a transfer, and show its report. Ends the command with FAILED if it failed, and with the status `rejected` if
    something was rejected."""
    try:
        report = run()
    except (TransferFailed, OSError) as error:
        complain(str(error))
        raise typer.Exit(FAILED) from error
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        out.print("  ".join(f"{name.replace('_', ' ')} {value}" for name, value in report.items()), highlight=False)
    if report.get("rejected"):
        raise typer.Exit(rejected)


def progress_bars() -> Progress:
    """Return the progress bars of a transfer, which counts notes."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed} notes"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )
