"""Rate at which a service accepts events, in lists of a thousand that are durable when answered, from one client and
from two; and how long another client of the store waits meanwhile.

python -m benchmarks.speed.events [LISTS]

The client only sends prepared bodies, and shares the machine with the service and its store.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import numpy as np
import orjson
import redis
import redis.asyncio

from benchmarks.harness.http_load import Connection, connect
from benchmarks.harness.metrics import read_metric
from benchmarks.harness.report import Row, row, write
from benchmarks.harness.service_process import ServiceProcess
from benchmarks.speed.tenants import processor_seconds

LISTS = 60
"""Lists that are sent for each row."""
LIST_EVENTS = 1000
NOTES, USERS = 500, 5000
TARGET = 20_000
"""Target: events accepted per second."""
PING_SECONDS = 0.002
"""Pause between two commands of the other client."""


def user_of(number: int) -> int:
    """Return the number of an event's user; each user has seven events in a row."""
    return number // 7 % USERS


def note_of(number: int) -> int:
    return number * 7919 % NOTES


def bodies(name: str, count: int) -> list[bytes]:
    """Make the requests of `count` lists of new events."""
    requests = []
    for number in range(count):
        first = number * LIST_EVENTS
        events = [
            {
                "event_id": f"{name}-{first + i}",
                "type": "click",
                "note_id": f"n{note_of(first + i)}",
                "user": f"u{user_of(first + i)}",
                "recommendation_id": f"r{(first + i) // 10}",
                "position": i % 10 + 1,
            }
            for i in range(LIST_EVENTS)
        ]
        body = orjson.dumps(events)
        head = "POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        requests.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return requests


async def ping(socket: Path, waits: list[float]) -> None:
    """Send PINGs to the store until cancelled; append the seconds of each answer to `waits`."""
    async with redis.asyncio.Redis(unix_socket_path=str(socket)) as store:
        while True:
            started = time.perf_counter()
            await store.ping()
            waits.append(time.perf_counter() - started)
            await asyncio.sleep(PING_SECONDS)


async def send_beside_pings(
    port: int, requests: list[bytes], clients: int, socket: Path
) -> tuple[float, int, list[float]]:
    """Return the result of `send_all`, and the seconds that another client of the store waited for each answer."""
    waits: list[float] = []
    pinging = asyncio.create_task(ping(socket, waits))
    seconds, accepted = await send_all(port, requests, clients)
    pinging.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await pinging
    return seconds, accepted, waits


async def send_all(port: int, requests: list[bytes], clients: int) -> tuple[float, int]:
    """Send lists from `clients` concurrent clients; return the seconds, and how many events were accepted."""
    waiting, accepted = list(reversed(requests)), 0

    async def run_client(connection: Connection) -> None:
        nonlocal accepted
        while waiting:
            answer = await connection.exchange(waiting.pop())
            accepted += answer.count(b'"accepted"')

    connections = await connect(port, clients)
    started = time.perf_counter()
    await asyncio.gather(*map(run_client, connections))
    return time.perf_counter() - started, accepted


def measure(service: ServiceProcess, lists: int) -> list[Row]:
    """Measure a running service."""
    rows, socket = [], service.folder / "data" / "redis.sock"
    notes = [{"id": f"n{number}", "title": f"note {number}"} for number in range(NOTES)]
    httpx2.post(f"{service.url}/notes", json=notes, timeout=600).raise_for_status()
    asyncio.run(send_all(service.port, bodies("warm", 2), 1))
    sent = 2
    pids = {"service": service.pid, "store": service.redis_pid()}
    computed = {name: processor_seconds(pid) for name, pid in pids.items()}
    for clients in (1, 2):
        requests = bodies(f"c{clients}", lists)
        seconds, accepted, waits = asyncio.run(send_beside_pings(service.port, requests, clients, socket))
        assert accepted == lists * LIST_EVENTS
        sent += lists
        name = f"lists of {LIST_EVENTS:,} events, {clients} client{'s' * (clients > 1)}"
        rate = round(accepted / seconds)
        rows.append(row(f"throughput, {name}", rate, "events/s", target=f"≥ {TARGET:,}", met=rate >= TARGET))
        wait = round(1000 * float(np.percentile(waits, 99)), 1)
        rows.append(row(f"store latency of another client, {name}, p99", wait, "ms"))
    started, numbers = time.perf_counter(), range(max(2, lists) * LIST_EVENTS)
    reads = len({(user_of(number), note_of(number)) for number in numbers})
    while read_metric(service.url, "notellm_behaviour_reads") < reads:
        time.sleep(0.02)
    seconds = round(time.perf_counter() - started, 2)
    rows.append(row("delay from the last answer until all events are in the co-occurrence counts", seconds, "s"))
    for name, pid in pids.items():
        cost = 1e6 * (processor_seconds(pid) - computed[name]) / ((sent - 2) * LIST_EVENTS)
        rows.append(row(f"CPU time of the {name} per event", round(cost, 1), "us"))
    with redis.Redis(unix_socket_path=str(socket)) as store:
        stream = store.memory_usage("{notes}:events")
    rows.append(row("resident memory of the service with the events", service.resident_mib(), "MiB"))
    rows.append(row("memory of the store per event", round(stream / (sent * LIST_EVENTS), 1), "bytes"))
    return rows


def main(lists: int) -> None:
    with tempfile.TemporaryDirectory(prefix="nl-") as folder, ServiceProcess(Path(folder)) as service:
        service.start()
        write("events", measure(service, lists))


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else LISTS)
