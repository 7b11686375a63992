"""Connections that the service ends: how they are counted, and the status in the log lines of their requests."""

from __future__ import annotations

import httpx2
import pytest
import structlog

from service.api.connection_bounds import MAX_HEAD_BYTES
from service.api.protocol import BoundedProtocol
from tests.service.api.conftest import eventually_true
from tests.service.api.connections import GET, POST, closed, connected, ended, problem_in, read_answer


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("request_bytes", "reason", "status"),
    [
        (b"GARBAGE\r\n\r\n", "malformed", 400),
        (GET[:-2], "slow_head", 408),
        (POST + b"Content-Length: 100\r\n\r\n{", "slow_body", 408),
        (GET[:-2] + b"X-Long: " + b"x" * MAX_HEAD_BYTES * 2, "head_too_large", 431),
    ],
)
def test_connection_that_the_service_ends_is_counted_by_its_reason(
    url: str, client: httpx2.Client, request_bytes: bytes, reason: str, status: int
) -> None:
    before = ended(client, reason)
    with connected(url) as connection:
        connection.sendall(request_bytes)
        assert read_answer(connection)[0] == status
    assert ended(client, reason) == before + 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("rest", "status"),
    [(b'Content-Length: 100\r\n\r\n{"title"', 408), (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400)],
    ids=["slow", "malformed"],
)
def test_request_that_the_service_breaks_off_is_logged_with_the_status_of_that(
    url: str, rest: bytes, status: int
) -> None:
    def statuses() -> list[int]:
        return [line["status"] for line in list(lines) if line["event"] == "request"]

    with structlog.testing.capture_logs() as lines, connected(url) as connection:
        connection.sendall(POST + rest)
        assert read_answer(connection)[0] == status
        eventually_true(lambda: len(statuses()) > 0)
    assert statuses() == [status]


def test_complete_request_is_not_logged_with_the_status_of_a_malformed_one_behind_it(url: str) -> None:
    def statuses() -> list[int]:
        return [line["status"] for line in list(lines) if line["event"] == "request"]

    with structlog.testing.capture_logs() as lines, connected(url) as connection:
        connection.sendall(GET.replace(b"/livez", b"/changes?wait=20") + b"GARBAGE\r\n\r\n")
        assert closed(connection)
        eventually_true(lambda: len(statuses()) > 0)
    assert statuses() == [499]


def test_request_whose_caller_leaves_is_logged_as_499(url: str) -> None:
    def statuses() -> list[int]:
        return [line["status"] for line in list(lines) if line["event"] == "request"]

    with structlog.testing.capture_logs() as lines:
        with connected(url) as connection:
            connection.sendall(POST + b'Content-Length: 100\r\n\r\n{"title"')
        eventually_true(lambda: len(statuses()) > 0)
    assert statuses() == [499]


def test_failure_of_a_connection_is_logged_and_is_500(
    url: str, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: BoundedProtocol) -> None:
        raise RuntimeError("broken")

    before = ended(client, "failed")
    with structlog.testing.capture_logs() as lines, connected(url) as connection, monkeypatch.context() as patch:
        patch.setattr(BoundedProtocol, "_call_app", fail)
        connection.sendall(GET)
        assert "internal error" in problem_in(connection, 500)
    assert ("connection_failed", True) in [(line["event"], line.get("exc_info")) for line in lines]
    assert ended(client, "failed") == before + 1
