"""The index at size, against the bare FAISS calls on the same segments and against brute force.

.venv/bin/python benchmarks/speed/index.py DATA/microlens50k/notes.jsonl.gz [ROWS]

Vectors of real notes, cut to their 128 principal directions and enlarged with noise to ROWS (100,000). Two minutes for
100,000 rows, five for a million; nothing else should run. MILVUS_PYTHON names an interpreter that has milvus-lite and
pymilvus, if Milvus Lite is to be measured too, with PEER_ROWS: a minute more (benchmarks/peers/milvus.py).
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.harness.report import ROOT, row, write
from benchmarks.harness.service_process import resident_mib
from benchmarks.speed.ingest_and_query import percentile
from model.data.dataset import read_notes
from model.hashtags.lexical_index import InvertedLexicalIndex
from model.inference.engine import Engine
from model.note import Note
from service.filters import Filter
from service.index.building import LISTS_PER_ROOT
from service.index.growing import GrowingSegment
from service.index.hashtags import LiveHashtags
from service.index.native import exact_search, swig, trim_heap
from service.index.sealed import SealedSegment
from service.index.segmented import MergeJob, SegmentedIndex
from service.index.snapshots import Origin, SnapshotFolder, restore, snapshot_parts
from service.records import Hit, StoredNote
from service.settings import Settings

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]
DIMENSION = 128
BASES = 2000
"""Real notes, of which the rest is made."""
NOISE = 0.6
"""Length of what is added to a vector of length 1: such a row has a cosine of 0.86 to its base."""
QUERIES = 500
K = 10
SHARES = (1.0, 0.1, 0.01, 0.001, 0.0001)
ROUNDS = 3
BATCH = 1024
ANY = Filter()
PEER_ROWS = 100_000
PEER_LISTS = int(LISTS_PER_ROOT * PEER_ROWS**0.5)
"""What a peer gets: as many lists as we would make of so many rows in one segment."""


def base_vectors(path: Path) -> Vectors:
    """(BASES, DIMENSION) of unit length."""
    notes = list(read_notes(path).values())[:BASES]
    vectors = Engine.load(cache=Settings().cache_dir).embed(notes)
    centred = vectors - vectors.mean(0)
    principal = np.linalg.svd(centred, full_matrices=False)[2][:DIMENSION]
    return unit(centred @ principal.T)


def unit(vectors: npt.NDArray[np.floating[Any]]) -> Vectors:
    normalised: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return normalised


def enlarged(bases: Vectors, rows: int, seed: int) -> Vectors:
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((rows, DIMENSION), np.float32)
    return unit(bases[rng.integers(len(bases), size=rows)] + NOISE * unit(noise))


def stored(number: int, vector: Vectors, name: str = "n") -> StoredNote:
    tags = tuple(f"share {share}" for share in SHARES if number % round(1 / share) == 0)
    return StoredNote(Note(id=f"{name}{number}", hashtags=tags, category=f"c{number % 30}"), "space", vector)


def do_jobs(index: SegmentedIndex) -> None:
    while job := index.plan():
        job.run()
        index.finish(job)


def fill(index: SegmentedIndex, vectors: Vectors) -> float:
    """Rows a second, sealing and merging included."""
    started = time.perf_counter()
    for begin in range(0, len(vectors), BATCH):
        index.upsert([stored(begin + i, vector) for i, vector in enumerate(vectors[begin : begin + BATCH])])
        do_jobs(index)
    return len(vectors) / (time.perf_counter() - started)


def recall(
    index: SegmentedIndex, vectors: Vectors, ids: npt.NDArray[np.int64], queries: Vectors, where: Filter
) -> float:
    """Of the K nearest of `vectors`, whose numbers are `ids`, the share that is found."""
    _, best = swig.knn(queries, vectors, K, metric=swig.METRIC_INNER_PRODUCT)
    found = 0
    for query, rows in zip(queries, best, strict=True):
        hits = {hit.id for hit in index.search(query, K, where, 0.0)}
        found += len(hits.intersection(f"n{ids[r]}" for r in rows if r >= 0))
    return found / max(1, int(np.count_nonzero(best >= 0)))


def bare(index: SegmentedIndex, query: Vectors) -> None:
    """The same comparisons without masks, ids and merging."""
    for segment in index._segments:
        if isinstance(segment, SealedSegment) and segment._lists_by_k:
            options = swig.SearchParametersIVF(nprobe=segment._lists_by_k[K])
            segment._index.search(query[None], K, params=options)
        elif isinstance(segment, SealedSegment):
            segment._index.search(query[None], K)
        elif isinstance(segment, GrowingSegment):
            exact_search(segment._vectors[: len(segment)], query, K)


def seconds_each(search: Callable[[Vectors], object], queries: Vectors) -> list[float]:
    seconds = []
    for query in queries:
        started = time.perf_counter()
        search(query)
        seconds.append(time.perf_counter() - started)
    return seconds


def p(seconds: Sequence[float], q: int) -> float:
    """Milliseconds."""
    return 1000 * percentile(list(seconds), q)


def slower(what: str, seconds: Sequence[float], other: str, others: Sequence[float], most: float) -> dict[str, Any]:
    ours, theirs = p(seconds, 99), p(others, 99)
    against = f"{other}: {theirs:.2f} ms, so {ours / theirs:.1f}x"
    return row(what, round(ours, 2), "ms", against=against, reach=f"{most}x or less", held=ours <= most * theirs)


def in_turns(searches: Sequence[Callable[[Vectors], object]], queries: Vectors) -> list[list[float]]:
    """Of each how long its searches take: what else the machine does meanwhile meets all."""
    seconds: list[list[float]] = [[] for _ in searches]
    for _ in range(ROUNDS):
        for search, taken in zip(searches, seconds, strict=True):
            taken += seconds_each(search, queries)
    return seconds


def rates(searches: Sequence[Callable[[Vectors], object]], queries: Vectors, threads: int) -> list[float]:
    """Of each how many searches a second so many threads do, in turns."""
    taken = [0.0 for _ in searches]
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            for at, search in enumerate(searches):
                started = time.perf_counter()
                list(pool.map(partial(seconds_each, search), [queries] * threads))
                taken[at] += time.perf_counter() - started
    return [ROUNDS * threads * len(queries) / each for each in taken]


def beside(work: Iterator[None], search: Callable[[Vectors], object], queries: Vectors) -> list[float]:
    """How long searches take while another thread works, for as long as it does."""
    over = threading.Event()

    def run() -> None:
        for _ in work:
            if over.is_set():
                break
        over.set()

    thread = threading.Thread(target=run)
    thread.start()
    seconds: list[float] = []
    while not over.is_set() and len(seconds) < 20 * len(queries):
        seconds += seconds_each(search, queries[:50])
    over.set()
    thread.join()
    return seconds


def writes(index: SegmentedIndex, vectors: Vectors) -> Iterator[None]:
    """200 new notes a second for five seconds."""
    begin = time.perf_counter()
    for number, vector in enumerate(vectors[:1000]):
        time.sleep(max(0.0, begin + number / 200 - time.perf_counter()))
        index.upsert([stored(number, vector, "w")])
        yield


def merge(job: MergeJob) -> Iterator[None]:
    job.run()
    yield


def filtered_rows(index: SegmentedIndex, vectors: Vectors, queries: Vectors) -> list[dict[str, Any]]:
    told = []
    for share in SHARES:
        where = Filter(hashtags=(f"share {share}",))
        ids = np.arange(0, len(vectors), round(1 / share))
        full = all(len(index.search(q, K, where, 0.0)) == min(K, len(ids)) for q in queries[:50])
        seconds, plain = in_turns([partial(search_of, index, where=where), partial(search_of, index)], queries)
        ours, most = p(seconds, 99), 3 * p(plain, 99)
        found = recall(index, vectors[ids], ids, queries, where)
        told.append(row(
            f"filter that {100 * share:g}% pass: recall@{K}, p99", f"{found:.4f}, {ours:.2f} ms", "",
            against=f"{3 * ours / most:.1f}x the unfiltered p99; k {'always' if full else 'not always'} full",
            reach="0.99 or more, 3x or less, full", held=found >= 0.99 and full and ours <= most,
        ))  # fmt: skip
    return told


def churned(bases: Vectors, rows: int, queries: Vectors) -> list[dict[str, Any]]:
    """Every row replaced three times and half of them removed, against an index of what is left."""
    kept, ids = enlarged(bases, rows, 7), np.arange(0, rows, 2)

    def make_fresh(index: SegmentedIndex) -> None:
        for begin in range(0, len(ids), BATCH):
            index.upsert([stored(int(i), kept[i]) for i in ids[begin : begin + BATCH]])
            do_jobs(index)

    def churn(index: SegmentedIndex) -> None:
        for seed in (4, 5, 6):
            fill(index, enlarged(bases, rows, seed))
        fill(index, kept)
        index.remove([f"n{number}" for number in range(1, rows, 2)])
        do_jobs(index)

    (fresh, fresh_mib), (index, mib) = (weighed(make) for make in (make_fresh, churn))
    ours, theirs = (recall(each, kept[ids], ids, queries, ANY) for each in (index, fresh))
    slow, fast = in_turns([partial(search_of, index), partial(search_of, fresh)], queries)
    against = f"a fresh index: {fresh_mib:.0f} MiB, so {mib / fresh_mib:.2f}x"
    what = f"{rows:,} rows replaced three times, half removed"
    return [
        row(f"{what}: recall@{K}", f"{ours:.4f}", "", against=f"a fresh index: {theirs:.4f}",
            reach="within 0.005", held=ours >= theirs - 0.005),
        slower(f"{what}: p99", slow, "a fresh index", fast, 1.2),
        row(f"{what}: memory", round(mib), "MiB", against=against, reach="1.3x or less", held=mib <= 1.3 * fresh_mib),
        row(f"{what}: tombstones", index.tombstones, "", against=f"{len(index):,} rows"),
    ]  # fmt: skip


def weighed(make: Callable[[SegmentedIndex], None]) -> tuple[SegmentedIndex, float]:
    """An index, and how many MiB it takes."""
    before = resident()
    index = SegmentedIndex(DIMENSION)
    make(index)
    return index, resident() - before


def resident() -> float:
    """MiB, once nothing is held that nobody needs."""
    gc.collect()
    trim_heap()
    return resident_mib(os.getpid())


def snapshot_rows(index: SegmentedIndex, notes: Path, rows: int) -> list[dict[str, Any]]:
    """How long the index, with as many real notes' words and hashtags, takes to be written, and to be there again."""
    real = list(read_notes(notes).values())
    engine = Engine.load(cache=Settings().cache_dir)
    hashtags, empty = (LiveHashtags(engine.vocabulary(), InvertedLexicalIndex()) for _ in range(2))
    for number in range(rows):
        hashtags.upsert([StoredNote(replace(real[number % len(real)], id=f"n{number}"), "space")])
    with tempfile.TemporaryDirectory() as name, closing(SnapshotFolder(Path(name))) as folder:
        origin = Origin("store", "space")
        parts, frozen = timed(partial(snapshot_parts, index, hashtags, (), ()))
        _, first = timed(partial(folder.save, origin, "1-0", parts))
        _, again = timed(partial(folder.save, origin, "2-0", snapshot_parts(index, hashtags, (), ())))
        files = list(Path(name).glob("*.npz"))
        size = sum(path.stat().st_size for path in files)
        forget(files)
        _, reading = timed(lambda: [path.read_bytes() for path in files])
        forget(files)
        _, start = timed(partial(load_snapshot, folder, origin, SegmentedIndex(DIMENSION), empty))
    return [
        row("a snapshot: what writes wait for", round(frozen, 2), "s"),
        row("a snapshot: written", round(first, 1), "s", against=f"{size / 2**20:.0f} MiB; the next one {again:.1f} s"),
        row("start from it", round(start, 1), "s", against=f"its bytes read from disk: {reading:.1f} s",
            reach="3x and 2 s or less", held=start <= 3 * reading + 2),
    ]  # fmt: skip


