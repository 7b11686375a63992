"""Index step: searches of sealed segments on the card, alternating with the processor's of the same segments."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.gpu_kit.options import LeftOut, Options
from benchmarks.harness.index_rates import K, fill, measure_rates, measure_recall, search_index, take_turns
from benchmarks.harness.inputs import BASE_NOTES, DIMENSION, noisy_copies, normalise
from benchmarks.harness.report import Row, row
from benchmarks.harness.statistics import percentiles_text
from service.index.gpu import Gpu, find_gpu
from service.index.native import swig, use_one_faiss_thread
from service.index.segmented import SegmentedIndex

ROWS, REHEARSED_ROWS = (100_000, 1_000_000), (2_000,)
QUERIES, REHEARSED_QUERIES = 500, 20
THREADS = (1, 4)
MIN_RECALL = 0.99


def rows(options: Options) -> Iterator[Row]:
    """Yield the rows of each size of the index. Raises LeftOut if FAISS has no card."""
    gpu = None if options.rehearsal else find_gpu()
    if not (gpu or options.rehearsal):
        raise LeftOut(f"FAISS {swig.__version__} has no card here: it takes faiss-gpu")
    use_one_faiss_thread()  # as the service does
    queries = REHEARSED_QUERIES if options.rehearsal else QUERIES
    for count in REHEARSED_ROWS if options.rehearsal else ROWS:
        yield from size_rows(count, queries, gpu)


def size_rows(count: int, query_count: int, gpu: Gpu | None) -> Iterator[Row]:
    """Yield the rows of an index of `count` synthetic vectors, which are spread around BASE_NOTES random ones."""
    bases = normalise(np.random.default_rng(0).standard_normal((BASE_NOTES, DIMENSION)))
    vectors, queries = noisy_copies(bases, count, 1), noisy_copies(bases, query_count, 2)
    by_processor, on_card = SegmentedIndex(DIMENSION), SegmentedIndex(DIMENSION, gpu=gpu)
    what = f"{count:,} rows"
    yield row(f"{what}: insert throughput on the CPU", round(fill(by_processor, vectors)), "rows/s",
              spread=f"{by_processor.segments} segments")  # fmt: skip
    parts = {part.name: part.make() for part in by_processor.snapshot_parts()}
    started = time.perf_counter()
    on_card.restore(parts.__getitem__)
    seconds = round(time.perf_counter() - started, 2)
    yield row(f"{what}: time to restore the segments and copy them to the GPU", seconds, "s")

    recalls = [measure_recall(index, vectors, np.arange(count), queries) for index in (on_card, by_processor)]
    yield row(f"{what}: recall@{K} on the GPU", f"{recalls[0]:.4f}", against=f"CPU: {recalls[1]:.4f}",
              target=f"≥ {MIN_RECALL}", met=recalls[0] >= MIN_RECALL)  # fmt: skip
    searches = [partial(search_index, index) for index in (on_card, by_processor)]
    ours, others = take_turns(searches, queries)
    yield row(f"{what}: search latency on the GPU, p50 / p95 / p99", percentiles_text(ours, 2), "ms",
              against=f"CPU: {percentiles_text(others, 2)} ms")  # fmt: skip
    for threads in THREADS:
        rate, other = measure_rates(searches[0], searches[1], queries, threads)
        yield row(f"{what}: search throughput on the GPU, threads: {threads}", round(rate), "searches/s",
                  against=f"CPU: {other:.0f} searches/s; ratio {rate / other:.2f}x")  # fmt: skip
