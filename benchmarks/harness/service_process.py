"""A `notellm serve` for the length of a benchmark, in its own process, with a loopback port and a fresh data folder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Self

import httpx2

from service.collection.listing import MAX_PAGE
from service.reader_processes import MODULE as READER_MODULE

NOTELLM = str(Path(sys.executable).with_name("notellm"))
"""The command line that is installed beside this interpreter."""
READER = READER_MODULE.encode()
"""Module name that marks the command line of a reader process."""
INHERITED = ("NOTELLM_CHECKPOINT", "NOTELLM_CACHE_DIR")
"""Settings that a service takes from the environment of the benchmark."""
POLL_SECONDS = 0.02
"""Pause between two attempts to reach a starting process; bounds the error of a measured start."""


class ServiceProcess:
    """A service on a free port, stopped at the end of its `with` block. `folder` keeps its data and its log, so that
    the service can start again on them after a kill. `cores`: the CPU cores that it may use; none named means all.

    `environment` may be changed before `start`.
    """

    def __init__(self, folder: Path, cores: Collection[int] = ()) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.log = folder / "serve.log"
        self._cores = cores
        # No other setting of the shell: it may name a real store, and would change what is measured.
        names = [name for name in os.environ if not name.startswith("NOTELLM_") or name in INHERITED]
        kept = {name: os.environ[name] for name in names}
        self.environment = kept | {
            "NOTELLM_PORT": str(self.port),
            "NOTELLM_DATA_DIR": str(folder / "data"),
            "NOTELLM_SAMPLE_NOTES": "0",
            "NOTELLM_DRAIN_SECONDS": "0",
            "NOTELLM_URL": self.url,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def start(self) -> float:
        """Start the service and return the seconds until it is ready. RuntimeError with its log if it exits instead."""
        started = time.perf_counter()
        with self.log.open("ab") as log:
            command = ["taskset", "--cpu-list", ",".join(map(str, self._cores))] if self._cores else []
            self._process = subprocess.Popen([*command, NOTELLM, "serve"], env=self.environment, stderr=log)
        with httpx2.Client(base_url=self.url) as client:  # one client: creating one takes longer than a request
            while not self._ready(client):
                time.sleep(POLL_SECONDS)
        return time.perf_counter() - started

    def _ready(self, client: httpx2.Client) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(self.log.read_text())
        with contextlib.suppress(httpx2.TransportError):
            return client.get("/readyz").status_code == 200
        return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the process and wait until it has ended. Does nothing if the service was never started."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()

    def listed_ids(self) -> set[str]:
        """Return the ids of all notes in GET /notes: those that are both in this process's index and in the store."""
        ids: set[str] = set()
        parameters: dict[str, str | int] = {"limit": MAX_PAGE}
        with httpx2.Client(base_url=self.url, timeout=60) as client:
            while True:
                page = client.get("/notes", params=parameters).raise_for_status().json()
                ids.update(note["id"] for note in page["notes"])
                if page["next_cursor"] is None:
                    return ids
                parameters["cursor"] = page["next_cursor"]

    def ingest(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `notellm ingest --json` against this service; its report comes on standard output."""
        command = [NOTELLM, "ingest", *arguments, "--json"]
        return subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=subprocess.PIPE, text=True)

    @property
    def pid(self) -> int:
        """Process id of the running service."""
        assert self._process is not None
        return self._process.pid

    def resident_mib(self, peak: bool = False) -> int:
        """Resident memory of the service's process in MiB, now or at its peak."""
        return resident_mib(self.pid, peak)

    def reader_pids(self) -> list[int]:
        """Process ids of the service's reader processes (NOTELLM_READERS)."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children if READER in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def redis_pid(self) -> int:
        """Process id of the embedded server, as its INFO command reports it."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.folder / "data" / "redis.sock"))
            connection.sendall(b"INFO server\r\n")
            return int(connection.recv(65536).decode().split("process_id:")[1].split()[0])


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def private_mib(pid: int) -> int:
    """Memory in MiB that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) // 1024


def resident_mib(pid: int, peak: bool = False) -> int:
    """Resident memory of a process in MiB, now or at its peak."""
    field = "VmHWM" if peak else "VmRSS"
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) // 1024
