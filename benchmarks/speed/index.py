"""The index at size, against FAISS alone (IVF-Flat) on the same segments and against brute force.

python -m benchmarks.speed.index DATA/microlens50k/notes.jsonl.gz [ROWS]

The rows are vectors of real notes, projected on their principal directions and copied with noise up to ROWS (100,000 by
default). Takes three minutes for 100,000 rows on an idle machine. MILVUS_PYTHON names an interpreter that has
milvus-lite and pymilvus, to measure Milvus Lite too: a minute more (benchmarks/peers/milvus.py).
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks import ROOT
from benchmarks.harness.index_rates import (
    SHARES,
    UPSERT_BATCH_SIZE,
    K,
    Search,
    fill,
    latencies,
    measure_rates,
    measure_recall,
    run_jobs,
    search_index,
    stored_note,
    take_turns,
    upsert,
)
from benchmarks.harness.inputs import DIMENSION, Vectors, base_vectors, noisy_copies
from benchmarks.harness.report import write
from benchmarks.harness.service_process import resident_mib
from benchmarks.speed.index_report import (
    WRITES_PER_SECOND,
    ChurnFigures,
    Figures,
    FilterFigures,
    PeerFigures,
    SnapshotFigures,
    rows,
)
from model.data.dataset import read_notes
from model.hashtags.lexical_index import InvertedLexicalIndex
from model.inference.engine import Engine
from service.filters import Filter
from service.index.building import LISTS_PER_ROOT
from service.index.native import swig, trim_heap
from service.index.other_space import OtherSpaceNotes
from service.index.segmented import MergeJob, SegmentedIndex
from service.index.snapshot_files import SnapshotFolder, SnapshotOrigin
from service.index.snapshot_keeper import restore, snapshot_parts
from service.index.texts import LiveTexts
from service.records import StoredNote
from service.settings import Settings

T = TypeVar("T")

DEFAULT_ROWS = 100_000
QUERIES = 500
THREADS = (1, 2)
WRITTEN_ROWS = 1000
CHECKED_QUERIES = 50
"""Filtered queries whose number of results is checked."""
PEER_ROWS = 100_000
PEER_LISTS = int(LISTS_PER_ROOT * PEER_ROWS**0.5)
"""Inverted lists of the peer's collection: as many as a segment with the same number of rows has."""
MAX_CHURNED_ROWS = 100_000


def measure(notes: Path, count: int) -> Figures:
    """Measure an index of `count` rows; the peer only with MILVUS_PYTHON."""
    bases = base_vectors(Engine.load(cache=Settings().cache_dir), read_notes(notes).values())
    vectors, queries = noisy_copies(bases, count, 1), noisy_copies(bases, QUERIES, 2)
    gc.freeze()  # as the service does once its modules are loaded
    before = heap_mib()
    index = SegmentedIndex(DIMENSION)
    fill_rate = fill(index, vectors)
    mib = heap_mib() - before
    segments = index.segments
    recall = measure_recall(index, vectors, np.arange(count), queries)
    ours, bare = partial(search_index, index), partial(bare_search, index)
    rates = {threads: measure_rates(ours, bare, queries, threads) for threads in THREADS}
    idle, bare_idle = take_turns([ours, bare], queries)
    writing = search_beside(write_rows(index, noisy_copies(bases, WRITTEN_ROWS, 3)), ours, queries)
    index.remove([f"w{number}" for number in range(WRITTEN_ROWS)])
    job = MergeJob.of(index.all_segments[:-1], DIMENSION)
    merging = search_beside(run_job(job), ours, queries)
    del job  # it holds the memory of the merged segment
    trim_heap()
    filters = [measure_filter(index, vectors, queries, share) for share in SHARES]
    peer = measure_peer(vectors, queries)
    snapshot = measure_snapshot(index, notes, count)
    del ours, bare, index
    churn = measure_churn(bases, min(count, MAX_CHURNED_ROWS), queries)
    return Figures(
        count, fill_rate, segments, recall, rates, idle, bare_idle, writing, merging, filters,
        mib, vectors.nbytes / 2**20, peer, snapshot, churn,
    )  # fmt: skip


def bare_search(index: SegmentedIndex, query: Vectors) -> None:
    """Search every segment's FAISS index, probing as many lists as its recall needs, without codes, masks, ids or a
    merged result."""
    for segment in index.all_segments:
        segment.faiss_index(K).search(query[None], K)


def search_beside(work: Iterator[None], search: Search, queries: Vectors) -> list[float]:
    """Return the seconds of searches while another thread iterates over `work`, until that is done or 20 rounds of
    queries were searched."""
    done = threading.Event()

    def run() -> None:
        for _ in work:
            if done.is_set():
                break
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    seconds: list[float] = []
    while not done.is_set() and len(seconds) < 20 * len(queries):
        seconds += latencies(search, queries)
    done.set()
    thread.join()
    return seconds


def write_rows(index: SegmentedIndex, vectors: Vectors) -> Iterator[None]:
    """Add new rows one by one, WRITES_PER_SECOND per second."""
    started = time.perf_counter()
    for number, vector in enumerate(vectors):
        time.sleep(max(0.0, started + number / WRITES_PER_SECOND - time.perf_counter()))
        index.upsert([stored_note(number, vector, "w")])
        yield


def run_job(job: MergeJob) -> Iterator[None]:
    """Run a job as one piece of work."""
    job.run()
    yield


