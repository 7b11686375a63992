"""Answers that their callers read slowly, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import httpx2
import pytest
import structlog

from service.api import connection_watch, unsent_answers
from service.api.protocol import BoundedProtocol
from service.api.unsent_answers import UnsentAnswers
from tests.service.api.conftest import eventually_true
from tests.service.api.connections import GET, connected, ended

ASSET = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""Request with an answer of more than a megabyte."""


@pytest.mark.usefixtures("impatient")
def test_answer_that_nobody_takes_ends_its_connection(url: str, client: httpx2.Client) -> None:
    asset_bytes = len(client.get("/docs/swagger-ui-bundle.js").content)
    before = ended(client, "slow_answer")
    with structlog.testing.capture_logs() as lines, connected(url) as connection:
        connection.sendall(ASSET * 50)
        eventually_true(lambda: ended(client, "slow_answer") > before)
        assert 0 < bytes_left(connection) < 50 * asset_bytes
        eventually_true(lambda: 408 in [line["status"] for line in list(lines) if line["event"] == "request"])


Checks = list[tuple[int, bool]]


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    """Records each check of a connection: the bytes that waited for the caller, and whether the check ended it."""
    recorded: Checks = []
    check = UnsentAnswers.check

    def record(self: UnsentAnswers, now: float) -> bool:
        ends = check(self, now)
        recorded.append((self._waiting, ends))
        return ends

    monkeypatch.setattr(connection_watch, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(UnsentAnswers, "check", record)
    return recorded


def test_file_waits_in_pieces_for_a_caller_that_takes_nothing(url: str, checks: Checks) -> None:
    with connected(url) as connection:
        connection.sendall(ASSET)
        eventually_true(lambda: sum(unsent > 0 for unsent, _ in checks) > 5)
        assert max(unsent for unsent, _ in checks) <= unsent_answers.FREE_UNSENT_BYTES


DESCRIPTIONS = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50
"""Requests whose answers are many times what the buffers of a connection hold."""


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("rate", "seconds", "all_comes"), [(10**9, 1.0, False), (1, 10.0, True)])
def test_answer_that_is_taken_slowly_comes_only_above_the_least_rate(
    url: str, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch, rate: int, seconds: float, all_comes: bool
) -> None:
    """The caller reads 64 KiB in 0.2 s, seen in steps of 95 to 400 KB, so it is never idle for ANSWER_SECONDS."""
    monkeypatch.setattr(unsent_answers, "ANSWER_SECONDS", seconds)
    monkeypatch.setattr(unsent_answers, "MIN_ANSWER_RATE", rate)
    asset_bytes = len(client.get("/docs/swagger-ui-bundle.js").content)
    with connected(url) as connection:
        connection.sendall(ASSET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        came = bytes_left(connection, seconds_each=0.2)
    assert came > 0
    assert (came > asset_bytes) is all_comes


def test_answer_that_waits_at_the_first_check_is_sent(
    url: str, client: httpx2.Client, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_time = BoundedProtocol.check_time

    def check_while_something_waits(self: BoundedProtocol) -> None:
        if self.transport.get_write_buffer_size():
            check_time(self)

    answer_bytes = len(client.get("/openapi.json").content)
    monkeypatch.setattr(BoundedProtocol, "check_time", check_while_something_waits)
    with connected(url) as connection:
        connection.sendall(DESCRIPTIONS + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        eventually_true(lambda: len(checks) > 5)
        assert bytes_left(connection) > 50 * answer_bytes


def test_answers_that_wait_for_all_callers_are_bounded_together(
    url: str, client: httpx2.Client, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_bytes = len(client.get("/openapi.json").content)
    monkeypatch.setattr(unsent_answers, "FREE_UNSENT_BYTES", 1000)
    monkeypatch.setattr(unsent_answers, "MAX_UNSENT_BYTES", 3 * answer_bytes // 2)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(url)) for _ in range(5)]
        slow[0].sendall(DESCRIPTIONS)
        eventually_true(lambda: sum(unsent > 1000 for unsent, _ in checks) > 5)
        assert not any(ends for _, ends in checks)
        for connection in slow[1:]:
            connection.sendall(DESCRIPTIONS)
        eventually_true(lambda: any(ends for _, ends in checks))
        assert client.get("/livez").status_code == 200
    eventually_true(lambda: UnsentAnswers.beyond_free == 0)


class Caller(asyncio.Transport):
    """Connection of a caller for whom `left` bytes are unsent, at first all that was written."""

    def __init__(self, left: int) -> None:
        super().__init__({"socket": socket.socket()})
        self.left = left
        self.answers = UnsentAnswers(self, 0.0)
        self.answers.written(left)

    def get_write_buffer_size(self) -> int:
        return self.left


def test_over_the_bound_of_all_no_more_connections_end_than_needed_and_none_that_takes_its_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unsent_answers, "FREE_UNSENT_BYTES", 100)
    monkeypatch.setattr(unsent_answers, "MAX_UNSENT_BYTES", 300)
    eventually_true(lambda: UnsentAnswers.beyond_free == 0)
    small, fast, slow, slower = callers = [Caller(left) for left in (100, 250, 250, 250)]
    assert not any(caller.answers.check(1.0) for caller in callers)
    assert UnsentAnswers.beyond_free == 450
    fast.answers.written(250)  # this caller has read all its bytes, and as many are unsent again
    assert [caller.answers.check(2.0) for caller in (small, fast, slow, slower)] == [False, False, True, False]
    assert UnsentAnswers.beyond_free == 300
    for caller in callers:
        caller.answers.close()
        caller.get_extra_info("socket").close()
    assert UnsentAnswers.beyond_free == 0


def bytes_left(connection: socket.socket, seconds_each: float = 0.0) -> int:
    """Count the bytes that still come from a connection until it ends. `seconds_each`: pause of a caller who reads
    64 KiB at a time."""
    count = 0
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(2**16 if seconds_each else 2**20):
            count += len(part)
            time.sleep(seconds_each)
    return count
