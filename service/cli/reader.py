"""The process of a reader, which `notellm serve` starts (service/readers.py): python -m service.cli.reader START."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import BinaryIO

import orjson
from prometheus_client import CollectorRegistry

from service.api.protocol import allow_open_files, http_config
from service.cli.address import bind_shared
from service.cli.certificate import read_certificate
from service.cli.server import SWITCH_SECONDS, Server, exempt_imports
from service.lifecycle import Lifecycle
from service.log_lines import configure_logging
from service.reader_wiring import build_reader
from service.readers import METRICS_SECONDS, STOP_LINE, Readers, ReaderStart, samples_of
from service.settings import Settings
from service.telemetry import Telemetry

ORPHANED = 1
"""Exit status of a reader whose parent has died."""


def main(start: ReaderStart, questions: BinaryIO, answers: BinaryIO) -> None:
    """Serve until the parent asks for the end, or dies."""
    exempt_imports()
    settings, lifecycle, telemetry = Settings.from_environment(), Lifecycle(), Telemetry()
    write_lines = configure_logging(settings.log_format)
    sys.setswitchinterval(SWITCH_SECONDS)
    allow_open_files(settings.max_tenants)
    certificate = read_certificate(settings)
    app = build_reader(settings, start, lifecycle, telemetry)
    config = http_config(app, settings.shutdown_seconds, certificate.context if certificate else None)

    loop: asyncio.AbstractEventLoop | None = None

    def say_ready(url: str) -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        answers.write(b"ready\n")
        answers.flush()

    def loop_runs() -> bool:
        """Return whether the event loop, which answers requests, runs a callback within METRICS_SECONDS."""
        woken = threading.Event()
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(woken.set)
        return woken.wait(METRICS_SECONDS)

    def end() -> None:
        server.should_exit = True

    server = Server(config, lifecycle, settings.drain_seconds, certificate, say_ready, write_lines, Readers(0))
    listening = (questions, answers, telemetry.registry, loop_runs, end, write_lines)
    threading.Thread(target=answer_parent, args=listening, name="answer-parent", daemon=True).start()
    server.run(bind_shared(settings.host, start.port))


def answer_parent(
    questions: BinaryIO,
    answers: BinaryIO,
    registry: CollectorRegistry,
    loop_runs: Callable[[], bool],
    end: Callable[[], None],
    write_lines: Callable[[], None],
) -> None:
    """Answer the parent's lines with metrics, or call `end`, until it dies; then end the process at once, so that
    another service can have the port. A line that comes while the event loop hangs is not answered, so that the parent
    notices."""
    with contextlib.suppress(OSError):
        while line := questions.readline():
            if line == STOP_LINE:
                end()
            elif loop_runs():
                answers.write(orjson.dumps([int(line), samples_of(registry)]) + b"\n")
                answers.flush()
    write_lines()
    os._exit(ORPHANED)


if __name__ == "__main__":
    to_parent = sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever is printed is no answer
    main(ReaderStart.from_json(sys.argv[1]), sys.stdin.buffer, to_parent)
