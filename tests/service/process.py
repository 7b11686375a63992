"""A `notellm serve` process that tests start, kill and start again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
from typer.testing import CliRunner, Result

from service.cli.main import app

NOTELLM = str(Path(sys.executable).with_name("notellm"))
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Option `verify` of httpx2 clients that speak plain HTTP. Without it each new client loads all certificates that the
machine trusts, which takes 20 ms."""
START_SECONDS = 120.0
"""Bound on a start, which takes a minute with readers on a busy machine."""


def cache_of(checkpoint: Path) -> Path:
    """Return the folder beside a checkpoint for its exported files, which the first service that starts with the
    checkpoint writes in six seconds."""
    return checkpoint.with_name(f"{checkpoint.name}-cache")


class Process:
    """A `notellm serve` that can be killed and started again on the same data."""

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
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen([NOTELLM, "serve"], env=self.environment, stderr=log)
        try:
            wait_until(self.ready, START_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"it was not ready in time; its log ends with:\n{self.log[-4000:]}") from error

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        return self.answers("/readyz")

    def answers(self, probe: str) -> bool:
        """Return whether the service answers a probe with 200."""
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(f"{self.url}{probe}", verify=trusted_certificates(self.url)).status_code == 200
        return False

    def listens(self) -> bool:
        """Return whether the process accepts connections, which it does before its server has started."""
        address = httpx2.URL(self.url)
        with contextlib.suppress(OSError), socket.create_connection((address.host, address.port or 80)):
            return True
        return False

    def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(60)

    @property
    def log(self) -> str:
        """Everything that the process wrote to standard error."""
        return (self.folder / "log").read_text()

    def call(self, *arguments: str) -> Result:
        """Run a command in the test's process, which saves the second that a new process takes to start."""
        with contextlib.chdir(self.folder):
            ended = CliRunner().invoke(app, arguments, env=self.environment)
        if ended.exception and not isinstance(ended.exception, SystemExit):
            raise ended.exception
        return ended

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


def trusted_certificates(url: str) -> ssl.SSLContext | bool:
    """Return the option `verify` of an httpx2 client for `url`: NO_CERTIFICATES for plain HTTP; for HTTPS True, which
    stands for the certificates that the machine trusts."""
    return True if url.startswith("https:") else NO_CERTIFICATES


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


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
            if process.process and process.process.poll() is None:
                process.end(signal.SIGTERM)
