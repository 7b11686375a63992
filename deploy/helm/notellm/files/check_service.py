"""Adds two notes to a running service, finds one by the other, deletes both: `python check_service.py URL`. The key
in NOTELLM_API_KEY, if any, needs the scopes notes.read, notes.write and similar.

It runs in the pod of `helm test` and in deploy/smoke.sh, with only the standard library. It exits with status 0, or
prints what the service answered. Both notes are deleted whatever failed, and expire if even that fails.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

SECONDS = 60.0
"""Bound on one request, equal to the service's own deadline."""
K = 5
"""Related notes to ask for. Nothing is closer to a note than one with the same text."""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Sends requests without a proxy, even if the environment names one: the service is on this machine or cluster."""
KEPT = timedelta(hours=1)
"""Time after which a note that could not be deleted expires."""


def call(url: str, method: str, path: str, *statuses: int, body: object = None) -> Any:
    """Send JSON and return the decoded answer, None for an empty one. AssertionError for a status that is not in
    `statuses`."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("NOTELLM_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url + path, data, headers, method=method)
    try:
        with DIRECT.open(request, timeout=SECONDS) as answer:
            answered, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        answered, text = error.code, error.read()
    expected = " or ".join(map(str, statuses))
    assert answered in statuses, f"{method} {path} answered {answered} instead of {expected}: {text.decode()}"
    return json.loads(text) if text else None


def find_by_text(url: str, first: str, second: str) -> None:
    """Add two notes with these ids and the same text, and find the second by the first. AssertionError if that
    fails."""
    text = {"title": "A note of the installation check", "content": "It was deleted as soon as it was found."}
    text["expires_at"] = (datetime.now(UTC) + KEPT).isoformat()
    call(url, "POST", "/notes", 201, body={"id": first, **text})
    position = call(url, "POST", "/notes", 201, body={"id": second, **text})["log_position"]
    # Behind a balancer another replica may answer: it waits until it has followed the log to the second note.
    found = call(url, "GET", f"/notes/{first}/similar?k={K}&min_log_position={position}", 200)
    ids = [item["id"] for item in found["items"]]
    assert second in ids, f"the note of the same text was not found, but {ids}"


def remove(url: str, note_id: str) -> None:
    """Delete a note, whether it exists or not. AssertionError if that fails."""
    call(url, "DELETE", f"/notes/{note_id}", 200, 404)
    call(url, "GET", f"/notes/{note_id}", 404)


def check(url: str) -> list[str]:
    """Check a service, and return what failed."""
    first, second = (f"check-{uuid.uuid4()}" for _ in range(2))
    failures = []
    for step, *ids in ((find_by_text, first, second), (remove, first), (remove, second)):
        try:
            step(url, *ids)
        except Exception as error:  # also for an answer that is not JSON or lacks a field
            failures.append(f"{type(error).__name__}: {error}")
    return failures


if __name__ == "__main__":
    if failures := check(sys.argv[1].rstrip("/")):
        sys.exit(f"FAILED: {'; '.join(failures)}")
    print("two notes were added, found and deleted")
