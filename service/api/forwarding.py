"""Forwarding: a request that this process does not answer is sent to another one over a Unix socket, and its answer is
streamed back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import httptools
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from structlog.contextvars import get_contextvars

from service.api.problems import plain_problem, problem_response
from service.store.connection import CLOSED

HOP_BY_HOP_HEADERS = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
"""Headers about one connection, which are not forwarded (RFC 9110, section 7.6.1)."""
UNFORWARDED_REQUEST_HEADERS = HOP_BY_HOP_HEADERS | {b"expect", b"x-request-id"}
"""Headers of a request that this process has handled: it asks for the body, and has chosen the id."""
UNFORWARDED_ANSWER_HEADERS = HOP_BY_HOP_HEADERS | {b"date"}
"""Headers of an answer that this process's server writes itself."""
READ_BYTES = 65_536
"""Maximum bytes of an answer that are read at a time."""
Headers = Sequence[tuple[bytes, bytes]]


class ForwardedResponse(Response):
    """Response that returns the answer of the process listening on a Unix socket.

    Body and answer are streamed at the same time, each with backpressure. If the caller disconnects, the connection to
    the other process is closed, so that the work ends there too. If that process does not answer, the caller gets 503.
    """

    def __init__(self, socket: str) -> None:
        super().__init__()
        self._socket = socket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            await _unreachable()(scope, receive, send)
            return
        scope["state"]["forwarded"] = True
        sending = asyncio.create_task(_send_request(scope, receive, writer), name="forward")
        try:
            begun = await _return_answer(reader, _method(scope), send)
            caller_left = sending.done() and sending.result()
            if not begun and not caller_left:
                scope["state"]["forwarded"] = False
                await _unreachable()(scope, receive, send)
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            writer.transport.abort()


def _unreachable() -> Response:
    problem = plain_problem(503, "The process with the model does not answer; try again.", retry_after=1)
    return problem_response(problem, {"Retry-After": "1"})


async def _send_request(scope: Scope, receive: Receive, writer: asyncio.StreamWriter) -> bool:
    """Send a request until its caller disconnects; then abort the connection and return True. Return False where the
    other process has closed the connection."""
    chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    try:
        writer.write(_head(scope, chunked))
        more = True
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                writer.transport.abort()
                return True
            if body := message.get("body", b""):
                writer.write(b"%x\r\n%b\r\n" % (len(body), body) if chunked else body)
            if more and not message.get("more_body", False):
                more = False
                writer.write(b"0\r\n\r\n" if chunked else b"")
            await writer.drain()
    except (OSError, RuntimeError) as error:  # the other process has closed the connection: perhaps its answer says why
        if isinstance(error, RuntimeError) and CLOSED not in str(error):
            raise
    return False


def _method(scope: Scope) -> str:
    """Return the method with which the request came; its route sees a HEAD as GET (HeadAsGet)."""
    method: str = scope.get("state", {}).get("method", scope["method"])
    return method


def _head(scope: Scope, chunked: bool) -> bytes:
    """Return the request line and the headers, with the id that this process gave the request."""
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    headers = [(name, value) for name, value in scope["headers"] if name not in UNFORWARDED_REQUEST_HEADERS]
    headers.append((b"x-request-id", get_contextvars()["request_id"].encode()))
    if chunked:
        headers = [(name, value) for name, value in headers if name != b"content-length"]
        headers.append((b"transfer-encoding", b"chunked"))
    lines = [b"%b %b HTTP/1.1" % (_method(scope).encode(), target)]
    lines += [b"%b: %b" % header for header in headers]
    return b"\r\n".join((*lines, b"", b""))


async def _return_answer(reader: asyncio.StreamReader, method: str, send: Send) -> bool:
    """Return an answer to the caller; False if the connection ended before any of it arrived. An answer that breaks off
    later stays incomplete, and the server then closes the caller's connection."""
    answer = Answer(method)
    with contextlib.suppress(OSError):
        while not answer.complete and (piece := await reader.read(READ_BYTES)):
            for message in answer.feed(piece):
                await send(message)
    return answer.begun


class Answer:
    """Parses the answer to a request with this method into ASGI messages. `begun`: its head has arrived; `complete`:
    all of it has."""

    def __init__(self, method: str) -> None:
        self._without_body = method == "HEAD"
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._messages: list[Message] = []
        self.begun = self.complete = False

    def feed(self, piece: bytes) -> list[Message]:
        """Parse a piece, and return the messages that it completes."""
        self._messages = []
        self._parser.feed_data(piece)
        return self._messages

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() not in UNFORWARDED_ANSWER_HEADERS:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.begun = True
        status = self._parser.get_status_code()
        self._messages.append({"type": "http.response.start", "status": status, "headers": self._headers})
        if self._without_body:
            self.on_message_complete()

    def on_body(self, body: bytes) -> None:
        self._messages.append({"type": "http.response.body", "body": body, "more_body": True})

    def on_message_complete(self) -> None:
        if not self.complete:
            self.complete = True
            self._messages.append({"type": "http.response.body", "body": b"", "more_body": False})
