"""Filling and searching an index, with recall and times; for the benchmarks of the index, with or without a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt

from benchmarks.harness.inputs import Vectors
from model.note import Note
from service.filters import Filter
from service.index.backend import Maintainable
from service.index.native import swig
from service.index.segmented import SegmentedIndex
from service.records import Hit, StoredNote

RowIds = npt.NDArray[np.int64]
Search = Callable[[Vectors], object]
"""A search for one query (D,)."""
K = 10
"""Neighbours that a search returns."""
SHARES = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""Shares of the rows that a filter lets pass."""
ROUNDS = 3
"""Rounds of measurement; in each, the compared searches run one after the other."""
UPSERT_BATCH_SIZE = 1024
ANY = Filter()


def stored_note(number: int, vector: Vectors, prefix: str = "n") -> StoredNote:
    """Return a note with one hashtag for each of SHARES that its number falls into."""
    tags = tuple(f"share {share}" for share in SHARES if number % round(1 / share) == 0)
    return StoredNote(Note(id=f"{prefix}{number}", hashtags=tags, category=f"c{number % 30}"), "space", vector)


def run_jobs(index: Maintainable) -> None:
    """Run the index's seal and merge jobs until none is left."""
    while job := index.plan():
        job.run()
        index.finish(job)


def fill(index: SegmentedIndex, vectors: Vectors) -> float:
    """Add rows n0, n1, ... and return rows a second, sealing and merging included."""
    started = time.perf_counter()
    upsert(index, range(len(vectors)), vectors)
    return len(vectors) / (time.perf_counter() - started)


def upsert(index: SegmentedIndex, numbers: Sequence[int], vectors: Vectors) -> None:
    """Add row n`i` with vector `vectors[i]` for each of `numbers`, in batches, and run the jobs between them."""
    for begin in range(0, len(numbers), UPSERT_BATCH_SIZE):
        index.upsert([stored_note(number, vectors[number]) for number in numbers[begin : begin + UPSERT_BATCH_SIZE]])
        run_jobs(index)


def search_index(index: SegmentedIndex, query: Vectors, where: Filter = ANY) -> list[Hit]:
    """Search for the K nearest rows as the service does."""
    return index.search(query, K, where, 0.0)


def measure_recall(
    index: SegmentedIndex, vectors: Vectors, ids: RowIds, queries: Vectors, where: Filter = ANY
) -> float:
    """Return recall@K: the share of the exact nearest of `vectors` that the index finds. `vectors[i]` is the vector of
    row n`ids[i]`."""
    _, exact_rows = swig.knn(queries, vectors, K, metric=swig.METRIC_INNER_PRODUCT)
    right = 0
    for query, nearest in zip(queries, exact_rows, strict=True):
        hits = {hit.id for hit in search_index(index, query, where)}
        right += len(hits.intersection(f"n{ids[i]}" for i in nearest if i >= 0))
    return right / max(1, int(np.count_nonzero(exact_rows >= 0)))


def latencies(search: Search, queries: Vectors) -> list[float]:
    """Return the seconds that the search for each query takes."""
    seconds = []
    for query in queries:
        started = time.perf_counter()
        search(query)
        seconds.append(time.perf_counter() - started)
    return seconds


def take_turns(searches: Sequence[Search], queries: Vectors) -> list[list[float]]:
    """Return the seconds of each search. The searches run in turns, so that other load on the machine affects them
    alike."""
    seconds: list[list[float]] = [[] for _ in searches]
    for _ in range(ROUNDS):
        for search, measured in zip(searches, seconds, strict=True):
            measured += latencies(search, queries)
    return seconds


def measure_rates(ours: Search, bare: Search, queries: Vectors, threads: int) -> tuple[float, float]:
    """Return the searches per second on `threads` threads, of `ours` and of `bare`, measured in turns."""
    seconds = {ours: 0.0, bare: 0.0}
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            for search in seconds:
                started = time.perf_counter()
                list(pool.map(partial(latencies, search), [queries] * threads))
                seconds[search] += time.perf_counter() - started
    searches = ROUNDS * threads * len(queries)
    return searches / seconds[ours], searches / seconds[bare]
