"""Helpers of the tests of connections: raw sockets connected to the service."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from collections.abc import Iterator

import httpx2

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /notes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SHORT = 0.3
"""Seconds of each timeout of a connection under the fixture `impatient`."""


@contextlib.contextmanager
def connected(url: str, seconds: float = 30) -> Iterator[socket.socket]:
    address = httpx2.URL(url)
    with socket.create_connection((address.host, address.port or 80), timeout=seconds) as connection:
        yield connection


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Return the status and body of one answer; 0 and the bytes so far if the connection is closed before the body."""
    received = b""
    while b"\r\n\r\n" not in received:
        if not (part := connection.recv(65536)):
            return 0, received
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split()[1]), body


def closed(connection: socket.socket) -> bool:
    """Return whether the service closes the connection without sending another byte."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def readable(connection: socket.socket, seconds: float) -> bool:
    """Return whether the service sends or closes within `seconds`."""
    return bool(select.select([connection], [], [], seconds)[0])


def problem_in(connection: socket.socket, status: int) -> str:
    """Read a problem with this status, check that the connection is then closed, and return the problem's detail."""
    got, body = read_answer(connection)
    problem = json.loads(body)
    assert (got, problem["status"], closed(connection)) == (status, status, True)
    return str(problem["detail"])


def ended(client: httpx2.Client, reason: str) -> float:
    """Return the number of connections that the service has ended for a reason."""
    series = f'notellm_connections_ended_total{{reason="{reason}"}} '
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.removeprefix(series)) for line in lines if line.startswith(series))
