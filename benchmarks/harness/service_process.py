"""A `notellm serve` for the length of a benchmark: a process of its own, a loopback port, a fresh data folder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2

NOTELLM = str(Path(sys.executable).with_name("notellm"))


class Running:
    """`folder` keeps the data and the logs, so that a killed service can start again on them."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.folder = folder
        self.environment = os.environ | {
            "NOTELLM_PORT": str(port),
            "NOTELLM_DATA_DIR": str(folder / "data"),
            "NOTELLM_SAMPLE_NOTES": "0",
            "NOTELLM_URL": self.url,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Seconds until it is ready."""
        started = time.perf_counter()
        with (self.folder / "serve.log").open("ab") as log:
            self._process = subprocess.Popen([NOTELLM, "serve"], env=self.environment, stderr=log)
        with httpx2.Client(base_url=self.url) as client:  # one for all: to make one takes longer than to ask
            while not self._ready(client):
                time.sleep(0.02)
        return time.perf_counter() - started

    def _ready(self, client: httpx2.Client) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError((self.folder / "serve.log").read_text())
        with contextlib.suppress(httpx2.TransportError):
            return client.get("/readyz").status_code == 200
        return False

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait()

    def ingest(self, *arguments: str) -> subprocess.Popen[str]:
        """A running `notellm ingest --json`."""
        command = [NOTELLM, "ingest", *arguments, "--json"]
        return subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=subprocess.PIPE, text=True)

    def resident_mib(self, peak: bool = False) -> int:
        """Memory of the service's process."""
        assert self._process is not None
        return resident_mib(self._process.pid, peak)

    def redis_pid(self) -> int:
        """Of the embedded server, as it says itself."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.folder / "data" / "redis.sock"))
            connection.sendall(b"INFO server\r\n")
            return int(connection.recv(65536).decode().split("process_id:")[1].split()[0])


def resident_mib(pid: int, peak: bool = False) -> int:
    """Memory of a process."""
    field = "VmHWM" if peak else "VmRSS"
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) // 1024