def measure_filter(index: SegmentedIndex, vectors: Vectors, queries: Vectors, share: float) -> FilterFigures:
    """Search with a hashtag that `share` of the rows have."""
    where = Filter(hashtags=(f"share {share}",))
    ids = np.arange(0, len(vectors), round(1 / share))
    full = all(len(search_index(index, q, where)) == min(K, len(ids)) for q in queries[:CHECKED_QUERIES])
    seconds, unfiltered = take_turns([partial(search_index, index, where=where), partial(search_index, index)], queries)
    return FilterFigures(share, measure_recall(index, vectors[ids], ids, queries, where), full, seconds, unfiltered)


def measure_peer(vectors: Vectors, queries: Vectors) -> PeerFigures | None:
    """Search PEER_ROWS rows with our index and with Milvus Lite; None without MILVUS_PYTHON."""
    if not (python := os.environ.get("MILVUS_PYTHON")):
        return None
    subset = vectors[:PEER_ROWS]
    index = SegmentedIndex(DIMENSION)
    fill(index, subset)
    recall = measure_recall(index, subset, np.arange(len(subset)), queries)
    _, exact_rows = swig.knn(queries, subset, K, metric=swig.METRIC_INNER_PRODUCT)
    with tempfile.TemporaryDirectory() as folder:
        for name, array in {"vectors": subset, "queries": queries, "exact_rows": exact_rows}.items():
            np.save(Path(folder) / f"{name}.npy", array)
        request = json.dumps({"folder": folder, "k": K, "lists": PEER_LISTS})
        script = ROOT / "benchmarks" / "peers" / "milvus.py"
        answer = subprocess.run([python, script], input=request, capture_output=True, text=True, check=True)
    searches = json.loads(answer.stdout)["searches"]
    peer = next((search for search in searches if search["recall"] >= recall), searches[-1])
    seconds = latencies(partial(search_index, index), queries)
    return PeerFigures(len(subset), recall, seconds, peer["recall"], peer["seconds"])


def measure_snapshot(index: SegmentedIndex, notes: Path, count: int) -> SnapshotFigures:
    """Save a snapshot of the index and of the words and hashtags of as many real notes, and start from it."""
    real = list(read_notes(notes).values())
    engine = Engine.load(cache=Settings().cache_dir)
    hashtags, empty = (LiveTexts(engine.vocabulary(), InvertedLexicalIndex()) for _ in range(2))
    for begin in range(0, count, UPSERT_BATCH_SIZE):
        numbers = range(begin, min(count, begin + UPSERT_BATCH_SIZE))
        hashtags.upsert([StoredNote(replace(real[n % len(real)], id=f"n{n}"), "space") for n in numbers])
        run_jobs(hashtags)
    with tempfile.TemporaryDirectory() as name, closing(SnapshotFolder(Path(name))) as folder:
        origin = SnapshotOrigin("store", "space")
        parts, freeze = timed(partial(snapshot_parts, index, hashtags, OtherSpaceNotes(), ()))
        _, first = timed(partial(folder.save, origin, "1-0", parts))
        _, second = timed(partial(folder.save, origin, "2-0", snapshot_parts(index, hashtags, OtherSpaceNotes(), ())))
        files = list(Path(name).glob("*.npz"))
        mib = sum(path.stat().st_size for path in files) / 2**20
        drop_from_page_cache(files)
        _, read = timed(lambda: [path.read_bytes() for path in files])
        drop_from_page_cache(files)
        _, start = timed(partial(load_snapshot, folder, origin, SegmentedIndex(DIMENSION), empty))
    return SnapshotFigures(freeze, first, second, mib, read, start)


def load_snapshot(folder: SnapshotFolder, origin: SnapshotOrigin, index: SegmentedIndex, texts: LiveTexts) -> None:
    """Fill an empty index and an empty word index from the newest snapshot."""
    snapshot = folder.load(origin)
    assert snapshot is not None
    restore(snapshot.read, index, texts)


def drop_from_page_cache(files: Sequence[Path]) -> None:
    """Make the system read these files from disk the next time."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return the result of a call and its seconds."""
    started = time.perf_counter()
    return call(), time.perf_counter() - started


def measure_churn(bases: Vectors, count: int, queries: Vectors) -> ChurnFigures:
    """Measure an index whose rows were all replaced three times and then half removed, against a fresh index of the
    remaining rows."""
    vectors, living = noisy_copies(bases, count, 7), range(0, count, 2)

    def churn(index: SegmentedIndex) -> None:
        for seed in (4, 5, 6):
            fill(index, noisy_copies(bases, count, seed))
        fill(index, vectors)
        index.remove([f"n{number}" for number in range(1, count, 2)])
        run_jobs(index)

    fresh, fresh_mib = build_and_weigh(lambda index: upsert(index, living, vectors))
    index, mib = build_and_weigh(churn)
    ids = np.array(living)
    recall, fresh_recall = (measure_recall(each, vectors[ids], ids, queries) for each in (index, fresh))
    seconds, fresh_seconds = take_turns([partial(search_index, index), partial(search_index, fresh)], queries)
    return ChurnFigures(
        count, len(index), index.tombstones, recall, fresh_recall, seconds, fresh_seconds, mib, fresh_mib
    )


def build_and_weigh(build: Callable[[SegmentedIndex], None]) -> tuple[SegmentedIndex, float]:
    """Build an index and return it with the MiB that it takes."""
    before = heap_mib()
    index = SegmentedIndex(DIMENSION)
    build(index)
    return index, heap_mib() - before


def heap_mib() -> float:
    """Resident MiB of this process once unused memory has gone back to the system."""
    gc.collect()
    trim_heap()
    return resident_mib(os.getpid())


if __name__ == "__main__":
    count = int(sys.argv[2]) if len(sys.argv) > 2 else DEFAULT_ROWS
    write(f"index_{count}", rows(measure(Path(sys.argv[1]), count)))
