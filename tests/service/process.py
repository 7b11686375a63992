"""A `notellm serve` process that tests start, kill and start again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import httpx2
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from service.cli.main import app, main

NOTELLM = str(Path(sys.executable).with_name("notellm"))
START_SECONDS = 120.0
"""Bound on a start, which takes a minute with reader processes on a busy machine."""
START_PAUSE = 0.05
"""Seconds between two looks at a start: each look takes processor time from it."""
FORK_SERVER = get_context("forkserver")
"""Forks services from a process that has imported the service: a start takes one second of processor time instead of
four. tests/benchmarks/test_service_process.py starts `notellm serve` as a program of its own."""
FORK_SERVER.set_forkserver_preload([__name__, "service.api.http_server", "service.wiring", "openvino"])


def cache_of(checkpoint: Path) -> Path:
    """Return the folder beside a checkpoint for its exported files, which the first service that starts with the
    checkpoint writes in six seconds."""
    return checkpoint.with_name(f"{checkpoint.name}-cache")


def serve(environment: Mapping[str, str], log: Path) -> None:
    """Do what `notellm serve` does, in a forked process with these variables, and write standard error to `log`."""
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = ["notellm", "serve"]
    main()


class Process:
    """A `notellm serve` that can be killed and started again on the same data."""

    serve: staticmethod[[Mapping[str, str], Path], None] = staticmethod(serve)

    def __init__(self, folder: Path, checkpoint: Path, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        scheme = "https" if "NOTELLM_TLS_CERTIFICATE" in environment else "http"
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.folder = folder
        self.environment = os.environ | {
            "NOTELLM_PORT": str(port),
            "NOTELLM_DATA_DIR": str(folder / "d"),
            "NOTELLM_CACHE_DIR": str(cache_of(checkpoint)),
            "NOTELLM_CHECKPOINT": str(checkpoint),
            "NOTELLM_SAMPLE_NOTES": "0",
            "NOTELLM_MIN_CATEGORY_PROBABILITY": "0",
            "NOTELLM_DRAIN_SECONDS": "0",
            "NOTELLM_URL": self.url,
            **environment,
        }
        self._process: ForkServerProcess | None = None

    def begin(self) -> None:
        """Start the process, without waiting until it is ready."""
        arguments = (self.environment, self.folder / "log")
        self._process = FORK_SERVER.Process(target=self.serve, args=arguments, daemon=True)
        self._process.start()

    def start(self) -> None:
        """Start the process and wait until it is ready. One that is not ready in time is killed."""
        self.begin()
        try:
            wait_until(self.ready, START_SECONDS, START_PAUSE)
        except AssertionError as error:
            if self.running:
                self.end(signal.SIGKILL)
            raise AssertionError(f"it was not ready in time; its log ends with:\n{self.log[-4000:]}") from error

    def ready(self) -> bool:
        assert self.running, self.log
        return self.answers("/readyz")

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.exitcode is None

    @property
    def pid(self) -> int:
        assert self._process
        assert self._process.pid
        return self._process.pid

    def answers(self, probe: str) -> bool:
        """Return whether the service answers a probe with 200."""
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(f"{self.url}{probe}").status_code == 200
        return False

    def listens(self) -> bool:
        """Return whether the process accepts connections, which it does before its server has started."""
        address = httpx2.URL(self.url)
        with contextlib.suppress(OSError), socket.create_connection((address.host, address.port or 80)):
            return True
        return False

    def send(self, how: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, how)

    def wait(self) -> int:
        """Wait until the process has ended, and return its exit status, or minus the signal that ended it."""
        assert self._process
        self._process.join(60)
        assert self._process.exitcode is not None, "the process did not end in time"
        return self._process.exitcode

    def end(self, how: signal.Signals) -> int:
        """End the process by a signal, and return what `wait` does."""
        self.send(how)
        return self.wait()

    @property
    def log(self) -> str:
        """Everything that the process wrote to standard error."""
        return (self.folder / "log").read_text()

    def call(self, *arguments: str) -> Result:
        """Run a command in the test's process."""
        return call(arguments, self.environment, self.folder)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a new process, as the shell does."""
        command = [NOTELLM, *arguments]
        return subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False
        )

    def redis_pid(self) -> int:
        """Process id of the embedded server, from its own INFO."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.folder / "d" / "redis.sock"))
            connection.sendall(b"INFO server\r\n")
            text = connection.recv(65536).decode()
        return int(text.split("process_id:")[1].split()[0])


def call(arguments: Sequence[str], environment: Mapping[str, str | None], folder: Path) -> Result:
    """Run a command in the test's process and a folder, which saves the second that a new process takes to start; None
    stands for a variable that is not set. The output is without the log lines of services of this process. Raises what
    the command raises."""
    with contextlib.chdir(folder), capture_logs():
        ended = CliRunner().invoke(app, arguments, env=environment)
    if ended.exception and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended


def wait_until(condition: Callable[[], bool], seconds: float = 60, pause: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(pause)


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@contextlib.contextmanager
def running(checkpoint: Path, **environment: str) -> Iterator[Process]:
    """Run a service while the block lasts; it is ended even if its start fails."""
    with tempfile.TemporaryDirectory(prefix="nl-", dir="/tmp") as folder:  # short, for a unix socket's path
        process = Process(Path(folder), checkpoint, **environment)
        try:
            process.start()
            yield process
        finally:
            if process.running:
                process.end(signal.SIGTERM)
