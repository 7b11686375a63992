"""The whole data set of a running Redis at one moment, as the server sends it to a new replica.

The server forks and writes its data as they were at the fork; writes go on meanwhile. So the copy has every write that
was acknowledged before that moment, none that came after, and all databases and tenants at the same moment. This is
what `valkey-cli --rdb` does. The server needs the memory of a fork, as for a rewrite of its append-only file.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from service.store.backup.folder import OnBytes
from service.store.backup.manifest import BackupError
from service.store.backup.temporary import temporary_file
from service.store.clients import pool_of

CHUNK_BYTES = 2**20
MARK_BYTES = 40
"""Length of the mark that ends data whose size the server does not know beforehand."""


def receive_data_set(url: str, target: Path, on_bytes: OnBytes) -> None:
    """Write the data set of the server at `url` to a file, as RDB. Raises BackupError."""
    connection: Any = pool_of(url).make_connection()
    try:
        with _server_errors():
            connection.connect()
            for option in (("capa", "eof"), ("rdb-only", "1")):
                connection.send_command("REPLCONF", *option)
                connection.read_response()
            connection.send_command("SYNC")
        with temporary_file(target) as append:
            # From here on the server does not send answers of the protocol that the client parses.
            _copy(connection._sock, append, on_bytes)
    finally:
        connection.disconnect()


@contextlib.contextmanager
def _server_errors() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise BackupError(f"the server did not send its data: {error}") from error


def _copy(server: socket.socket, append: Callable[[bytes], None], on_bytes: OnBytes) -> None:
    """Copy the data in the answer to SYNC. They follow a header: `$<size>`, or `$EOF:<mark>` where the mark ends
    them."""
    header, data = _header(server)

    def add(part: bytes) -> None:
        append(part)
        on_bytes(len(part))

    if header.startswith(b"$EOF:"):
        _copy_until_mark(server, data, header.removeprefix(b"$EOF:"), add)
    else:
        _copy_size(server, data, int(header[1:]), add)


def _copy_size(server: socket.socket, data: bytes, size: int, add: Callable[[bytes], None]) -> None:
    """Copy `size` bytes, of which `data` has arrived."""
    data = data[:size]
    add(data)
    left = size - len(data)
    while left:
        data = _receive(server)[:left]
        add(data)
        left -= len(data)


def _copy_until_mark(server: socket.socket, data: bytes, mark: bytes, add: Callable[[bytes], None]) -> None:
    """Copy everything before `mark`, of which `data` has arrived."""
    while not data.endswith(mark):
        add(data[:-MARK_BYTES])
        data = data[-MARK_BYTES:] + _receive(server)  # the mark may arrive in two parts
    add(data[:-MARK_BYTES])


def _receive(server: socket.socket) -> bytes:
    with _server_errors():
        chunk = server.recv(CHUNK_BYTES)
    if not chunk:
        raise BackupError("the server closed the connection before all data had arrived")
    return chunk


def _header(server: socket.socket) -> tuple[bytes, bytes]:
    """Read up to the line that says how the data end, and return it with what came after it. The server sends empty
    lines until its fork is done."""
    data = b""
    while True:
        data = data.lstrip(b"\r\n")
        line, end, rest = data.partition(b"\r\n")
        if end and line.startswith(b"$"):
            return line, rest
        if end:
            raise BackupError(f"the server did not send its data: {line.decode(errors='replace').lstrip('-')}")
        data += _receive(server)
