"""Requests with raw bodies that the tests of the API share."""

from __future__ import annotations

import httpx2

NOTE = b'{"title": "a note"}'
NDJSON = "application/x-ndjson"
WITH_BODY = [
    ("POST", "/notes"),
    ("PUT", "/notes/typed"),
    ("PATCH", "/notes/typed"),
    ("POST", "/similar"),
    ("POST", "/generate"),
    ("POST", "/generate/hashtags"),
    ("POST", "/generate/hashtags/stream"),
    ("POST", "/generate/category"),
    ("POST", "/v1/embeddings"),
]
DEPTHS = (250, 300, 1000)
NO_JSON = (b'{"title": "x\\ud83d"}', b'{"title": "\xff"}', b'{"title": "\x01"}', b"NaN")
"""Items that cannot be decoded but whose ends are certain, such as one with an emoji that JavaScript cut in two."""
UNCERTAIN_LISTS = (
    b'[{"title":"A"},{"title":"5" nails"},{"title":"C"},{"title":"7" nails"},{"title":"E"}]',
    b'[{"title":"A"} {"title":"B"},{"title":"C"}]',
    b'[{"title":"A"},{"hashtags":["B"},{"hashtags":"C"]},{"title":"D"}]',
    b'[{"title":"A"},{"title":bad}]',
)
"""Lists whose items cannot be told apart: quotation marks, a comma or brackets are missing or too many."""


def send(
    client: httpx2.Client, method: str, path: str, body: bytes, kind: str | None, **headers: str
) -> httpx2.Response:
    typed = {} if kind is None else {"content-type": kind}
    return client.request(method, path, content=body, headers=typed | headers)


def nested(depth: int) -> bytes:
    """Return a note with an unknown field of `depth` nested lists."""
    return b'{"id": "deep", "title": "deep", "colour": %s}' % (b"[" * depth + b"]" * depth)
