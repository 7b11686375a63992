"""Connections: uvicorn's HTTP/1.1 protocol with bounds on time, on the head of a request, and on their number.

uvicorn bounds only the pause between two requests. A caller that sends a byte now and then would hold a connection
forever, and one that sends headers without end would fill the memory.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus

import httptools
import structlog
import uvicorn
from prometheus_client import Counter
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api.awaited_body import AwaitedBody
from service.api.connection_bounds import (
    BODY_SECONDS,
    HEAD_SECONDS,
    MAX_CONNECTIONS,
    MAX_DISCARDED_BYTES,
    MAX_EARLY_PER_ITERATION,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    MAX_QUERY_PARAMETERS,
    MIN_BODY_RATE,
    PATHS_WHEN_FULL,
    PIECE_BYTES,
    SPARE_CONNECTIONS,
    SPARE_FILES,
    SPARE_HEAD_SECONDS,
)
from service.api.connection_watch import ConnectionWatch
from service.api.early_response import EarlyResponder, EarlyResponse
from service.api.head_with_body import HeadWithBody
from service.api.pausable_flow import PausableFlow
from service.api.problems import MEDIA_TYPE, plain_problem
from service.api.request_head import malformed
from service.api.unsent_answers import UnsentAnswers

FULL_LINE_SECONDS = 10.0
"""Seconds between log lines that report too many connections."""

log = structlog.get_logger(__name__)


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration. `early`: asked in this order to answer a request before the app gets it. `admin_port`:
    its connections, like those of reader processes, are not bounded in number; None if there is none. `refused`: counts
    connections beyond the bound on their number. `ended`: counts those that the service closes for another reason."""

    early: Sequence[EarlyResponder]
    admin_port: int | None
    refused: Counter
    ended: Counter


