"""Tables and plots of quality, from the records that `notellm evaluate --record` wrote. No model is run.

python -m benchmarks.quality.tables

writes benchmarks/results/quality.json, its table in docs/benchmarks.md, docs/results.md and its plots.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from textwrap import fill
from typing import Any

from benchmarks import ROOT
from benchmarks.harness.report import RESULTS, markdown_table, update_page, write
from benchmarks.quality.claims import CLAIMS, Contest, hashtag_f1, hits
from benchmarks.quality.plots import draw_cost, draw_learning_curves, draw_recall
from benchmarks.quality.records import JOINT, LABELS, MICROLENS, RECORDS, Run, read_runs, value_at
from model.evaluation.metrics import EXPOSURES
from model.evaluation.protocol import COLD_COLD, PROTOCOLS
from model.evaluation.record import CUTOFFS, HASHTAG_CUTOFFS

DOCS = ROOT / "docs"
RECALL_PLOT, COST_PLOT = "recall.png", "quality-cost.png"
CURVES: Mapping[str, Mapping[str, Any]] = {
    f"learning-curve-{name}.png": json.loads((RESULTS / "curves" / f"{name}.json").read_text("utf-8"))
    for name in ("generalist", MICROLENS)
}
"""Learning curves by the name of their plot; their points are copied from docs/log/."""

WIDTH = 120
"""Characters in a line of prose of docs/results.md."""

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
    "data set, split": data_and_split,
    "hashtags in input": hashtags_shown,
    "predicted hashtags": hashtags_from,
    "hardware, precision, commit": measured,
}
RELATED: Mapping[str, Cell] = {
    **{
        f"{p} Recall@{' / '.join(map(str, CUTOFFS))}": percentages(*(("recall", p, str(k)) for k in CUTOFFS))
        for p in PROTOCOLS
    },
    **{f"{p} MRR": percentages(("mrr", p)) for p in PROTOCOLS},
    "ms/note": milliseconds,
}
BY_EXPOSURE: Mapping[str, Cell] = {
    f"{p} {' / '.join(EXPOSURES)}": percentages(*(("recall_by_exposure", p, group) for group in EXPOSURES))
    for p in PROTOCOLS
}
CATEGORY: Mapping[str, Cell] = {
    "accuracy closed / accuracy free / illusory": percentages(
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
    "not in training notes": percentages(("hashtags", "unused")),
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
    scores = {"Recall@100, cold-cold, %": partial(hits, COLD_COLD), "hashtag F1@3, %": partial(hashtag_f1, "written")}
    systems = {run.record.system for run in runs if run.record.system.startswith("ablation-")}
    lines = []
    for name in sorted(systems - {JOINT}):
        contests = [Contest("", MICROLENS, score, JOINT, system=name, split="validation") for score in scores.values()]
        rows = [contest.row(runs) for contest in contests]
        lines.append([name, *(f"{row['value']}; baseline {row['against']}; {row['spread']}" for row in rows)])
    return markdown_table(["system", *scores], lines)


def learning_curves() -> str:
    """Return the plots of the learning curves as Markdown, each followed by what its lines are and where their figures
    are from."""
    parts = []
    for plot, curves in CURVES.items():
        lines = [
            [line["name"], line["about"], ", ".join(f"[log]({source})" for source in line["sources"])]
            for line in curves["series"]
        ]
        parts += [f"![Recall against hours of training]({plot})", fill(curves["about"], WIDTH, break_on_hyphens=False)]
        parts.append(markdown_table(["line", "training", "figures"], lines))
    return "\n\n".join(parts)


def results(runs: Sequence[Run]) -> str:
    """Return the text of docs/results.md."""
    return f"""# Results

This page lists the metrics of every record. A record is the output of one `notellm evaluate --record` run;
`make quality` makes this page from `benchmarks/results/records/`. All shares are in percent. A cell is empty if the
record has no such metric, and a table omits records that have none of its metrics. [Benchmarks](benchmarks.md#quality)
compares the systems in paired tests.

`python -m benchmarks.quality.reproduce DATA RECORD` reproduces a record, where DATA is the folder of the data sets. It
first trains the system, except the shipped checkpoint and the Chinese one. The figures will be close to those below but
not identical: the research checkpoint and the distilled MiniLM were trained in several parts or by earlier code
([decision 6](decisions/0006-distillation.md), [log](log/training.md)). A commit with + had uncommitted changes.

## Systems

Names of systems in the records and, where these differ, in [Benchmarks](benchmarks.md#quality).

{markdown_table(["system", "description"], [[f"`{name}`", text] for name, text in LABELS.items()])}

## Records

Predicted hashtags are `written` by the model, `known` (written, and used by training notes), `grounded` (the best of
written ones, those of neighbours and known ones that the text names) or `copied` from the nearest notes. `tuned`: the
copier's constants were tuned on validation.

{table(runs, ORIGIN)}

## Related notes

Recall@k is the share of pairs whose related note is among the first k results; MRR is the mean reciprocal rank.
"cold-cold" searches notes of the split among notes of the split, "cold-all" among all notes.

{table(runs, RELATED)}

## Recall@100 by exposure

The pairs are split into three groups of equal size by the number of clicks of the target note.

{table(runs, BY_EXPOSURE)}

## Categories

Accuracy if the category is chosen from the closed set of names, and if the model writes it freely. A freely written
category that is not in the set is illusory. ECE is the expected calibration error.

{table(runs, CATEGORY)}

## Hashtags

Precision (P), recall (R) and F1 of the first 1, 3 and 5 predicted hashtags. ROUGE counts words in lower case; each Han
character or kana is a word. The last column is the share of predicted hashtags that no training note has.

{table(runs, HASHTAGS)}

## Ablations

Short training runs from the backbone without fine-tuning, evaluated on the validation notes of {MICROLENS} and
compared with the baseline run `{JOINT}` in a paired test. Each changes one setting of the baseline
(`benchmarks/quality/experiments.py` lists them), except that `full` also has its own learning rate and that
`without-csft-hiding` also hides hashtags.

The tests do not account for the variance between seeds; the range over the seeds of `{JOINT}` shows its size.

{ablations(runs)}

## Plots

Test notes of {MICROLENS}, with hashtags in the input; mean over seeds. Times depend on each record's hardware.

![Recall@k, {COLD_COLD}]({RECALL_PLOT})

![Recall@100, {COLD_COLD}, against the time to embed a note]({COST_PLOT})

### Learning curves

Recall against hours of one core: steps times the seconds of a step, as the log has them, times two where both cores
worked.

{learning_curves()}
"""


def main() -> None:
    runs = read_runs(RECORDS)
    write("quality", [claim.row(runs) for claim in CLAIMS])
    (DOCS / "results.md").write_text(results(runs), "utf-8")
    draw_recall(runs, DOCS / RECALL_PLOT)
    draw_cost(runs, DOCS / COST_PLOT)
    for plot, curves in CURVES.items():
        draw_learning_curves(curves, DOCS / plot)
    update_page()


if __name__ == "__main__":
    main()
