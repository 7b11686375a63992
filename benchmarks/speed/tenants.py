"""Cost of tenants without notes: start, memory and idle processor time of a service, and the time of a read.

python -m benchmarks.speed.tenants

Services with different numbers of tenants run side by side, and reads go to each in turn, so that other load on the
machine affects all alike.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from benchmarks.harness.report import Row, row, write
from benchmarks.harness.service_process import ServiceProcess
from benchmarks.harness.statistics import percentile_ms

COUNTS = (1, 10, 100)
"""Number of tenants of each service, including the default one. Ratios compare with the first service."""
NOTES = 200
"""Notes of the default tenant, whose related notes are read."""
READS = 1000
IDLE_SECONDS = 10.0
BOOTSTRAP_KEY = "the-bootstrap-key-of-the-benchmark"
ADMIN = {"Authorization": f"Bearer {BOOTSTRAP_KEY}"}


@dataclass
class Host:
    """A service with `tenants` tenants, and its measurements. `start_seconds`: processor time until it is ready.
    `idle_share`: share of one core that it takes without requests."""

    service: ServiceProcess
    tenants: int
    start_seconds: float = 0.0
    resident_mib: int = 0
    idle_share: float = 0.0
    reads: list[float] = field(default_factory=list)

    @property
    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.service.url, headers=ADMIN, timeout=120)

    def fill(self) -> None:
        """Store the notes, create the tenants, and restart the service on them."""
        self.service.start()
        with self.client as client:
            notes = [{"id": f"n{number}", "title": f"note {number} of two hundred"} for number in range(NOTES)]
            client.post("/notes", json=notes).raise_for_status()
            for number in range(1, self.tenants):
                body = {"name": "reads", "tenant": f"tenant-{number}", "scopes": ["notes.read"]}
                key = client.post("/keys", json=body).raise_for_status().json()["key"]
                assert client.get("/notes/none", headers={"Authorization": f"Bearer {key}"}).status_code == 404
        self.service.stop()
        self.service.start()
        self.start_seconds = processor_seconds(self.service.pid)
        with self.client as client:
            assert len(client.get("/tenants").json()["tenants"]) == self.tenants


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(hosts: Sequence[Host]) -> None:
    """Measure filled services: first idle, then with reads."""
    before = [processor_seconds(host.service.pid) for host in hosts]
    time.sleep(IDLE_SECONDS)
    for host, seconds in zip(hosts, before, strict=True):
        host.idle_share = (processor_seconds(host.service.pid) - seconds) / IDLE_SECONDS
        host.resident_mib = host.service.resident_mib()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(host.client) for host in hosts]
        for number in range(READS):
            for host, client in zip(hosts, clients, strict=True):
                started = time.perf_counter()
                client.get(f"/notes/n{number % NOTES}/similar").raise_for_status()
                host.reads.append(time.perf_counter() - started)


def rows(hosts: Sequence[Host]) -> list[Row]:
    def values(host: Host) -> list[tuple[str, float, str]]:
        return [
            ("CPU time until ready", round(host.start_seconds, 2), "s"),
            ("resident memory", host.resident_mib, "MiB"),
            ("CPU use when idle", round(100 * host.idle_share, 1), "% of a core"),
            ("read latency of the default tenant, p50", round(percentile_ms(host.reads, 50), 2), "ms"),
        ]

    first = values(hosts[0])
    return [
        row(
            f"{host.tenants} tenant{'s' * (host.tenants > 1)}: {what}",
            value,
            unit,
            against=f"{value / base:.2f}x one tenant" if host is not hosts[0] and base else "",
        )
        for host in hosts
        for (what, value, unit), (_, base, _) in zip(values(host), first, strict=True)
    ]


def main() -> None:
    with contextlib.ExitStack() as stack:
        hosts = []
        for count in COUNTS:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nl-"))
            service = stack.enter_context(ServiceProcess(Path(folder)))
            service.environment["NOTELLM_BOOTSTRAP_KEY"] = BOOTSTRAP_KEY
            hosts.append(Host(service, count))
            hosts[-1].fill()
        measure(hosts)
    write("tenants", rows(hosts))


if __name__ == "__main__":
    main()
