"""Structured log lines, one per event; JSON lines are written in a thread of their own, so that no request waits for
them."""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that move a terminal's cursor, or change the colour or direction of its text."""
WRITE_SECONDS = 0.1
"""Longest time for which a line below a warning is held back, to be written together with others."""
MAX_WAITING_LINES = 10_000
"""Bound on the lines in memory while they cannot be written; the oldest are dropped first."""


class LineWriter:
    """Writes log lines to a file descriptor from a thread of its own, so that no request waits for a disk.

    A warning or worse is written at once. Other lines wait up to WRITE_SECONDS, so that many are written in one call.
    Lines that cannot be written are lost.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, True)
        self._descriptor = descriptor
        self._waiting: deque[str] = deque(maxlen=MAX_WAITING_LINES)
        self._urgent = threading.Event()
        self._writing = threading.Lock()
        atexit.register(self.write)
        threading.Thread(target=self._write_forever, name="log-lines", daemon=True).start()

    def info(self, line: str) -> None:
        self._waiting.append(line)

    def warning(self, line: str) -> None:
        self._waiting.append(line)
        self._urgent.set()

    debug = info
    critical = error = exception = warning

    def write(self) -> None:
        """Write all waiting lines now."""
        with self._writing, suppress(OSError):
            lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
            unwritten = memoryview("".join(f"{line}\n" for line in lines).encode())
            while unwritten:
                unwritten = unwritten[os.write(self._descriptor, unwritten) :]

    def _write_forever(self) -> None:
        while True:
            self._urgent.wait(WRITE_SECONDS)
            self._urgent.clear()
            self.write()


LogFormat = Literal["auto", "json", "console"]


def is_for_people(log_format: LogFormat) -> bool:
    """Return whether lines are written for people instead of programs: by default, on a terminal."""
    return log_format == "console" or (log_format == "auto" and sys.stderr.isatty())


def configure_logging(log_format: LogFormat) -> Callable[[], None]:
    """Log structured lines to stderr, one per event, with the id of its request. Return a function that writes the
    lines still waiting: call it before a signal ends the process.

    Tracebacks show no variables, which may hold notes and passwords.
    """
    console = is_for_people(log_format)
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        shared.append(escape_controls)
    else:
        shared.append(structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)))
    writer = None if console else line_writer(sys.stderr)
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=(lambda *_: writer) if writer else structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,
    )
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove_meta, renderer])
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    return writer.write if writer else sys.stderr.flush


def escape_controls(logger: object, method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape control characters in the texts of a line: a terminal would interpret those that a caller sent."""
    return {name: CONTROLS.sub(_escaped, value) if isinstance(value, str) else value for name, value in line.items()}


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def line_writer(stream: TextIO) -> LineWriter | None:
    """Return a writer to the file descriptor of a stream; None if it has none, as a StringIO."""
    try:
        return LineWriter(stream.fileno())
    except OSError:
        return None
