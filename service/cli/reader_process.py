"""Reader process, which `notellm serve` starts (service/reader_processes.py): python -m service.cli.reader_process
START."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import BinaryIO

import orjson
from prometheus_client import CollectorRegistry

from service.api.http_server import allow_open_files, http_config
from service.cli.address import bind_shared
from service.cli.certificate import read_certificate
from service.cli.server import SWITCH_SECONDS, Server, exempt_imports
from service.lifecycle import Lifecycle
from service.log_lines import configure_logging
from service.reader_process_wiring import build_reader_process
from service.reader_processes import STOP_LINE, ReaderProcesses, ReaderProcessStart, samples_of
from service.settings import Settings
from service.telemetry import Telemetry

ORPHANED = 1
"""Exit status of a reader process whose parent has died."""


def main(start: ReaderProcessStart, requests: BinaryIO, answers: BinaryIO) -> None:
    """Serve until the parent asks the reader process to stop, or dies."""
    exempt_imports()
    settings, lifecycle, telemetry = Settings.from_environment(), Lifecycle(), Telemetry()
    write_lines = configure_logging(settings.log_format)
    sys.setswitchinterval(SWITCH_SECONDS)
    allow_open_files(settings.max_tenants, settings.readers, is_reader_process=True)
    certificate = read_certificate(settings)
    app = build_reader_process(settings, start, lifecycle, telemetry)
    config = http_config(app, settings.shutdown_seconds, certificate.context if certificate else None)

    loop: asyncio.AbstractEventLoop | None = None

    def say_ready(url: str) -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        answers.write(b"ready\n")
        answers.flush()

    def call_in_loop(take: Callable[[int], None], number: int) -> None:
        """Call `take` with `number` in the event loop, which also answers requests, as soon as it runs."""
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: the process ends
                loop.call_soon_threadsafe(take, number)

    def end() -> None:
        server.should_exit = True

    server = Server(config, lifecycle, settings.drain_seconds, certificate, say_ready, write_lines, ReaderProcesses(0))
    listening = (requests, answers, telemetry.registry, call_in_loop, end, write_lines)
    threading.Thread(target=answer_parent, args=listening, name="answer-parent", daemon=True).start()
    server.run(bind_shared(settings.host, start.port))


def answer_parent(
    requests: BinaryIO,
    answers: BinaryIO,
    registry: CollectorRegistry,
    call_in_loop: Callable[[Callable[[int], None], int], None],
    end: Callable[[], None],
    write_lines: Callable[[], None],
) -> None:
    """Answer each line of the parent with metrics, or call `end` at STOP_LINE, until it dies; then end the process at
    once, so that another service can have the port. Answers wait for the event loop, however late it runs, so that the
    parent can tell a reader process that hangs from a slow one; meanwhile further lines are read, and the parent's
    death is noticed."""
    due: SimpleQueue[int] = SimpleQueue()
    threading.Thread(target=write_answers, args=(due, answers, registry), name="write-answers", daemon=True).start()
    with contextlib.suppress(OSError):
        while line := requests.readline():
            if line == STOP_LINE:
                end()
            else:
                call_in_loop(due.put, int(line))
    write_lines()
    os._exit(ORPHANED)


def write_answers(due: SimpleQueue[int], answers: BinaryIO, registry: CollectorRegistry) -> None:
    """Write the number of each question that is due, with the metrics, until the parent no longer reads."""
    with contextlib.suppress(OSError):
        while True:
            answers.write(orjson.dumps([due.get(), samples_of(registry)]) + b"\n")
            answers.flush()


if __name__ == "__main__":
    to_parent = sys.stdout.buffer
    sys.stdout = sys.stderr  # what is printed must not mix with the answers
    main(ReaderProcessStart.from_json(sys.argv[1]), sys.stdin.buffer, to_parent)
