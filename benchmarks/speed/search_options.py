"""Related notes with several examples, diversity, caps, a filter, words and pages, against the plain request.

python -m benchmarks.speed.search_options DATA/microlens50k/notes.jsonl.gz [--rows ROWS] [--folder FOLDER [--fill]]

Over HTTP, one connection, to the same notes as in benchmarks.speed.similar: a million unless said; 20,000 take two
minutes. FOLDER is kept: with `--fill` the notes that it lacks are written into it, and a snapshot of the index;
without, they are measured as they are.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from benchmarks.harness import http_load
from benchmarks.harness.report import Row, row, write
from benchmarks.harness.service_process import ServiceProcess
from benchmarks.harness.statistics import percentile, percentiles_text
from benchmarks.speed.similar import AUTHORS, DEFAULT_ROWS, author, fill, run
from benchmarks.speed.tenants import processor_seconds
from service.store.embedded_redis import EmbeddedRedis

REQUESTS = 1000
"""Requests of each kind, sent on one connection. Kinds take turns in random order, so that other load on the machine
slows all alike, and no kind always finds the caches as the same other kind left them."""
POSITIVES = 20
MAX_MANY_RATIO = 4.0
"""Target: p99 of a search by POSITIVES notes, as a multiple of that by one note."""
MAX_OPTION_MS = 1.0
"""Target: milliseconds that diversity and caps add to the median of a plain search."""
OPTIONS = {"diversity": 0.3, "max_per_author": 1, "max_per_category": 5}
MAX_WORDS_RATIO = 3.0
"""Target: p99 of a search by vectors and words, as a multiple of that by vectors."""
WORDS_TOO = {"content": 1, "words": 0.5}
FILTERED_AUTHORS = 10
"""Authors that the filter accepts, one in a hundred: the notes belong to AUTHORS authors in turn."""
MAX_FILTERED_RATIO = 3.0
"""Target: p99 of a search with that filter, as a multiple of that without."""
IDLE_SECONDS, MAX_IDLE_SHARE = 3.0, 0.1
"""A service counts as idle once it takes less than MAX_IDLE_SHARE of a core for IDLE_SECONDS."""
PLAIN, BODY, MANY, BEST, RANKED, FILTERED, WORDS, PAGE = range(8)
NAMES = (
    "one note, GET",
    "one note, POST",
    f"{POSITIVES} positive notes",
    f"{POSITIVES} positive notes, strategy best_score",
    "one note, diversity and caps",
    f"one note, filter matching {FILTERED_AUTHORS / AUTHORS:.0%} of the notes",
    "one note, sources content and words",
    "one note, second page",
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

    def some_authors() -> list[str]:
        return [author(number) for number in rng.sample(range(AUTHORS), FILTERED_AUTHORS)]

    def many(**options: Any) -> bytes:
        positive = [{"note_id": one()} for _ in range(POSITIVES)]
        return post("/similar", {"positive": positive, "k": 10, **options})

    return [
        lambda: f"GET /notes/{one()}/similar?k=10 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(),
        lambda: post(f"/notes/{one()}/similar", {"k": 10}),
        many,
        lambda: many(strategy="best_score"),
        lambda: post(f"/notes/{one()}/similar", {"k": 10, **OPTIONS}),
        lambda: post(f"/notes/{one()}/similar", {"k": 10, "filter": {"author": some_authors()}}),
        lambda: post(f"/notes/{one()}/similar", {"k": 10, "sources": WORDS_TOO}),
    ]


async def measure_requests(port: int, count: int) -> list[list[float]]:
    """Return the seconds of each request, by kind, without the first tenth, which warms up."""
    makers = request_makers(count)
    (connection,) = await http_load.connect(port, 1)
    seconds: list[list[float]] = [[] for _ in NAMES]

    async def timed(kind: int, request: bytes) -> bytes:
        started = time.perf_counter()
        answer = await connection.send(request)
        seconds[kind].append(time.perf_counter() - started)
        return answer

    turns, rng = list(enumerate(makers)), random.Random(4)
    for number in range(REQUESTS):
        rng.shuffle(turns)
        for kind, make in turns:
            await timed(kind, make())
        path, body = f"/notes/n{number % count}/similar", {"k": 10, "cursor": "*"}
        first = orjson.loads(await connection.send(post(path, body)))
        await timed(PAGE, post(path, body | {"cursor": first["next_cursor"]}))
    warm = REQUESTS // 10
    return [kind[warm:] for kind in seconds]


def wait_until_idle(service: ServiceProcess) -> None:
    """Wait until a service is idle: after many writes it merges segments of the index for a minute."""
    used = processor_seconds(service.pid)
    while True:
        time.sleep(IDLE_SECONDS)
        before, used = used, processor_seconds(service.pid)
        if used - before < MAX_IDLE_SHARE * IDLE_SECONDS:
            return


@contextmanager
def served(folder: Path, notes: Path | None, count: int) -> Iterator[int]:
    """Run a service on the store in a folder; yield its port. `notes`: the file from which `count` notes are written to
    the store first; None if the store has them."""
    service, store = ServiceProcess(folder), EmbeddedRedis(folder / "data")
    service.environment["NOTELLM_LOG_SAMPLE"] = "0"
    try:
        store.start()
        if notes is not None:
            run(fill(store.url, notes, count))
        service.start()
        wait_until_idle(service)
        yield service.port
    finally:
        service.stop()
        store.stop()


def measure(folder: Path, notes: Path | None, count: int) -> list[list[float]]:
    """Measure a service on the store in a folder, with the arguments of `served`."""
    with served(folder, notes, count) as port:
        return run(measure_requests(port, count))


def rows(seconds: Sequence[Sequence[float]]) -> list[Row]:
    """Return the rows of the result."""
    p99 = [percentile(kind, 99) for kind in seconds]
    p50 = [percentile(kind, 50) for kind in seconds]
    ratio, added = p99[MANY] / p99[BODY], 1000 * (p50[RANKED] - p50[BODY])
    with_words, filtered = p99[WORDS] / p99[BODY], p99[FILTERED] / p99[BODY]
    plain, results = NAMES[BODY], []
    for kind, name in enumerate(NAMES):
        against, target, met = "", "", None
        if kind == MANY:
            against, target = f"{plain}: p99 ratio {ratio:.1f}x", f"≤ {MAX_MANY_RATIO:g}x"
            met = ratio <= MAX_MANY_RATIO
        elif kind == RANKED:
            against, target = f"{plain}: p50 difference {added:.2f} ms", f"≤ {MAX_OPTION_MS:g} ms"
            met = added <= MAX_OPTION_MS
        elif kind == FILTERED:
            against, target = f"{plain}: p99 ratio {filtered:.1f}x", f"≤ {MAX_FILTERED_RATIO:g}x"
            met = filtered <= MAX_FILTERED_RATIO
        elif kind == WORDS:
            against, target = f"{plain}: p99 ratio {with_words:.1f}x", f"≤ {MAX_WORDS_RATIO:g}x"
            met = with_words <= MAX_WORDS_RATIO
        what = f"latency, {name}, p50 / p95 / p99"
        results.append(row(what, percentiles_text(seconds[kind], 2), "ms", against=against, target=target, met=met))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notes", type=Path)
    parser.add_argument("--rows", type=int, default=DEFAULT_ROWS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--fill", action="store_true")
    arguments = parser.parse_args()
    notes, count, folder = arguments.notes, arguments.rows, arguments.folder
    if arguments.fill and folder is None:
        parser.error("--fill needs a --folder")
    if arguments.fill:
        with served(folder, notes, count):
            return  # the service saves its snapshot when it stops
    if folder is not None:
        seconds = measure(folder, None, count)
    else:
        with tempfile.TemporaryDirectory(prefix="nl-") as made:
            seconds = measure(Path(made), notes, count)
    write(f"search_options_{count}", rows(seconds))


if __name__ == "__main__":
    main()