def load_snapshot(folder: SnapshotFolder, origin: Origin, index: SegmentedIndex, hashtags: LiveHashtags) -> None:
    snapshot = folder.load(origin)
    assert snapshot is not None
    restore(snapshot.read, index, hashtags)


def forget(files: Sequence[Path]) -> None:
    """Have the system read them from disk again."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(call: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    return call(), time.perf_counter() - started


def milvus_row(vectors: Vectors, queries: Vectors) -> Iterator[dict[str, Any]]:
    """None without MILVUS_PYTHON."""
    if not (python := os.environ.get("MILVUS_PYTHON")):
        return
    rows = vectors[:PEER_ROWS]
    index = SegmentedIndex(DIMENSION)
    fill(index, rows)
    found = recall(index, rows, np.arange(len(rows)), queries, ANY)
    _, best = swig.knn(queries, rows, K, metric=swig.METRIC_INNER_PRODUCT)
    with tempfile.TemporaryDirectory() as folder:
        for name, array in {"vectors": rows, "queries": queries, "best": best}.items():
            np.save(Path(folder) / f"{name}.npy", array)
        asked = json.dumps({"folder": folder, "k": K, "lists": PEER_LISTS})
        script = ROOT / "benchmarks" / "peers" / "milvus.py"
        told = json.loads(
            subprocess.run([python, script], input=asked, capture_output=True, text=True, check=True).stdout
        )
    settings = [each for name, each in told.items() if name != "filled"]
    peer = next((each for each in settings if each["recall"] >= found), settings[-1])
    ours, theirs = (p(each, 99) for each in (seconds_each(partial(search_of, index), queries), peer["seconds"]))
    yield row(
        f"{len(rows):,} rows: recall@{K}, p99 of a search", f"{found:.4f}, {ours:.2f} ms", "",
        against=f"Milvus Lite: {peer['recall']:.4f}, {theirs:.2f} ms, so {theirs / ours:.0f}x of ours",
        reach="ahead at equal recall", held=ours < theirs,
    )  # fmt: skip


def search_of(index: SegmentedIndex, query: Vectors, where: Filter = ANY) -> list[Hit]:
    return index.search(query, K, where, 0.0)


def main(notes: Path, rows: int) -> None:
    bases = base_vectors(notes)
    vectors, queries = enlarged(bases, rows, 1), enlarged(bases, QUERIES, 2)
    gc.freeze()  # as the service does once its modules are there
    before = resident()
    index = SegmentedIndex(DIMENSION)
    filled = fill(index, vectors)
    used, raw = resident() - before, vectors.nbytes / 2**20
    search = partial(search_of, index)
    found = recall(index, vectors, np.arange(rows), queries, ANY)
    told = [
        row(f"{rows:,} rows, filled", round(filled), "rows/s", spread=f"{index.segments} segments"),
        row(f"recall@{K}", f"{found:.4f}", "", reach="0.99 or more", held=found >= 0.99),
    ]
    for threads in (1, 2):
        ours, theirs = rates([search, partial(bare, index)], queries, threads)
        against = f"bare FAISS: {theirs:.0f}, so {ours / theirs:.2f}x"
        what = f"searches a second, threads: {threads}"
        told.append(row(what, round(ours), "", against=against, reach="0.85x or more", held=ours >= 0.85 * theirs))
    idle, least = in_turns([search, partial(bare, index)], queries)
    told.append(row("p50 of a search", f"{p(idle, 50):.2f}", "ms", against=f"bare FAISS: {p(least, 50):.2f} ms"))
    told.append(slower("p99 of a search", idle, "bare FAISS", least, 3))
    busy = beside(writes(index, enlarged(bases, 1000, 3)), search, queries)
    told.append(slower("p99 while 200 notes a second are written", busy, "idle", idle, 2))
    index.remove([f"w{number}" for number in range(1000)])
    job = MergeJob.of(index._segments[:-1], DIMENSION)
    told.append(slower("p99 while all is merged", beside(merge(job), search, queries), "idle", idle, 3))
    del job  # or it would hold the memory of what was made
    trim_heap()
    told += filtered_rows(index, vectors, queries)
    against = f"the vectors: {raw:.0f} MiB, so {used / raw:.2f}x"
    told.append(row("memory", round(used), "MiB", against=against, reach="1.3x or less", held=used <= 1.3 * raw))
    told += milvus_row(vectors, queries)
    told += snapshot_rows(index, notes, rows)
    del index
    told += churned(bases, min(rows, 100_000), queries)
    write(f"index_{rows}", told)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100_000)
