"""Plots of docs/results.md: from the records on microlens50k's test notes, and learning curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from benchmarks.quality.claims import hits
from benchmarks.quality.records import MICROLENS, OURS, Run, runs_by_seed
from model.evaluation.metrics import recall_at
from model.evaluation.protocol import COLD_COLD
from model.evaluation.record import Record

T = TypeVar("T")
SIZE, DPI = (8, 5), 120
"""Inches, and dots per inch."""


def draw_recall(runs: Sequence[Run], path: Path) -> None:
    """Draw Recall@k, cold-cold, of every system as a PNG file."""
    cutoffs = np.unique(np.geomspace(1, 1000, 100).round().astype(int))
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for system, seeds in by_system(runs, lambda record: record.related.get(COLD_COLD)).items():
        ranks = np.concatenate([seed.ranks for seed in seeds])  # equally many for each seed: this gives the mean
        recall = [100 * recall_at(ranks, k) for k in cutoffs]
        axes.plot(cutoffs, recall, label=system, linewidth=2.5 if system == OURS else 1.2)
    axes.set(xscale="log", xlim=(1, 1000), xlabel="k", ylabel="Recall@k, %", title=f"{MICROLENS}, {COLD_COLD}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(*axes.get_legend_handles_labels(), loc="upper left")
    figure.savefig(path, dpi=DPI)


def draw_cost(runs: Sequence[Run], path: Path) -> None:
    """Draw Recall@100, cold-cold, of every system against the time it takes to read a note, as a PNG file."""

    def point(record: Record) -> tuple[float, float] | None:
        if not record.seconds_per_note or not (units := hits(COLD_COLD, record)):
            return None
        return 1000 * record.seconds_per_note, 100 * units.mean

    points = {system: np.mean(seeds, axis=0) for system, seeds in by_system(runs, point).items()}
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.margins(x=0.8, y=0.1)  # room for the labels
    # Points next to each other in height have their labels on opposite sides, so that these do not overlap.
    for i, (system, xy) in enumerate(sorted(points.items(), key=lambda item: item[1][1])):
        axes.plot(*xy, "o", color="C3" if system == OURS else "C0")
        side = -1 if i % 2 else 1
        axes.annotate(
            system, xy, (8 * side, 0), textcoords="offset points", size="small",
            ha="left" if side > 0 else "right", va="center",
        )  # fmt: skip
    axes.set(xscale="log", xlabel="ms a note", ylabel="Recall@100, %", title=f"{MICROLENS}, {COLD_COLD}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)


def draw_learning_curves(curves: Mapping[str, Any], path: Path) -> None:
    """Draw recall against hours of training, with a plot for each panel and rivals as dashed lines, as a PNG file.

    `curves` is a file of benchmarks/results/curves/. A point or a rival without a value for a panel is left out of it.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    lines: dict[str, Artist] = {}
    panels = curves["panels"]
    for axes, panel in zip(figure.subplots(1, len(panels), sharex=True), panels, strict=True):
        for series in curves["series"]:
            points = [point for point in series["points"] if panel in point]
            hours = [core_hours(series, point["step"]) for point in points]
            axes.plot(hours, [point[panel] for point in points], "o-", markersize=4, label=series["name"])
        for i, rival in enumerate(curves["rivals"], len(curves["series"])):
            if panel in rival:
                axes.axhline(rival[panel], linestyle="--", color=f"C{i}", label=rival["name"])
        axes.set(xlabel="hours of one core", title=panel)
        axes.grid(alpha=0.3)
        lines |= {str(line.get_label()): line for line in axes.get_lines()}
    figure.supylabel(curves["score"])
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=DPI)


def core_hours(series: Mapping[str, Any], step: int) -> float:
    """Return the hours of one core that a series of a learning curve had taken at a step, with those of the runs that
    it continues."""
    return float(series["core_hours_before"] + step * series["core_seconds_per_step"] / 3600)


def by_system(runs: Sequence[Run], extract: Callable[[Record], T | None]) -> dict[str, list[T]]:
    """Return what `extract` finds in each system's records, one value for each seed; systems without any are left
    out."""
    values = {
        run.record.system: [value for _, value in runs_by_seed(runs, run.record.system, MICROLENS, extract)]
        for run in runs
    }
    return {system: seeds for system, seeds in values.items() if seeds}