class BoundedProtocol(HttpToolsProtocol):
    """One connection. What is refused here is answered with a problem if possible, and closes the connection."""

    max_connections = MAX_CONNECTIONS
    needed_files = MAX_CONNECTIONS + SPARE_FILES
    """Open files that suffice for MAX_CONNECTIONS in each process of the service."""
    full_logged_at = 0.0
    """Monotonic time of the last log line about too many connections."""
    config: HttpConfig

    # asyncio.Protocol has a wider argument; uvicorn's own class, which is overridden here, narrows it in the same way.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = PausableFlow(self)
        self._in_head = True
        self._unparsed = 0
        """Bytes fed to the parser since it last reported a part of a request."""
        excess = len(self.connections) - self.max_connections
        self._is_spare = excess > 0 and not self._is_exempt
        self._deadline = time.monotonic() + (SPARE_HEAD_SECONDS if self._is_spare else HEAD_SECONDS)
        self._early: EarlyResponse | None = None
        """Answer to the current request, which does not reach the app unless its body turns out to be a list."""
        self._early_left = 0
        """Requests that may still be answered early in this iteration of the event loop."""
        self._unanswered: deque[RequestResponseCycle] = deque()
        """Requests passed to the app, in order; answered ones are removed when the next request begins."""
        self._body: AwaitedBody | None = None
        """Body of the last request that was passed to the app."""
        self._discarded = 0
        """Bytes of the current body that were discarded."""
        self._ends_after_body = False
        """Whether the connection is closed once the body of the current request has arrived."""
        self._shuts_down = False
        """Whether the server has begun to stop."""
        self._rest = b""
        """Bytes that were read but not parsed yet, since MAX_PIPELINED requests wait before them."""
        self._checked_at = time.monotonic()
        self._unsent = UnsentAnswers(transport, self._checked_at)
        ConnectionWatch.for_loop(self.loop).add(self)
        if self._is_spare and excess > SPARE_CONNECTIONS:
            self._refuse_as_full()

    @property
    def _is_exempt(self) -> bool:
        """Whether the connection is not refused because of the bound: one to the admin port, or one of a reader
        process, which comes over a Unix socket and so has no port."""
        return self.server is not None and self.server[1] in (None, self.config.admin_port)

    def shutdown(self) -> None:
        self._shuts_down = True
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unsent.close()
        self._leave()  # uvicorn notifies the last request alone
        self._unset_keepalive_if_required()  # uvicorn lets the timer hold a connection that was reset until it is over
        super().connection_lost(exc)
        ConnectionWatch.for_loop(self.loop).remove(self)
        self._release()

    def _release(self) -> None:
        """Drop the references by which the connection and its requests refer to each other. Otherwise they, and bodies
        that nobody has read, would stay in memory until they are garbage-collected."""
        self._unanswered.clear()
        self.pipeline.clear()
        self.cycle = self.flow = None  # type: ignore[assignment]  # uvicorn begins with None too, and declares it away

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._rest:
            self._rest += data  # it was read before reading was paused
        else:
            self._parse(data)

    @property
    def has_read_ahead(self) -> bool:
        """Whether bytes wait to be parsed, or the body of a request that waits for an earlier answer exceeds its
        bound."""
        return bool(self._rest) or (bool(self.pipeline) and len(self.cycle.body) > HIGH_WATER_LIMIT)

    def _parse_rest(self) -> None:
        """Parse the remaining bytes as far as MAX_PIPELINED allows, and resume reading once nothing waits."""
        if self._rest and not self.transport.is_closing():
            rest, self._rest = self._rest, b""
            self._parse(rest)
            if not self.pipeline:
                self.flow.resume_reading()

    def _parse(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._early_left = MAX_EARLY_PER_ITERATION
        now = time.monotonic()
        if math.isinf(self._deadline):
            self._deadline = now + HEAD_SECONDS  # a later request begins
        elif not self._in_head:
            self._deadline = min(self._deadline + len(data) / MIN_BODY_RATE, now + BODY_SECONDS)
        # Fed in pieces, so that a head is refused as soon as it exceeds its bound, and only a few requests begin where
        # a caller sends thousands in one piece.
        view = memoryview(data)
        while view and not self.transport.is_closing():
            if len(self.pipeline) >= MAX_PIPELINED:
                self._rest = bytes(view)
                self.flow.pause_reading()
                return
            piece = view[:PIECE_BYTES]
            self._unparsed += len(piece)
            view = view[self._feed(piece) :]
            if self.transport.is_closing():
                return
            if self._unparsed > MAX_HEAD_BYTES:
                self._refuse_head("max_head_bytes", MAX_HEAD_BYTES)
            elif self.headers and len(self.headers) > MAX_HEADERS:  # None before the first request
                self._refuse_head("max_headers", MAX_HEADERS)

    def _feed(self, piece: memoryview) -> int:
        """Parse a piece up to its end, or to the end of a head that asks for an upgrade; return the number of bytes
        parsed. What cannot be parsed is refused, which closes the connection."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            if self.parser.get_method() == b"CONNECT":
                self._end("malformed", 400, "This service is not a proxy.")
            else:
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self._feed(memoryview(head))
            end: int = upgrade.args[0]
            return end
        except httptools.HttpParserCallbackError:
            log.exception("connection_failed")
            self._end("failed", 500, "The service failed on this request: an internal error.")
        except httptools.HttpParserError:
            self._end("malformed", 400, "This is not a valid HTTP/1.1 request.")
        return len(piece)

    def _head_without_upgrade(self) -> bytes:
        """Return the head of the current request as if it asked for no upgrade: the parser accepts no body after one
        that does, and some clients ask for HTTP/2 with every request."""
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1"]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(token for token in value.split(b",") if token.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(name + b": " + value)
        return b"\r\n".join((*lines, b"", b""))

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() or self.transport.is_closing():
            return  # `_feed` has an upgrade parsed again; a closing connection takes no request
        if self._is_spare and self.url.partition(b"?")[0] not in PATHS_WHEN_FULL:
            self._refuse_as_full()
            return
        if len(self.headers) > MAX_HEADERS:
            self._refuse_head("max_headers", MAX_HEADERS)
            return
        if self.url.count(b"&") >= MAX_QUERY_PARAMETERS:
            self._refuse_head("max_query_parameters", MAX_QUERY_PARAMETERS, 414)
            return
        if problem := malformed(self.url, self.headers, self.parser.get_http_version()):
            self._end("malformed", 400, problem)
            return
        self._in_head = False
        self._unparsed = 0
        self._deadline = time.monotonic() + BODY_SECONDS
        self._body_begun = False
        self._discarded = 0
        while self._unanswered and self._unanswered[0].response_complete:  # answers come in order
            self._unanswered.popleft()
        if not self._unanswered and self._early_left and not self.flow.write_paused:
            self._early_left -= 1
            self._early = self._decide()
        if self._early is None:
            self._call_app()

    def _refuse_head(self, name: str, bound: int, status: int = 431) -> None:
        self._end("head_too_large", status, f"The head of the request exceeds {name} = {bound} of GET /limits.")

    def _decide(self) -> EarlyResponse | None:
        """Return the answer to the current request if it does not need the app."""
        method, target, headers = self.parser.get_method(), self.url, self.headers
        for answering in self.config.early:
            try:
                answer = answering.decide(method, target, headers)
            except Exception:
                log.exception("early_answer_failed")  # the app answers instead
                return None
            if answer:
                return answer
        return None

    def _call_app(self) -> None:
        """Pass the current request to the app."""
        self._early = None
        self._unset_keepalive_if_required()  # an early answer before this request, in the same segment, has set it
        super().on_headers_complete()
        self.cycle.transport = HeadWithBody(self, has_body=self.parser.get_method() != b"HEAD")
        self._body = AwaitedBody(self.cycle)
        # uvicorn gives the app this attribute of its cycle, and has no hook to replace it.
        self.cycle.receive = self._body  # type: ignore[method-assign, assignment]
        announced = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        if self._is_spare or announced > MAX_DISCARDED_BYTES:  # if it is refused, not all of its body is read
            self.cycle.keep_alive = False
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unparsed = 0
        if self._early is not None and not self._body_begun:
            begin = body.lstrip()[:1]
            self._body_begun = begin != b""
            if begin == b"[":
                self._call_app()
        if self._early is not None or self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED_BYTES:
                self._abort("body_not_taken")
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() or self.transport.is_closing():
            return
        self._in_head = True
        self._unparsed = 0
        self._deadline = math.inf  # until a later request begins
        if self._ends_after_body:
            self.transport.close()
            return
        if self._early is not None:
            self._send_early(self._early)
            return
        super().on_message_complete()
        if self.cycle.response_complete:  # the body of a refused request has ended; its bytes had stopped the timer
            self._unset_keepalive_if_required()
            wait = self.timeout_keep_alive
            self.timeout_keep_alive_task = self.loop.call_later(wait, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.pipeline or self._rest:
            self.flow.pause_reading()  # uvicorn resumes reading after each answer
        if self._rest and len(self.pipeline) < MAX_PIPELINED // 2:
            self.loop.call_soon(self._parse_rest)

    def end_after_answer(self, answer: HeadWithBody) -> None:
        """Close the connection after `answer`. Where it is complete and the body of its request has not arrived, only
        this side is closed, and the body is discarded: a connection that is closed with unread bytes is reset, and its
        caller may lose the answer. The bounds on a body's time and on discarded bytes stay."""
        cycle = self.cycle
        waits = cycle and cycle.transport is answer and cycle.response_complete and cycle.more_body
        ends_now = self._is_spare or self._shuts_down or self.transport.is_closing()
        if waits and not ends_now and self.transport.can_write_eof():
            self._ends_after_body = True
            self.transport.write_eof()
        else:
            self.transport.close()

    def _send_early(self, answer: EarlyResponse) -> None:
        self._early = None
        keep = not self._is_spare and self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        self._write_answer(answer.status, answer.headers, answer.body, keep)
        answer.on_sent()
        if not keep:
            self.transport.close()
        self.on_response_complete()

    def _write_answer(
        self, status: HTTPStatus, headers: Sequence[tuple[bytes, bytes]], body: bytes, keep: bool
    ) -> None:
        """Write a whole answer. `keep`: whether the connection is kept for another request."""
        lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
        length = (b"content-length", b"%d" % len(body))
        lines += [name + b": " + value for name, value in (*self.server_state.default_headers, length, *headers)]
        if not keep:
            lines.append(b"connection: close")
        self.write(b"\r\n".join((*lines, b"", body)))

    def send_400_response(self, msg: str) -> None:
        self._end("malformed", 400, msg)

    def check_time(self) -> None:
        """Close the connection if its caller has used up its time."""
        now = time.monotonic()
        passed, self._checked_at = now - self._checked_at, now
        if self._unsent.check(now):
            self._abort("slow_answer")
        elif self.flow.read_paused or self._is_working:
            self._deadline += passed  # the caller's time stops where the service does not wait for the caller
        elif now >= self._deadline and not self.transport.is_closing():
            if self._in_head and not self._unparsed:
                self.transport.close()
            else:
                part = "head" if self._in_head else "body"
                self._end(f"slow_{part}", 408, f"The {part} of the request arrived too slowly.")

    @property
    def _is_working(self) -> bool:
        """Whether the app works on the current request without waiting for more of its body. A forwarded
        request counts as such: the process with the model knows whether it waits, and bounds the time itself."""
        if self._in_head or self._early is not None or self.cycle.response_complete:
            return False
        return not (self._body and self._body.is_awaited) or bool(self.cycle.scope["state"].get("forwarded"))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write to the caller, and count the bytes for the bound on how slowly it takes them."""
        self._unsent.written(len(data))
        self.transport.write(data)

    def _end(self, reason: str, status: int, detail: str) -> None:
        """Refuse the current request, which closes the connection, and count it under its reason."""
        self.config.ended.labels(reason).inc()
        self._refuse(status, detail)

    def _abort(self, reason: str) -> None:
        """Close the connection at once, dropping what its caller has not taken, and count it under its reason."""
        self.config.ended.labels(reason).inc()
        for cycle in self._pending:
            if cycle.response_started or self.flow.write_paused:  # it waits for the caller to take answers
                cycle.scope["state"]["ended_status"] = HTTPStatus.REQUEST_TIMEOUT.value
        self._leave()
        self.transport.abort()

    def _refuse(self, status: int, detail: str, retry_after: int | None = None) -> None:
        """Close the connection, with a problem as its last answer unless the answer to an earlier request, or one that
        has begun, would have to come first. A request whose body is incomplete is observed with `status`, earlier ones
        are not (middleware.py). `retry_after`: seconds."""
        pending = self._pending
        is_answered = not self._in_head and bool(self._unanswered) and self._unanswered[-1].response_complete
        is_next = not any(cycle.response_started for cycle in pending) and len(pending) <= (not self._in_head)
        if is_next and not is_answered:
            headers = [(b"content-type", MEDIA_TYPE.encode())]
            if retry_after is not None:
                headers.append((b"retry-after", b"%d" % retry_after))
            body = plain_problem(status, detail, retry_after).model_dump_json().encode()
            self._write_answer(HTTPStatus(status), headers, body, keep=False)
        for cycle in pending:
            if cycle.more_body:
                cycle.scope["state"]["ended_status"] = status
        self._leave()
        self.transport.close()

    @property
    def _pending(self) -> list[RequestResponseCycle]:
        """Requests passed to the app that are not answered completely, in order."""
        return [cycle for cycle in self._unanswered if not cycle.response_complete]

    def _leave(self) -> None:
        """Mark the pending requests as disconnected, also for handlers that do not wait for their caller (`left`), and
        wake the others: nothing that the app sends is written any more."""
        for cycle in self._pending:
            cycle.disconnected = cycle.scope["state"]["left"] = True
            cycle.message_event.set()
        self.flow.resume_writing()

    def _refuse_as_full(self) -> None:
        """Refuse a connection beyond the bound on their number, and log that at most once in FULL_LINE_SECONDS."""
        self.config.refused.inc()
        now = time.monotonic()
        if now - BoundedProtocol.full_logged_at >= FULL_LINE_SECONDS:
            BoundedProtocol.full_logged_at = now
            detail = f"more get 503; raise the bound on open files (ulimit -n) if it is below {self.needed_files}"
            log.error("connections_full", connections=self.max_connections, detail=detail)
        self._refuse(503, "There are too many open connections; try again.", retry_after=1)
