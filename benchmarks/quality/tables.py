"""Tables and plots of quality, from the records that `notellm evaluate --record` wrote. No model is run.

python -m benchmarks.quality.tables

writes benchmarks/results/quality.json, its table in docs/benchmarks.md, docs/results.md and its plots.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import ROOT
from benchmarks.harness.report import RESULTS, markdown_table, update_page, write
from benchmarks.quality.claims import CLAIMS, Contest, hashtag_f1, hits
from benchmarks.quality.plots import draw_cost, draw_learning_curve, draw_recall
from benchmarks.quality.records import JOINT, MICROLENS, RECORDS, Run, read_runs, value_at
from model.evaluation.metrics import EXPOSURES
from model.evaluation.protocol import COLD_COLD, PROTOCOLS
from model.evaluation.record import CUTOFFS, HASHTAG_CUTOFFS

DOCS = ROOT / "docs"
RECALL_PLOT, COST_PLOT, CURVE_PLOT = "recall.png", "quality-cost.png", "learning-curve.png"
LEARNING_CURVE: Mapping[str, Any] = json.loads((RESULTS / "curves" / "generalist.json").read_text("utf-8"))
"""Points of the shipped checkpoint's distillation, copied from its log."""

Cell = Callable[[Run, Mapping[str, Any]], str]
"""Text of one column for a run and the summary of its record."""


def percentages(*paths: tuple[str, ...]) -> Cell:
    """Return a cell with the summary's shares at `paths`, in percent; empty if the summary has none of them."""

    def cell(_: Run, summary: Mapping[str, Any]) -> str:
        shares = [value_at(summary, path) for path in paths]
        if all(share is None for share in shares):
            return ""
        return " / ".join("-" if share is None else f"{100 * share:.1f}" for share in shares)

    return cell


def system(run: Run, _: Mapping[str, Any]) -> str:
    return run.record.system


def data_and_split(run: Run, _: Mapping[str, Any]) -> str:
    return f"{run.record.data}, {run.record.split}"


def hashtags_shown(run: Run, _: Mapping[str, Any]) -> str:
    return "yes" if run.record.with_hashtags else "no"


def hashtags_from(run: Run, _: Mapping[str, Any]) -> str:
    return run.record.hashtags_from if run.record.hashtags else ""


def measured(run: Run, _: Mapping[str, Any]) -> str:
    return ", ".join(filter(None, (run.machine, run.commit)))


def milliseconds(run: Run, _: Mapping[str, Any]) -> str:
    seconds = run.record.seconds_per_note
    return "" if seconds is None else f"{1000 * seconds:.2f}"


AT_HASHTAG_CUTOFFS = f"@{' / '.join(map(str, HASHTAG_CUTOFFS))}"
ORIGIN: Mapping[str, Cell] = {
    "system": system,
    "data, split": data_and_split,
    "hashtags shown": hashtags_shown,
    "hashtags are": hashtags_from,
    "measured on, commit": measured,
}
RELATED: Mapping[str, Cell] = {
    **{
        f"{p} R@{' / '.join(map(str, CUTOFFS))}": percentages(*(("recall", p, str(k)) for k in CUTOFFS))
        for p in PROTOCOLS
    },
    **{f"{p} MRR": percentages(("mrr", p)) for p in PROTOCOLS},
    "ms a note": milliseconds,
}
BY_EXPOSURE: Mapping[str, Cell] = {
    f"{p} {' / '.join(EXPOSURES)}": percentages(*(("recall_by_exposure", p, group) for group in EXPOSURES))
    for p in PROTOCOLS
}
CATEGORY: Mapping[str, Cell] = {
    "constrained / free / illusory": percentages(
        *(("category", name) for name in ("accuracy_constrained", "accuracy_free", "illusory"))
    ),
    "macro-F1": percentages(("category", "macro_f1")),
    "ECE": percentages(("category", "ece")),
}
HASHTAGS: Mapping[str, Cell] = {
    **{
        f"{title}{AT_HASHTAG_CUTOFFS}": percentages(*(("hashtags", f"{name}@{k}") for k in HASHTAG_CUTOFFS))
        for title, name in {"F1": "f1", "P": "precision", "R": "recall"}.items()
    },
    "ROUGE-1 / 2 / L": percentages(*(("hashtags", f"rouge{n}") for n in "12L")),
    "in no training note": percentages(("hashtags", "unused")),
}


