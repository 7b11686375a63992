"""Adds two notes to a running service, finds one by the other, deletes both: `python check_service.py URL`. The key
in NOTELLM_API_KEY, if any, needs the scopes notes.read, notes.write and similar.

It runs in the pod of `helm test` and in deploy/smoke.sh, on the standard library alone. It ends with 0, or says what
the service answered.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
import uuid
from typing import Any

SECONDS = 60.0
"""Bound on one request: the deadline of the service itself."""
K = 5
"""Related notes to ask for. Nothing is closer to a note than one with the same text."""


def call(url: str, method: str, path: str, status: int, body: object = None) -> Any:
    """Send JSON and return the decoded answer, None for an empty one. AssertionError for another status."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("NOTELLM_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            answered, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        answered, text = error.code, error.read()
    assert answered == status, f"{method} {path} answered {answered} instead of {status}: {text.decode()}"
    return json.loads(text) if text else None


def check(url: str) -> None:
    """Raise AssertionError at the first answer that is not as it must be."""
    first, second = (f"check-{uuid.uuid4()}" for _ in range(2))
    text = {"title": "A note of the installation check", "content": "It was deleted as soon as it was found."}
    call(url, "POST", "/notes", 201, {"id": first, **text})
    position = call(url, "POST", "/notes", 201, {"id": second, **text})["log_position"]
    try:
        # Behind a balancer another replica may answer: it waits until it has followed the log to the second note.
        found = call(url, "GET", f"/notes/{first}/similar?k={K}&min_log_position={position}", 200)
        ids = [item["id"] for item in found["items"]]
        assert second in ids, f"the note of the same text was not found, but {ids}"
    finally:
        for note_id in (first, second):
            call(url, "DELETE", f"/notes/{note_id}", 200)
    call(url, "GET", f"/notes/{first}", 404)


if __name__ == "__main__":
    try:
        check(sys.argv[1].rstrip("/"))
    except (AssertionError, OSError) as error:
        sys.exit(f"FAILED: {error}")
    print("two notes were added, found and deleted")
