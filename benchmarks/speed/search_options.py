"""Related notes with several examples, diversity, caps, words and pages, against the plain request, over HTTP.

python -m benchmarks.speed.search_options DATA/microlens50k/notes.jsonl.gz [ROWS]

The same notes as in benchmarks.speed.similar, a million ROWS unless said; 20,000 take two minutes.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from benchmarks.harness import http_load
from benchmarks.harness.report import Row, row, write
from benchmarks.harness.service_process import ServiceProcess
from benchmarks.harness.statistics import percentile, percentiles_text
from benchmarks.speed.similar import DEFAULT_ROWS, fill, run
from service.store.embedded_redis import EmbeddedRedis

REQUESTS = 1000
"""Requests of each kind, sent on one connection. Kinds take turns, so that other work slows all alike."""
POSITIVES = 20
MAX_MANY_RATIO = 4.0
"""Target: p99 of a search of POSITIVES to that of one note."""
MAX_OPTION_MS = 1.0
"""Target: what diversity and caps add to the median of a plain search, in milliseconds."""
OPTIONS = {"diversity": 0.3, "max_per_author": 1, "max_per_category": 5}
MAX_WORDS_RATIO = 3.0
"""Target: p99 of a search by vectors and words to that by vectors."""
WORDS_TOO = {"content": 1, "words": 0.5}
PLAIN, BODY, MANY, BEST, RANKED, WORDS, PAGE = range(7)
NAMES = (
    "one note, GET",
    "one note, POST",
    f"{POSITIVES} positive notes",
    f"{POSITIVES} positive notes, best_score",
    "one note, diversity and caps",
    "one note, vectors and words",
    "one note, the second page of a list",
)


def post(path: str, body: Mapping[str, Any]) -> bytes:
    content = orjson.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def request_makers(count: int) -> list[Callable[[], bytes]]:
    """Return, for each of NAMES but the last, a function that makes a request about random notes."""
    rng = random.Random(3)

    def one() -> str:
        return f"n{rng.randrange(count)}"

    def many(**options: Any) -> bytes:
        positive = [{"note_id": one()} for _ in range(POSITIVES)]
        return post("/similar", {"positive": positive, "k": 10, **options})

    return [
        lambda: f"GET /notes/{one()}/similar?k=10 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(),
        lambda: post(f"/notes/{one()}/similar", {"k": 10}),
        many,
        lambda: many(strategy="best_score"),
        lambda: post(f"/notes/{one()}/similar", {"k": 10, **OPTIONS}),
        lambda: post(f"/notes/{one()}/similar", {"k": 10, "sources": WORDS_TOO}),
    ]


async def measure_requests(port: int, count: int) -> list[list[float]]:
    """Seconds of each request, by its kind."""
    makers = request_makers(count)
    (connection,) = await http_load.connect(port, 1)
    seconds: list[list[float]] = [[] for _ in NAMES]

    async def timed(kind: int, request: bytes) -> bytes:
        started = time.perf_counter()
        answer = await connection.send(request)
        seconds[kind].append(time.perf_counter() - started)
        return answer

    for number in range(REQUESTS):
        for kind, make in enumerate(makers):
            await timed(kind, make())
        path, body = f"/notes/n{number % count}/similar", {"k": 10, "cursor": "*"}
        first = orjson.loads(await connection.send(post(path, body)))
        await timed(PAGE, post(path, body | {"cursor": first["next_cursor"]}))
    warm = REQUESTS // 10
    return [kind[warm:] for kind in seconds]


def measure(notes: Path, count: int) -> list[list[float]]:
    """Fill a store with `count` notes, start a service on it and measure that."""
    with tempfile.TemporaryDirectory(prefix="nl-") as folder:
        service = ServiceProcess(Path(folder))
        service.environment["NOTELLM_LOG_SAMPLE"] = "0"
        store = EmbeddedRedis(Path(folder) / "data")
        try:
            store.start()
            run(fill(store.url, notes, count))
            service.start()
            return run(measure_requests(service.port, count))
        finally:
            service.stop()
            store.stop()


def rows(seconds: Sequence[Sequence[float]]) -> list[Row]:
    """Return the rows of the result."""
    p99 = [percentile(kind, 99) for kind in seconds]
    p50 = [percentile(kind, 50) for kind in seconds]
    ratio, added = p99[MANY] / p99[BODY], 1000 * (p50[RANKED] - p50[BODY])
    with_words = p99[WORDS] / p99[BODY]
    results = []
    for kind, name in enumerate(NAMES):
        against, target, met = "", "", None
        if kind == MANY:
            against, target = f"one note by POST: p99 is {ratio:.1f}x", f"{MAX_MANY_RATIO:g}x or less"
            met = ratio <= MAX_MANY_RATIO
        elif kind == RANKED:
            against, target = f"one note by POST: {added:.2f} ms more at p50", f"{MAX_OPTION_MS:g} ms more or less"
            met = added <= MAX_OPTION_MS
        elif kind == WORDS:
            against, target = f"one note by POST: p99 is {with_words:.1f}x", f"{MAX_WORDS_RATIO:g}x or less"
            met = with_words <= MAX_WORDS_RATIO
        what = f"{name}, p50 / p95 / p99"
        results.append(row(what, percentiles_text(seconds[kind], 2), "ms", against=against, target=target, met=met))
    return results


if __name__ == "__main__":
    count = int(sys.argv[2]) if len(sys.argv) > 2 else DEFAULT_ROWS
    write(f"search_options_{count}", rows(measure(Path(sys.argv[1]), count)))
