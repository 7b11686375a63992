"""Tests that the client of docs/guides/clients.md runs as printed, against a live service with failing requests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.process import running

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "clients.md"
MAX_LINES = 25
KEY = "the-bootstrap-key-of-these-tests"


def blocks() -> tuple[str, str]:
    """Return the guide's two code blocks: the client and its use."""
    client, usage = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return client, usage


def test_client_has_twenty_five_lines_at_most() -> None:
    assert len(blocks()[0].splitlines()) <= MAX_LINES


FAILURES = """
call("PUT", "/notes/kyoto-2", json={"title": "Kyoto in the rain"})
sent, pauses, request = [], [], service.request
time.sleep = pauses.append


def unreliable_request(*arguments, **options):
    sent.append(arguments)
    assert ("X-Request-Timeout" in options["headers"]) == (arguments[0] != "GET")
    if len(sent) == 1:
        raise httpx.ConnectError("nobody listens yet")
    if len(sent) == 2:
        return httpx.Response(429, headers={"Retry-After": "7"})
    answer = request(*arguments, **options)
    if len(sent) == 3:
        raise httpx.ReadError("the answer is lost")
    if len(sent) == 4:
        return httpx.Response(503, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})
    return answer


service.request = unreliable_request
"""
"""Code run between the client and its use: the first attempts fail, the third one after the note was stored."""
CHECKS = """
assert [path for _, path in sent] == ["/notes"] * 5 + [f"/notes/{note['id']}/similar"]
assert pauses == [1, 7, 4, 8]
assert len(call("GET", "/notes").json()["notes"]) == 2
try:
    call("POST", "/similar", json={})
except httpx.HTTPStatusError as error:
    assert error.response.status_code == 422
else:
    raise AssertionError("an invalid search was answered")
service.request = lambda *arguments, **options: httpx.Response(
    429, headers={"Retry-After": "1740"}, request=httpx.Request("GET", "http://a")
)
try:
    call("GET", "/notes")
except httpx.HTTPStatusError as error:
    assert error.response.status_code == 429
else:
    raise AssertionError("it waited for half an hour")
assert len(pauses) == 4
service.request = request
gone = call("DELETE", f"/notes/{note['id']}", once=True, headers={"If-Match": f'"{note["log_position"]}"'})
assert gone.status_code == 200
"""
"""Code run after the use: the note was stored once, and a request that cannot succeed, or not soon, is not retried."""


@pytest.mark.slow
def test_client_runs_against_a_live_service(tiny_checkpoint: Path) -> None:
    client, usage = blocks()
    with running(tiny_checkpoint, NOTELLM_BOOTSTRAP_KEY=KEY, NOTELLM_API_KEY=KEY) as service:
        result = subprocess.run(
            [sys.executable, "-c", f"{client}\n{FAILURES}\n{usage}\n{CHECKS}"],
            env=service.environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["kyoto-2 Kyoto in the rain"]
