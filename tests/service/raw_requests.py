"""Seeded random HTTP requests as bytes, most of them invalid in some way. They are not generated from the schema."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

ENDPOINTS = (
    *((b"POST", "/notes"),) * 6,
    *((method, "/notes/{id}") for method in (b"GET", b"PUT", b"PUT", b"PATCH", b"PATCH", b"DELETE")),
    *((b"GET", "/notes/{id}/similar"),) * 3,
    *((b"POST", path) for path in ("/similar", "/generate", "/generate/hashtags", "/generate/category", "/verify")),
    (b"POST", "/generate/hashtags/stream"),
    *(
        (b"GET", path)
        for path in ("/livez", "/startupz", "/readyz", "/metrics", "/limits", "/docs", "/openapi.json", "/")
    ),
)
METHODS = (
    *(b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"PRI", b"get", b""),
    *(b"G\x00T", b"POST " * 3, b"M-SEARCH", b"X" * 99),
)
PATHS = (
    *("*", "http://elsewhere/notes", "//notes", "/notes/", "/notes/%00", "/notes/%ff%fe", "/notes/..%2f..", "/%", ""),
    *("/notes/" + "x" * 2000, "/notes/\u65c5", "/../../etc/passwd", "/docs/..%2fsecret", "?", "#", "/notes/a b"),
    *("/" * 500, "http://a", "http://a?x=1", "http://h:70000/x", "http://[::1]", "HTTP://"),
)
QUERIES = (
    *("k=5", "k=0", "k=-1", "k=1e9", "k=\u0661", "k=", "generate=hashtags", "generate=,,", "generate=all", "a=red"),
    *("min_score=nan", "hashtag=a&hashtag=b", "attribute=x", "exclude=" + "y" * 200, "created_after=never", "exact=2"),
    *("min_log_position=9-9", "min_log_position=" + "9" * 40, "repair=true", "repair=maybe", "&&&=", "%zz=%", "k=5;a"),
)
TYPES = (
    *("application/json", "application/x-ndjson", "application/json; charset=utf-16", "text/plain", "", "a/b/c"),
    *("application/problem+json", "multipart/form-data", "APPLICATION/JSON", "application/x-ndjson-not", "\x7f"),
)
HEADERS = (
    *(("X-Request-Timeout", value) for value in ("1", "0", "-1", "nan", "inf", "1e309", "x", "0.000001", "")),
    *(("X-Request-Priority", value) for value in ("bulk", "interactive", "urgent", "")),
    *(("If-Match", value) for value in ("*", '""', '"1-0"', "x", '"1-0",' * 40, 'W/"1-0"')),
    *(("If-None-Match", value) for value in ("*", '"1-0"', "1-0", "")),
    *(("Idempotency-Key", value) for value in ("a", "b", "", "x" * 300, "a b", "\x01")),
    *(("X-Request-Id", value) for value in ("ok", "\x1b[31m", "x" * 200, "")),
    *(("Connection", value) for value in ("close", "keep-alive", "upgrade", "x")),
    *(("Upgrade", value) for value in ("websocket", "h2c", "x")),
    *(("Expect", value) for value in ("100-continue", "200-ok")),
    *(("Content-Encoding", value) for value in ("gzip", "identity", "br, gzip")),
    *(("Accept", "text/event-stream"), ("Range", "bytes=0-1"), ("Cookie", "x" * 3000), ("Host", "evil.example")),
    *(("Bad Name", "x"), ("Bad\x00", "y"), ("", "z"), ("X-Long", "x" * 70_000), ("X-Fold", "a\r\n b"), ("X", "\xff")),
)
LENGTHS = (b"-1", b"+5", b"0x5", b"5, 5", b"5 6", b"", b"9" * 30, b"4294967296", b"1e3", b" 7", b"5\x00")
CHUNK_SIZES = (b"zz", b"-1", b"f" * 20, b"5;ext=" + b"x" * 5000, b"", b"0x5", b"5 ", b"+5")
WORDS = ("soup", "lemon", "\u65c5\u884c", "\U0001f35c", "e\u0301", "\u202e", "\x00", "\ufeff", "#tag", "a" * 300)
FIELDS = (
    *("title", "content", "hashtags", "category", "author", "created_at", "expires_at", "attributes", "k", "count"),
    *("policy", "blocked", "categories", "min_probability", "exclude", "min_score", "colour", "__class__", ""),
)
ODD_JSON = (
    *(b"", b"null", b"[]", b"[[]]", b"0", b'"x"', b"{", b"[1,", b"{}{}", b"NaN", b"[1e999]", b'{"title":', b"\xff\xfe"),
    *(b'{"title": "\xff"}', b'{"title": "\\ud800"}', b'{"title": "a", "title": 1}', b'\xef\xbb\xbf{"title": "bom"}'),
    *(b"[" * 50_000, b"[" * 300 + b"]" * 300, b'{"a":' * 5000, b'{"title": "' + b"x" * 300_000 + b'"}', b"9" * 100_000),
    *(b'{"title": "x"}\n' * 30, b"\n" * 1000, b'{"title":"x"}\n{"title":', b"[" + b"{}," * 400 + b"{}]", b"\x00" * 100),
    *('{"title": "wide"}'.encode("utf-16"), b"title=x&content=y", b"--x\r\n\r\n--x--", b"// note"),
)


@dataclass(frozen=True, slots=True)
class RawRequest:
    """Bytes of one or more requests. `parts`: sent one after the other. `complete`: whether answers must come without
    further bytes."""

    parts: tuple[bytes, ...]
    complete: bool


def raw_request(rng: random.Random) -> RawRequest:
    """Make one to three pipelined requests, some valid, most not."""
    requests = [_request(rng) for _ in range(rng.choice((1, 1, 1, 1, 2, 3)))]
    sent = b"".join(data for data, _ in requests)
    complete = all(complete for _, complete in requests)
    mutation = rng.random()
    if mutation < 0.08:
        sent, complete = sent[: rng.randrange(len(sent) + 1)], False
    elif mutation < 0.18:
        changed = bytearray(sent)
        for _ in range(rng.randint(1, 5)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        sent, complete = bytes(changed), False
    elif mutation < 0.2:
        sent, complete = rng.randbytes(rng.randint(1, 5000)), False
    cuts = sorted(rng.randrange(len(sent) + 1) for _ in range(rng.choice((0, 0, 0, 1, 3))))
    parts = tuple(sent[a:b] for a, b in pairwise((0, *cuts, len(sent))))
    return RawRequest(parts, complete)


def _request(rng: random.Random) -> tuple[bytes, bool]:
    """Return one request, and whether its framing is right, so that it must be answered."""
    odd = rng.random
    method, path = rng.choice(ENDPOINTS)
    if odd() < 0.05:
        method = rng.choice(METHODS)
    path = path.replace("{id}", f"fuzzed-{rng.randrange(30)}") if odd() < 0.95 else rng.choice(PATHS)
    query = "?" + "&".join(rng.choices(QUERIES, k=rng.randint(1, 3))) if odd() < 0.15 else ""
    version = b"HTTP/1.1" if odd() < 0.95 else rng.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"", b"ICY"))
    headers = [("Host", "notellm")] if odd() < 0.95 else []
    headers += rng.choices(HEADERS, k=rng.choice((0, 0, 0, 0, 1, 3)))
    if odd() < 0.95:
        kind = "application/json" if odd() < 0.8 else rng.choice(TYPES)
        headers.append(("Content-Type", kind))
    lines = [b"%s %s %s" % (method, (path + query).encode(), version)]
    lines += [f"{name}: {value}".encode("latin-1", "replace") for name, value in headers]
    body = b"" if method in (b"GET", b"DELETE") and odd() < 0.9 else _body(rng)
    framing, body, complete = _frame(rng, body)
    return b"\r\n".join((*lines, *framing, b"", body)), complete


def _frame(rng: random.Random, body: bytes) -> tuple[list[bytes], bytes, bool]:
    """Return the headers of the framing, the body as it is sent, and whether both are right."""
    kind = rng.random()
    if kind < 0.75:
        return [b"Content-Length: %d" % len(body)], body, True
    if kind < 0.88:
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:100], body[100:]) if part)
        return [b"Transfer-Encoding: chunked"], chunks + b"0\r\n\r\n", True
    wrong = rng.choice(("length", "size", "both", "none", "coding", "short", "twice"))
    length = b"Content-Length: %d" % len(body)
    if wrong == "length":
        return [b"Content-Length: " + rng.choice(LENGTHS)], body, False
    if wrong == "size":
        return [b"Transfer-Encoding: chunked"], rng.choice(CHUNK_SIZES) + b"\r\n" + body, False
    if wrong == "both":
        return [length, b"Transfer-Encoding: chunked"], body, False
    if wrong == "coding":
        return [b"Transfer-Encoding: " + rng.choice((b"gzip", b"xchunked", b"chunked, chunked", b""))], body, False
    if wrong == "short":
        return [b"Content-Length: %d" % (len(body) + 1 + rng.randrange(100))], body, False
    return ([length, b"Content-Length: 3"] if wrong == "twice" else []), body, False


def _body(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(ODD_JSON)
    notes = [_note(rng) for _ in range(rng.choice((1, 1, 1, 3)))]
    if kind < 0.5:
        return b"\n".join(map(_encoded, notes))
    return _encoded(notes if kind < 0.65 else notes[0])


def _note(rng: random.Random) -> dict[str, Any]:
    note: dict[str, Any] = {"id": f"fuzzed-{rng.randrange(30)}"}  # few, so that the store stays small
    if rng.random() < 0.6:
        note["title"] = " ".join(rng.choices(WORDS, k=rng.randint(1, 8)))
    for field in rng.sample(FIELDS, rng.choice((0, 0, 1, 3))):
        note[field] = _value(rng)
    return note


def _value(rng: random.Random) -> Any:
    scalars = (None, True, 0, -1, 2**63, 2**200, 1e300, 0.5, "", "x", "2030-01-01T00:00:00Z", "x" * 2000, [], {})
    kind = rng.random()
    if kind < 0.7:
        return rng.choice(scalars)
    if kind < 0.85:
        return rng.choices((*scalars, *WORDS), k=rng.randint(1, 40))
    return dict(zip(rng.choices(WORDS, k=5), rng.choices(scalars, k=5), strict=True))


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode()
