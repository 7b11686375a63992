"""Reader processes: they answer reads on the port of the service (docs/decisions/0032-readers.md). Their parent, the
process with the model, starts them, restarts them when they die or hang, and stops them.

A reader process reports that it is ready by a line on its standard output. Lines on its standard input request its
metrics or its end; end of file means that the parent has died, and the reader process exits at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import orjson
import structlog
from prometheus_client.core import Metric
from prometheus_client.registry import CollectorRegistry
from prometheus_client.samples import Sample

MODULE = "service.cli.reader_process"
"""Python module that is run as a reader process."""
METRICS = frozenset(
    {
        *("notellm_http_request_duration_seconds", "notellm_tenant_requests", "notellm_loop_lag_seconds"),
        "notellm_index_behind_seconds",
        *("notellm_items", "notellm_item_bytes", "notellm_neighbour_lists", "notellm_neighbour_list_bytes"),
        *("notellm_store_errors", "notellm_quota_uncounted"),
        *("notellm_connections_refused", "notellm_connections_ended"),
        *("process_resident_memory_bytes", "process_virtual_memory_bytes", "process_start_time_seconds"),
        *("process_cpu_seconds", "process_open_fds", "process_max_fds"),
    }
)
"""Metrics of a reader process that are published with those of the service; the others are about what a reader process
does not do."""
METRICS_SECONDS = 1.0
"""Maximum wait for the metrics of a reader process."""
CHECK_SECONDS = 5.0
"""Time between two checks that reader processes answer."""
MAX_UNANSWERED = 10
"""Failed checks in a row, with no line from the reader process in between, not even a late answer, after which it is
killed: its event loop has hung for a minute, while the system still gives it connections."""
STOP_LINE = b"stop\n"
"""Line that makes a reader process finish its requests and exit. Any other line requests its metrics, and is repeated
before them."""
MAX_LINE_BYTES = 2**24
"""Bound on the line with a reader process's metrics."""
RESTART_SECONDS = (0.1, 5.0)
"""Back-off before a reader process that died is restarted: the first value if it had been ready; otherwise the last
back-off doubled, up to the second value."""
SOCKET = "service.sock"
STORE_MEMORY = "NOTELLM_STORE_MEMORY_BYTES"
"""Setting of the process that runs the embedded server, which a reader process never does."""
Samples = Mapping[str, Sequence[tuple[str, Mapping[str, str], float]]]
"""Name, labels and value of samples, by the name of their metric."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReaderProcessStart:
    """Arguments of a reader process besides the settings: name, vector space, dimension and `mean_share` of the
    model, whether the store is the embedded one, the `port` of the service, and the `socket` of the process with the
    model."""

    model: str
    space: str
    dimension: int
    mean_share: float
    embedded: bool
    port: int = 0
    socket: str = ""

    def to_json(self) -> str:
        return orjson.dumps(self).decode()

    @classmethod
    def from_json(cls, text: str) -> ReaderProcessStart:
        return cls(**orjson.loads(text))


class ReaderProcess:
    """One reader process, identified by its number. `process`: its current or last process; None before the first.
    `tried`: whether it was ready once, or its first process has ended."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Process | None = None
        self.ready = False
        self.tried = False
        self._request_lock = asyncio.Lock()
        self._request_number = 0
        """Number of the last metrics request; an answer repeats it."""
        self._unanswered = 0
        self._answered = False
        """Whether a line arrived since the last check, even as a late answer to an earlier request."""

    async def run(self, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Start the process, wait until it ends, and return whether it became ready."""
        self.process = process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=PIPE,
            stdout=PIPE,
            limit=MAX_LINE_BYTES,
            start_new_session=True,  # Ctrl-C reaches only the parent, which stops its reader processes
        )
        assert process.stdout is not None
        self._unanswered = 0
        self.ready = was_ready = bool(await process.stdout.readline())
        self.tried = True
        await process.wait()
        self.ready = False
        return was_ready

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to its process, if one runs."""
        if self.process and self.runs:
            self.process.send_signal(number)

    def stop(self) -> None:
        """Tell the process to exit; kill it if it is not ready."""
        if self.ready and self.process and self.process.stdin:
            self.process.stdin.write(STOP_LINE)
        else:
            self.send_signal(signal.SIGKILL)

    async def check(self) -> None:
        """Check that the reader process answers, if it is ready. After MAX_UNANSWERED checks without any line from its
        process, kill it, so that `run` returns."""
        if not self.ready:
            return
        await self.samples()
        self._unanswered = 0 if self._answered else self._unanswered + 1
        self._answered = False
        if self._unanswered >= MAX_UNANSWERED:
            log.error("reader_hangs", reader=self.number, detail="its event loop does not respond: killing it")
            self.send_signal(signal.SIGKILL)

    async def samples(self) -> Samples:
        """Return its samples in the form of `samples_of`; none if it does not answer in time, or not completely."""
        process = self.process
        if not self.ready or process is None or process.stdin is None or process.stdout is None:
            return {}
        async with self._request_lock:
            self._request_number += 1
            process.stdin.write(b"%d\n" % self._request_number)
            with contextlib.suppress(
                TimeoutError, OSError, ValueError
            ):  # ValueError: an incomplete line, or one that is too long
                async with asyncio.timeout(METRICS_SECONDS):
                    while line := await process.stdout.readline():
                        number, samples = orjson.loads(line)
                        self._answered = True
                        if number == self._request_number:  # else it answers an earlier request, which timed out
                            return cast(Samples, samples)
        return {}


class ReaderProcesses:
    """The `count` reader processes of a process, on the given port of the service."""

    def __init__(self, count: int, port: int = 0) -> None:
        self.count = count
        self._port = port
        self._readers = [ReaderProcess(number) for number in range(1, count + 1)]
        self._ending = False
        self._keeping: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None
        self._folder: Path | None = None
        """Private folder of the socket on which reader processes reach this process."""

    def listen(self) -> socket.socket | None:
        """Open the socket on which this process must serve its reader processes; return None if there are none."""
        if not self.count:
            return None
        self._folder = Path(tempfile.mkdtemp(prefix="notellm-"))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._folder / SOCKET))
        return listener

    def start(self, start: ReaderProcessStart, redis_url: str, on_restart: Callable[[], None]) -> None:
        """Start all reader processes, unless `drain` or `stop` was called before. Port and socket of `start` are filled
        in. `redis_url`: address of the store. `on_restart` is called whenever a reader process that died is restarted.
        Call this after `listen`."""
        if self._folder is None or self._ending:
            return
        start = replace(start, port=self._port, socket=str(self._folder / SOCKET))
        command = [sys.executable, "-m", MODULE, start.to_json()]
        # With the address of a store, reader processes would refuse the setting of the embedded server's memory. Names
        # of settings are case-insensitive.
        environment = {name: value for name, value in os.environ.items() if name.upper() != STORE_MEMORY}
        environment["NOTELLM_REDIS_URL"] = redis_url
        self._keeping = [
            asyncio.create_task(self._keep(reader, command, environment, on_restart), name=f"reader-{reader.number}")
            for reader in self._readers
        ]
        self._watching = asyncio.create_task(self._watch(), name="watch-readers")

    @property
    def tried(self) -> bool:
        """Whether each reader process was ready once, or its first process has ended."""
        return all(reader.tried for reader in self._readers)

    @property
    def ready(self) -> int:
        """Number of reader processes that are ready."""
        return sum(reader.ready for reader in self._readers)

    def drain(self) -> None:
        """Let all reader processes serve for the duration of a drain and then exit; none is restarted."""
        self._ending = True
        for reader in self._readers:
            reader.send_signal(signal.SIGTERM)

    async def stop(self, seconds: float) -> None:
        """Stop all reader processes once they have finished their in-flight requests, or after `seconds`."""
        self._ending = True
        if self._watching:
            self._watching.cancel()
        for reader, keeping in zip(self._readers, self._keeping, strict=False):  # `_keeping` is empty before `start`
            reader.stop()
            if not reader.runs:
                keeping.cancel()
        if self._keeping:
            await asyncio.wait(self._keeping, timeout=seconds)
        for reader in self._readers:
            reader.send_signal(signal.SIGKILL)
        for keeping in self._keeping:
            keeping.cancel()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _keep(
        self,
        reader: ReaderProcess,
        command: Sequence[str],
        environment: Mapping[str, str],
        on_restart: Callable[[], None],
    ) -> None:
        """Run a reader process, and restart it whenever it ends, until `drain` or `stop` is called."""
        pause = RESTART_SECONDS[0]
        while not self._ending:
            try:
                was_ready = await reader.run(command, environment)
                status: object = reader.process.returncode if reader.process else None
            except OSError as error:  # too many processes, or no memory
                was_ready, status, reader.tried = False, repr(error), True
            if self._ending:
                return
            log.error("reader_gone", reader=reader.number, status=status, detail="restarting it")
            on_restart()
            pause = RESTART_SECONDS[0] if was_ready else min(2 * pause, RESTART_SECONDS[1])
            await asyncio.sleep(pause)

    async def _watch(self) -> None:
        """Check all reader processes every CHECK_SECONDS until `drain` or `stop` is called; `_keep` restarts those that
        are killed."""
        while not self._ending:
            try:
                await asyncio.gather(*(reader.check() for reader in self._readers))
            except Exception:  # the task must not end unnoticed: processes that hang would no longer be restarted
                log.exception("readers_not_checked", detail="will be tried again at the next check")
            await asyncio.sleep(CHECK_SECONDS)

    async def add_metrics(self, registry: CollectorRegistry) -> ReaderProcessMetrics:
        """Return the metrics of this process with those of its reader processes, which have the label `reader`."""
        answers = await asyncio.gather(*(reader.samples() for reader in self._readers))
        numbers = (str(reader.number) for reader in self._readers)
        return ReaderProcessMetrics(registry, dict(zip(numbers, answers, strict=True)))


def samples_of(registry: CollectorRegistry) -> Samples:
    """Return a registry's samples of METRICS."""
    families = [family for family in registry.collect() if family.name in METRICS]
    return {family.name: [(one.name, one.labels, one.value) for one in family.samples] for family in families}


class ReaderProcessMetrics(CollectorRegistry):
    """Metrics of a registry, with the reader processes' samples added. `readers`: samples by the number of the
    process."""

    def __init__(self, registry: CollectorRegistry, readers: Mapping[str, Samples]) -> None:
        super().__init__()
        self._registry = registry
        self._readers = readers

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            for number, samples in self._readers.items():
                family.samples += [
                    Sample(name, {**labels, "reader": number}, value)
                    for name, labels, value in samples.get(family.name, ())
                ]
            yield family
