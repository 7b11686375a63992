"""Callers that disconnect, lie or nest too deeply: what a real process says in its log and in its answers."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.service.conftest import PASSWORD, DebianRedis
from tests.service.process import Process, running, wait_until

pytestmark = pytest.mark.slow
KEY = "the-bootstrap-key-of-these-tests"
TEXT = "the secret of the lemon tart"
LEFT = 'code="499"'


@pytest.fixture
def guarded(guarded_redis: DebianRedis, tiny_checkpoint: Path) -> Iterator[Process]:
    """A service whose store requires a password."""
    with running(tiny_checkpoint, NOTELLM_REDIS_URL=guarded_redis.url) as process:
        yield process


def leave(process: Process, path: str, content_type: str, body: bytes) -> None:
    """Send a part of a body and close; if the part has a complete line, wait for its answer before."""
    address = httpx2.URL(process.url)
    with socket.create_connection((address.host, address.port or 80), timeout=60) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: 100000\r\n"
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        answer = connection.recv(1024)  # the service waits for the body: status 100, or 200 for a stream
        connection.sendall(body)
        while b"\n" in body and b'"created"' not in answer:
            answer += connection.recv(1024)


def departures(process: Process) -> int:
    """Return the number of requests that the metrics count as 499."""
    lines = httpx2.get(f"{process.url}/metrics").text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if LEFT in line and "_count{" in line)


def hostile_answers(url: str) -> list[str]:
    """Return the texts of the answers to bodies that are refused."""
    deep = b"[" * 300 + b"]" * 300
    bodies = [
        (b'{"title": "%s", "colour": %s}' % (TEXT.encode(), deep), "application/json"),
        (b'[{"title": "%s", "colour": %s}]' % (TEXT.encode(), deep), "application/json"),
        (b'{"title": ["%s"]}\n' % TEXT.encode(), "application/x-ndjson"),
        (b'{"title": "%s' % TEXT.encode(), "application/json"),
        (TEXT.encode(), "text/plain"),
    ]
    paths = ("/notes", "/similar", "/generate")
    return [
        httpx2.post(url + path, content=body, headers={"content-type": kind}).text
        for path in paths
        for body, kind in bodies
    ]


def test_caller_that_leaves_is_499_in_one_short_line(guarded: Process) -> None:
    part = b'{"title": "%s"' % TEXT.encode()
    for path in ("/notes", "/notes", "/generate", "/similar"):
        leave(guarded, path, "application/json", part)
    leave(guarded, "/notes", "application/x-ndjson", part + b"}\n" + part)
    wait_until(lambda: departures(guarded) == 5)
    guarded.end(signal.SIGTERM)
    lines = [json.loads(line) for line in guarded.log.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines if line.get("status") == 499] == ["request"] * 5
    assert "request_failed" not in guarded.log
    assert max(len(line) for line in guarded.log.splitlines() if '"status": 499' in line) < 330


def test_log_of_hostile_requests_shows_no_password_and_no_text(guarded: Process, guarded_redis: DebianRedis) -> None:
    leave(guarded, "/notes", "application/json", b'{"title": "%s"' % TEXT.encode())
    answers = hostile_answers(guarded.url)
    guarded_redis.stop()
    answers += [
        httpx2.post(f"{guarded.url}/notes", json={"title": TEXT}).text,
        httpx2.get(f"{guarded.url}/readyz").text,
    ]
    guarded.end(signal.SIGTERM)
    assert "Traceback" not in guarded.log
    for secret in (PASSWORD, TEXT):
        assert secret not in guarded.log
        assert [answer for answer in answers if secret in answer] == []


def test_keys_are_in_no_output_but_the_answer_that_made_them(guarded_redis: DebianRedis, tiny_checkpoint: Path) -> None:
    with running(tiny_checkpoint, NOTELLM_REDIS_URL=guarded_redis.url, NOTELLM_BOOTSTRAP_KEY=KEY) as process:
        root = {"Authorization": f"Bearer {KEY}"}
        created = httpx2.post(f"{process.url}/keys", headers=root, json={"name": "a", "scopes": ["metrics"]}).json()
        rotated = httpx2.post(f"{process.url}/keys/{created['prefix']}/rotate", headers=root, json={}).json()
        wrong = f"nlm_{created['prefix']}_{'w' * 43}"
        answers = []
        for secret in (KEY, created["key"], rotated["key"], wrong):
            for header in (f"Bearer {secret}", f"Basic {secret}", secret, f"Bearer {secret}\x1b[31m"):
                sent = {"Authorization": header}
                answers += [httpx2.get(process.url + path, headers=sent) for path in ("/metrics", "/keys", "/audit")]
                answers += [
                    httpx2.post(f"{process.url}/notes", headers=sent, content=b'{"title": "%s"' % secret.encode())
                ]
            path = f"{process.url}/keys/{secret}"
            answers += [httpx2.get(path), httpx2.delete(path, headers=root), httpx2.get(f"{path}/none")]
        guarded_redis.stop()
        answers += [httpx2.get(f"{process.url}/keys", headers=root)]
        process.end(signal.SIGTERM)
        log = process.log
    assert {answer.status_code for answer in answers} >= {200, 400, 401, 403, 404, 422, 503}
    assert "Traceback" not in log
    for secret in (KEY, *(key.split("_", 2)[2] for key in (created["key"], rotated["key"], wrong)), PASSWORD):
        assert secret not in log
        assert [answer.text for answer in answers if secret in answer.text] == []


def test_malformed_redis_url_is_refused_without_its_password(tiny_checkpoint: Path) -> None:
    url = f"redis://:{PASSWORD}/@127.0.0.1:6379"  # the slash ends the part of the URL that names the host
    with pytest.raises(AssertionError) as failure, running(tiny_checkpoint, NOTELLM_REDIS_URL=url):
        pass
    assert PASSWORD not in str(failure.value)
    assert "NOTELLM_REDIS_URL" in str(failure.value)
