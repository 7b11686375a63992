"""Figures of benchmarks.speed.index, their targets, and the rows of its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.harness.index_rates import K
from benchmarks.harness.report import Row, row
from benchmarks.harness.statistics import percentile_ms

WRITES_PER_SECOND = 200
"""Rows added per second while searches are measured."""
BARE = "FAISS IVF-Flat on the same segments"
"""Name of the baseline in the result: FAISS without codes, one segment after the other, called from Python."""
MIN_RECALL, MIN_RATE_RATIO = 0.99, 0.85
MAX_P99_TO_BARE, MAX_P99_WHILE_WRITING, MAX_P99_WHILE_MERGING, MAX_P99_FILTERED = 3, 2, 3, 3
MAX_MEMORY_RATIO = 1.3
MAX_START_RATIO, START_SECONDS = 3, 2
MAX_RECALL_LOSS, MAX_CHURNED_P99 = 0.005, 1.2
"""Targets. All but the recalls are multiples of the figure that a row compares with; a start may take START_SECONDS
more."""


@dataclass(frozen=True, slots=True)
class FilterFigures:
    """Searches with a filter that `share` of the rows pass, alternating with unfiltered ones. `full`: whether every
    checked search had k results."""

    share: float
    recall: float
    full: bool
    seconds: Sequence[float]
    unfiltered: Sequence[float]


@dataclass(frozen=True, slots=True)
class PeerFigures:
    """Recall and seconds of searches in `rows` rows: ours, and the peer's at the setting that reaches our recall."""

    rows: int
    recall: float
    seconds: Sequence[float]
    peer_recall: float
    peer_seconds: Sequence[float]


@dataclass(frozen=True, slots=True)
class SnapshotFigures:
    """Seconds that a snapshot pauses writes, that the first and the second snapshot take to write, that reading the
    files takes, and that a start from them takes."""

    freeze: float
    first: float
    second: float
    mib: float
    read: float
    start: float


