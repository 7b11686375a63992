"""Answers that are a stream of lines (NDJSON), sent as they are produced, and compressed if the caller accepts gzip."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, suppress

from fastapi import Response
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.api.bodies import NDJSON, SLICE_BYTES, TimeSlices

GZIP_WINDOW = 31
"""Value of `wbits` by which zlib chooses the largest window, in gzip format."""
GZIP_LEVEL = 1
"""The fastest level: the others hardly make base64 of vectors smaller."""

SENT_TOGETHER_BYTES = 65_536
"""Bytes of lines that are sent together. A piece is written whole, however slowly the caller reads it."""


class NdjsonResponse(Response):
    """Sends each line, or batch of lines, at once, even while the request is still being read. Ends without an error
    when the caller disconnects. To HEAD it answers once the first line is known."""

    def __init__(self, lines: AsyncGenerator[bytes], headers: dict[str, str] | None = None) -> None:
        self._lines = lines
        super().__init__(None, 200, headers, media_type=NDJSON)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with suppress(ClientDisconnect):
            async with aclosing(self._lines) as lines:  # so that what they hold is freed at once
                async for line in lines:
                    if scope["state"].get("method") == "HEAD":  # HeadAsGet; the server would send no body
                        break
                    await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def pieces_of(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Join lines, in order, into pieces of SENT_TOGETHER_BYTES or up to a line more; the last one may be smaller."""
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
    """Return a stream whose first piece has been computed, so that an error up to there is answered with a problem."""
    return _chain(await anext(lines, b""), lines)


async def _chain(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest) as pieces:
        yield first
        async for piece in pieces:
            yield piece


def takes_gzip(headers: Headers) -> bool:
    """Return whether a caller accepts answers compressed by gzip."""
    accepted: dict[str, bool] = {}
    for coding in headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = (part.strip() for part in coding.partition(";"))
        accepted.setdefault(name, weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"))
    return accepted.get("gzip", accepted.get("*", False))  # * stands for those that are not named


async def gzipped(lines: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Compress a stream so that each piece can be decompressed once it has arrived."""
    compressor, slices = zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WINDOW), TimeSlices()
    async with aclosing(lines) as pieces:
        async for piece in pieces:
            packed = []
            for begin in range(0, len(piece), SLICE_BYTES):
                packed.append(compressor.compress(piece[begin : begin + SLICE_BYTES]))
                await slices.check()
            yield b"".join(packed) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()