def table(runs: Sequence[Run], columns: Mapping[str, Cell]) -> str:
    """Return a Markdown table with a row for each run that has a value in any of the columns."""
    lines = []
    for run in runs:
        summary = run.record.summary()
        cells = [cell(run, summary) for cell in columns.values()]
        if any(cells):
            lines.append([run.name, *cells])
    return markdown_table(["record", *columns], lines)


def ablations(runs: Sequence[Run]) -> str:
    """Return a Markdown table with a row for each system of the short runs, compared with JOINT."""
    scores = {"Recall@100, cold-cold, %": partial(hits, COLD_COLD), "hashtags, F1@3, %": partial(hashtag_f1, "written")}
    systems = {run.record.system for run in runs if run.record.system.startswith("ablation-")}
    lines = []
    for name in sorted(systems - {JOINT}):
        contests = [Contest("", MICROLENS, score, JOINT, system=name, split="validation") for score in scores.values()]
        rows = [contest.row(runs) for contest in contests]
        lines.append([name, *(f"{row['value']} against {row['against']} ({row['spread']})" for row in rows)])
    return markdown_table(["system", *scores], lines)


def results(runs: Sequence[Run]) -> str:
    """Return the text of docs/results.md."""
    return f"""# Results

Made by `make quality` from `benchmarks/results/records/`. All shares are in percent; a cell is empty where a record
has no such figure, and a record without any is left out of a table. The comparisons, with their paired tests, are in
[Benchmarks](benchmarks.md).

One command makes a record again: `python -m benchmarks.quality.reproduce DATA RECORD`, where DATA is the folder of the
data sets. It trains what is measured first, but for the shipped checkpoint and the Chinese one. A rerun gives figures
near those below and not the same ones: the research checkpoint, the distilled MiniLM and both adapters of the shipped
one were made in parts or by earlier code ([decision 6](decisions/0006-distillation.md), [log](log/training.md)). A
commit with + had changes that were not committed.

## Records

{table(runs, ORIGIN)}

## Related notes

{table(runs, RELATED)}

## Recall@100 by exposure

Pairs in three groups of equal size, by the clicks of the target.

{table(runs, BY_EXPOSURE)}

## Categories

Accuracy when the category is chosen from the closed set, and when it is written freely. A category is illusory where
what the model writes freely is none of the set.

{table(runs, CATEGORY)}

## Hashtags

ROUGE counts words in lower case; each Han character or kana is a word.

{table(runs, HASHTAGS)}

## Ablations

Short runs from the bare backbone, on {MICROLENS}'s validation notes, each beside `{JOINT}` in a paired test. Each
differs from it in one thing (`benchmarks/quality/experiments.py` names it), except that `full` has its own learning
rate, too, and that `without-csft-hiding` also hides hashtags.

A run of one seed also differs by the luck of its seed, which no test here sees: the seeds of `{JOINT}` show how much
that is.

{ablations(runs)}

## Plots

{MICROLENS}, test notes, hashtags shown; the mean over seeds. Times are as each record's machine took them.

![Recall@k, {COLD_COLD}]({RECALL_PLOT})

![Recall@100, {COLD_COLD}, against the time that reading a note takes]({COST_PLOT})

The run that the shipped checkpoint was cut from, before the cut to rank 1, in two domains that it has not seen.
{LEARNING_CURVE["what"]}.

![Recall against hours of training]({CURVE_PLOT})
"""


def main() -> None:
    runs = read_runs(RECORDS)
    write("quality", [claim.row(runs) for claim in CLAIMS])
    (DOCS / "results.md").write_text(results(runs), "utf-8")
    draw_recall(runs, DOCS / RECALL_PLOT)
    draw_cost(runs, DOCS / COST_PLOT)
    draw_learning_curve(LEARNING_CURVE, DOCS / CURVE_PLOT)
    update_page()


if __name__ == "__main__":
    main()
