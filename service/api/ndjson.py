"""Answers that are a stream of lines (NDJSON), sent as they come, and compressed where the caller takes that."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, suppress

from fastapi import Response
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.api.bodies import NDJSON, SLICE_BYTES, Turns

GZIP_WINDOW = 31
"""Number by which zlib means the largest window, in the format of gzip."""
GZIP_LEVEL = 1
"""The fastest level: base64 of vectors does not become much smaller at any other."""

SENT_TOGETHER_BYTES = 65_536
"""Bytes of lines that are sent together. What is sent is written whole, however slowly the caller takes it."""


class NdjsonResponse(Response):
    """Sends each line, or some lines at a time, at once, while the request may still be being read. Ends quietly when
    the caller leaves."""

    def __init__(self, lines: AsyncGenerator[bytes], headers: dict[str, str] | None = None) -> None:
        self._lines = lines
        super().__init__(None, 200, headers, media_type=NDJSON)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with suppress(ClientDisconnect):
            async with aclosing(self._lines) as lines:  # so that what they hold is free at once
                async for line in lines:
                    await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def pieces_of(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Join lines, in their order, to pieces of SENT_TOGETHER_BYTES or a line more; the last one may be smaller."""
    piece, size = list[bytes](), 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= SENT_TOGETHER_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    if piece:
        yield b"".join(piece)


async def started(lines: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Return a stream whose first lines were computed, so that what fails up to there is answered with a problem."""
    return _chain(await anext(lines, b""), lines)


async def _chain(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest) as pieces:
        yield first
        async for piece in pieces:
            yield piece


def takes_gzip(headers: Headers) -> bool:
    """Return whether a caller takes answers that are compressed by gzip."""
    for coding in headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = (part.strip() for part in coding.partition(";"))
        if name in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


async def gzipped(lines: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Compress a stream; each piece can be decompressed once it has arrived."""
    compressor, turns = zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WINDOW), Turns()
    async with aclosing(lines) as pieces:
        async for piece in pieces:
            packed = []
            for begin in range(0, len(piece), SLICE_BYTES):
                packed.append(compressor.compress(piece[begin : begin + SLICE_BYTES]))
                await turns.work(SLICE_BYTES)
            yield b"".join(packed) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()