@dataclass(frozen=True, slots=True)
class ChurnFigures:
    """An index whose rows were replaced and partly removed, and a fresh index of the remaining rows."""

    rows: int
    living: int
    tombstones: int
    recall: float
    fresh_recall: float
    seconds: Sequence[float]
    fresh_seconds: Sequence[float]
    mib: float
    fresh_mib: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Rows a second of filling; searches a second by threads, ours and BARE's; seconds of searches on an idle
    machine, while rows are written and while all segments are merged; MiB of the index and of its vectors alone."""

    rows: int
    fill_rate: float
    segments: int
    recall: float
    rates: Mapping[int, tuple[float, float]]
    idle: Sequence[float]
    bare: Sequence[float]
    writing: Sequence[float]
    merging: Sequence[float]
    filters: Sequence[FilterFigures]
    mib: float
    vectors_mib: float
    peer: PeerFigures | None
    snapshot: SnapshotFigures
    churn: ChurnFigures


def rows(figures: Figures) -> list[Row]:
    """Return the rows of the result."""
    memory, vectors = figures.mib, figures.vectors_mib
    return [
        row(f"insert throughput, {figures.rows:,} rows, merges included", round(figures.fill_rate), "rows/s",
            spread=f"{figures.segments} segments"),
        row(f"recall@{K}", f"{figures.recall:.4f}", target=f"≥ {MIN_RECALL}", met=figures.recall >= MIN_RECALL),
        *(rate_row(threads, *rates) for threads, rates in figures.rates.items()),
        row("search latency, p50", f"{percentile_ms(figures.idle, 50):.2f}", "ms",
            against=f"{BARE}: {percentile_ms(figures.bare, 50):.2f} ms"),
        p99_row("search latency, p99", figures.idle, BARE, figures.bare, MAX_P99_TO_BARE),
        p99_row(f"search latency beside {WRITES_PER_SECOND} writes/s, p99", figures.writing, "idle", figures.idle,
                MAX_P99_WHILE_WRITING),
        p99_row("search latency while all segments are merged, p99", figures.merging, "idle", figures.idle,
                MAX_P99_WHILE_MERGING),
        *map(filter_row, figures.filters),
        row("memory of the index", round(memory), "MiB",
            against=f"vectors alone: {vectors:.0f} MiB; ratio {memory / vectors:.2f}x",
            target=f"≤ {MAX_MEMORY_RATIO}x", met=memory <= MAX_MEMORY_RATIO * vectors),
        *([peer_row(figures.peer)] if figures.peer else []),
        *snapshot_rows(figures.snapshot),
        *churn_rows(figures.churn),
    ]  # fmt: skip


def rate_row(threads: int, ours: float, bare: float) -> Row:
    return row(
        f"search throughput, threads: {threads}", round(ours), "searches/s",
        against=f"{BARE}: {bare:.0f} searches/s; ratio {ours / bare:.2f}x",
        target=f"≥ {MIN_RATE_RATIO}x", met=ours >= MIN_RATE_RATIO * bare,
    )  # fmt: skip


def p99_row(what: str, seconds: Sequence[float], other: str, others: Sequence[float], target: float) -> Row:
    ours, theirs = percentile_ms(seconds, 99), percentile_ms(others, 99)
    return row(
        what, round(ours, 2), "ms", against=f"{other}: {theirs:.2f} ms; ratio {ours / theirs:.1f}x",
        target=f"≤ {target}x", met=ours <= target * theirs,
    )  # fmt: skip


def filter_row(figures: FilterFigures) -> Row:
    ours, unfiltered = percentile_ms(figures.seconds, 99), percentile_ms(figures.unfiltered, 99)
    fast, right = ours <= MAX_P99_FILTERED * unfiltered, figures.recall >= MIN_RECALL
    full = "always" if figures.full else "not always"
    return row(
        f"filter matching {100 * figures.share:g}% of rows: recall@{K}, search latency p99",
        f"{figures.recall:.4f}, {ours:.2f} ms",
        against=f"{ours / unfiltered:.1f}x the unfiltered p99; {full} k results",
        target=f"≥ {MIN_RECALL}, ≤ {MAX_P99_FILTERED}x, k results", met=right and figures.full and fast,
    )  # fmt: skip


def peer_row(figures: PeerFigures) -> Row:
    ours, theirs = percentile_ms(figures.seconds, 99), percentile_ms(figures.peer_seconds, 99)
    return row(
        f"{figures.rows:,} rows: recall@{K}, search latency p99", f"{figures.recall:.4f}, {ours:.2f} ms",
        against=f"Milvus Lite: {figures.peer_recall:.4f}, {theirs:.2f} ms; {theirs / ours:.0f}x ours",
        target="faster at equal recall", met=ours < theirs,
    )  # fmt: skip


def snapshot_rows(figures: SnapshotFigures) -> list[Row]:
    read, start = figures.read, figures.start
    return [
        row("snapshot: pause of writes", round(figures.freeze, 2), "s"),
        row("snapshot: time to write", round(figures.first, 1), "s",
            spread=f"{figures.mib:.0f} MiB; next snapshot: {figures.second:.1f} s"),
        row("snapshot: time to load", round(start, 1), "s", against=f"reading its files from disk: {read:.1f} s",
            target=f"≤ {MAX_START_RATIO}x + {START_SECONDS} s",
            met=start <= MAX_START_RATIO * read + START_SECONDS),
    ]  # fmt: skip


def churn_rows(figures: ChurnFigures) -> list[Row]:
    recall, mib, fresh = figures.recall, figures.mib, "newly built index"
    what = f"{figures.rows:,} rows replaced three times, half removed"
    return [
        row(f"{what}: recall@{K}", f"{recall:.4f}", against=f"{fresh}: {figures.fresh_recall:.4f}",
            target=f"within {MAX_RECALL_LOSS}", met=recall >= figures.fresh_recall - MAX_RECALL_LOSS),
        p99_row(f"{what}: search latency, p99", figures.seconds, fresh, figures.fresh_seconds, MAX_CHURNED_P99),
        row(f"{what}: memory", round(mib), "MiB",
            against=f"{fresh}: {figures.fresh_mib:.0f} MiB; ratio {mib / figures.fresh_mib:.2f}x",
            target=f"≤ {MAX_MEMORY_RATIO}x", met=mib <= MAX_MEMORY_RATIO * figures.fresh_mib),
        row(f"{what}: tombstones", figures.tombstones, spread=f"{figures.living:,} rows left"),
    ]  # fmt: skip
