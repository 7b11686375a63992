"""HTTP load from one process: clients that wait for each answer, or requests that arrive at random times.

The client does as little as possible, since it shares the processor with the service that it measures.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from benchmarks.harness.scenario import Scenario

READS = Scenario.load("reads")
CONNECTIONS = READS.clients
"""Clients of a closed loop."""
OPEN_CONNECTIONS = 64
"""Connections of an open loop: enough that a request seldom waits for one."""
SECONDS = READS.seconds or 0.0
"""Length of one load."""

NextRequest = Callable[[], bytes]


class Connection(asyncio.Protocol):
    """A kept connection that carries one request at a time."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: Any = None
        self.is_open = True
        """False once either side has closed the connection; the service closes an idle one after the idle_seconds of
        GET /limits."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        begin = self._received.find(b"content-length: ") + len(b"content-length: ")
        size = int(self._received[begin : self._received.find(b"\r\n", begin)])
        if len(self._received) >= head + 4 + size and self._answer is not None:
            answer, self._received = bytes(self._received), bytearray()
            if not self._answer.done():  # done already if the caller was cancelled
                self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError())

    def close(self) -> None:
        """Close the connection at once, even with a request in flight."""
        self._transport.abort()

    async def exchange(self, request: bytes) -> bytes:
        """Send a whole request and return its answer: status line, headers and body."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    async def send(self, request: bytes) -> bytes:
        """Send a whole request and return the body of its answer. RuntimeError for any status but 200."""
        answer = await self.exchange(request)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode())
        return answer.partition(b"\r\n\r\n")[2]


async def connect(port: int, count: int) -> list[Connection]:
    """Open `count` connections to a loopback port."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(count)]


async def send_one(port: int, request: bytes) -> bytes:
    """Send one request on a connection of its own and return the body of its answer."""
    (connection,) = await connect(port, 1)
    return await connection.send(request)


async def each_once(port: int, requests: Iterable[bytes]) -> None:
    """Send each of `requests` once, with at most CONNECTIONS in flight."""
    left = iter(requests)

    async def run_client(connection: Connection) -> None:
        for request in left:
            await connection.send(request)

    await asyncio.gather(*map(run_client, await connect(port, CONNECTIONS)))


async def closed_loop(port: int, next_request: NextRequest) -> float:
    """Return the requests per second of CONNECTIONS clients, each of which sends its next request once the last one is
    answered."""
    until, answered = time.perf_counter() + SECONDS, 0

    async def run_client(connection: Connection) -> None:
        nonlocal answered
        while time.perf_counter() < until:
            await connection.send(next_request())
            answered += 1

    connections = await connect(port, CONNECTIONS)
    started = time.perf_counter()
    await asyncio.gather(*map(run_client, connections))
    return answered / (time.perf_counter() - started)


async def open_loop(port: int, next_request: NextRequest, rate: float) -> list[float]:
    """Return the seconds that each request took, counted from when it was due. Requests arrive at random times
    (Poisson), `rate` per second, however long earlier ones take."""
    rng, free = random.Random(1), asyncio.Queue[Connection]()
    seconds: list[float] = []
    for connection in await connect(port, OPEN_CONNECTIONS):
        free.put_nowait(connection)

    async def send(due: float) -> None:
        connection = await free.get()
        await connection.send(next_request())
        seconds.append(time.perf_counter() - due)
        free.put_nowait(connection)

    due = time.perf_counter()
    tasks: list[asyncio.Task[None]] = []
    for _ in range(int(rate * SECONDS)):
        due += rng.expovariate(rate)
        await asyncio.sleep(due - time.perf_counter())
        tasks.append(asyncio.create_task(send(due)))
    await asyncio.gather(*tasks)
    return seconds


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Run a load without the garbage collector. A full collection of everything that a benchmark imports takes a third
    of a second; requests due meanwhile are sent together afterwards, and their delay would count as the service's."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def get(path: str) -> bytes:
    """Return the bytes of a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def random_gets(paths: Sequence[str]) -> NextRequest:
    """Return a function that gives a GET request for one of `paths`, drawn at random on each call."""
    requests = list(map(get, paths))
    rng = random.Random(2)
    return lambda: rng.choice(requests)
