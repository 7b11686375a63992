"""Fits kappa, and shows content, behaviour and their blend from cold notes to warm ones.

python -m benchmarks.quality.blend DATA [--queries N] [--plot FILE]

DATA is a folder with notes.jsonl.gz and clicks.jsonl.gz. The clicks are replayed through CoOccurrence, each user's in
their own order; clicks without times get random ones. Before a click is added, its note is ranked among all notes for a
query: the note of the user's previous click. Recall@100 is shown by the number of clicks that the query had by then.

- content: cosine of TF-IDF vectors.
- behaviour: s(A->B); a note that nobody read after the query is not found.
- blend: cosine + n / (n + kappa), with n the readers who read the note after the query: the score of a search with the
  sources `content` and `behaviour`, each of weight 1.

Queries are notes of the validation split. Kappa is fitted on one half of the users, and the figures are those of the
other half.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.harness.report import Row, row, write
from model.baselines.lexical import TfIdf
from model.data.dataset import read_notes
from model.data.pairs import split_of
from model.evaluation.protocol import CLICKS_FILE, NOTES_FILE
from model.evaluation.ranking import Scorer
from service.behaviour.co_occurrence import CoOccurrence, CoOccurrenceOptions, Successor

K = 100
"""Cutoff of recall."""
KAPPAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
TOLERANCE = 0.2
"""Percentage points of Recall@100 that a larger kappa may cost."""
BUCKETS = (0, 1, 3, 6, 11, 21, 51)
"""Smallest number of clicks of a query, for each row of the result."""
QUERIES = 1500
"""Bound on the queries of each row and half of the users."""
NICENESS = 19
SEED = 1
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NextClick:
    """A click on `target` by a user whose previous click was on `query`. `clicks`: all earlier clicks on `query` but
    one, the user's own."""

    user: str
    query: str
    target: str
    clicks: int


@dataclass(slots=True)
class Hits:
    """Hits by system: for each query, whether the target is among the first K notes. `blends` has a system for each
    kappa."""

    content: list[bool] = field(default_factory=list)
    behaviour: list[bool] = field(default_factory=list)
    blends: dict[float, list[bool]] = field(default_factory=lambda: {kappa: [] for kappa in KAPPAS})


def in_time_order(clicks: Sequence[Mapping[str, object]]) -> list[tuple[str, str, float]]:
    """Return (user, note, time), sorted by time. Clicks without times get random ones between 0 and 1, in each user's
    order."""
    by_user: dict[str, list[Mapping[str, object]]] = defaultdict(list)
    for click in clicks:
        by_user[str(click["user"])].append(click)
    chance = random.Random(SEED)
    timed = []
    for user, own in by_user.items():
        drawn = sorted(chance.random() for _ in own)
        for click, time in zip(own, drawn, strict=True):
            given = click.get("time")
            timed.append((user, str(click["note"]), time if given is None else float(str(given))))
    return sorted(timed, key=lambda click: click[2])


def replay(
    clicks: Sequence[tuple[str, str, float]], known: Mapping[str, int]
) -> Iterator[tuple[NextClick, CoOccurrence]]:
    """Add clicks to a CoOccurrence one by one. Yield each next click from a validation note, with the CoOccurrence
    before that click is added."""
    kept = CoOccurrence(CoOccurrenceOptions(lower=0.0, upper=float("inf"), top=len(known), max_reads=len(clicks)))
    last: dict[str, str] = {}
    counts: dict[str, int] = defaultdict(int)
    for user, note, time in clicks:
        query = last.get(user)
        if query is not None and query != note and query in known and note in known and split_of(query) == "validation":
            yield NextClick(user, query, note, counts[query] - 1), kept  # less the user's own click on the query
        kept.add(user, note, time)
        counts[note] += 1
        last[user] = note


def measure(
    score: Scorer, ids: Sequence[str], clicks: Sequence[tuple[str, str, float]], queries: int
) -> dict[tuple[bool, int], Hits]:
    """Return the hits of a sample of next clicks, by half of the users (True: the one that kappa is fitted on) and
    bucket."""
    place = {note_id: row for row, note_id in enumerate(ids)}
    sample = choose(clicks, place, queries)
    hits: dict[tuple[bool, int], Hits] = defaultdict(Hits)
    for number, (click, kept) in enumerate(replay(clicks, place)):
        if number in sample:
            content = score(np.array([place[click.query]]))[0].astype(np.float64)
            look(hits[group_of(click)], content, kept.related(click.query), click, place)
    return hits


def choose(clicks: Sequence[tuple[str, str, float]], place: Mapping[str, int], queries: int) -> set[int]:
    """Choose up to `queries` next clicks of each half and bucket at random; return their numbers in the replay."""
    groups: dict[tuple[bool, int], list[int]] = defaultdict(list)
    for number, (click, _) in enumerate(replay(clicks, place)):
        groups[group_of(click)].append(number)
    chance = random.Random(SEED)
    return {n for numbers in groups.values() for n in chance.sample(numbers, min(queries, len(numbers)))}


def group_of(click: NextClick) -> tuple[bool, int]:
    fitted = hashlib.sha1(click.user.encode()).digest()[0] % 2 == 0
    return fitted, max(bucket for bucket in BUCKETS if bucket <= click.clicks)


def look(hits: Hits, content: Floats, related: Sequence[Successor], click: NextClick, place: Mapping[str, int]) -> None:
    """Rank the target of a next click by each system, and append to `hits` whether it is among the first K."""
    query, target = place[click.query], place[click.target]
    places = np.array([place[one.id] for one in related], np.int64)
    readers = np.array([one.readers for one in related])
    hits.content.append(is_hit(content, query, target))
    hits.behaviour.append(click.target in {one.id for one in related[:K]})
    for kappa in KAPPAS:
        blend = content.copy()
        if places.size:
            blend[places] += readers / (readers + kappa)
        hits.blends[kappa].append(is_hit(blend, query, target))


def is_hit(scores: Floats, query: int, target: int) -> bool:
    """Return whether the target is among the first K notes, leaving out the query; ties rank in the order of rows."""
    better = scores > scores[target]
    better[:target] |= scores[:target] == scores[target]
    better[query] = False
    return int(better.sum()) < K


def fitted_recalls(hits: Mapping[tuple[bool, int], Hits]) -> dict[float, float]:
    """Return Recall@100 in percent by kappa, the mean over buckets, on the half that kappa is fitted on."""
    return {
        kappa: 100 * float(np.mean([np.mean(one.blends[kappa]) for (fitted, _), one in hits.items() if fitted]))
        for kappa in KAPPAS
    }


def fit(recalls: Mapping[float, float]) -> float:
    """Return the largest kappa whose recall is within TOLERANCE of the best: the smaller kappa is, the more easily a
    single reader can push a note."""
    return max(kappa for kappa, recall in recalls.items() if recall >= max(recalls.values()) - TOLERANCE)


def rows(hits: Mapping[tuple[bool, int], Hits], recalls: Mapping[float, float], kappa: float) -> list[Row]:
    tried = ", ".join(f"{tried:g}: {recall:.1f}" for tried, recall in recalls.items())
    made = [row("kappa", kappa, spread=f"Recall@100 by kappa on the fitting half: {tried}")]
    for (_, bucket), one in sorted((key, one) for key, one in hits.items() if not key[0]):
        content, behaviour, blend = (
            100 * float(np.mean(values)) for values in (one.content, one.behaviour, one.blends[kappa])
        )
        made.append(
            row(
                f"Recall@100 of the blend, queries with ≥ {bucket} clicks (below the next row)",
                round(blend, 1),
                f"% of {len(one.content)} queries",
                against=f"content only {content:.1f}, behaviour only {behaviour:.1f}",
                target="≥ both",
                met=round(blend, 1) >= round(max(content, behaviour), 1),
            )
        )
    return made


def draw(hits: Mapping[tuple[bool, int], Hits], kappa: float, path: Path) -> None:
    """Draw Recall@100 against the clicks of the query as a PNG file."""
    from matplotlib.figure import Figure

    buckets = sorted((key[1], one) for key, one in hits.items() if not key[0])
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, values in (
        ("content", [one.content for _, one in buckets]),
        ("behaviour", [one.behaviour for _, one in buckets]),
        ("blend", [one.blends[kappa] for _, one in buckets]),
    ):
        axes.plot([max(bucket, 0.5) for bucket, _ in buckets], [100 * np.mean(one) for one in values], "o-", label=name)
    axes.set(
        xscale="log", xlabel="clicks of the note so far (first point: none)", ylabel="Recall@100 of next clicks, %"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    os.nice(NICENESS)
    notes = read_notes(arguments.data / NOTES_FILE)
    with gzip.open(arguments.data / CLICKS_FILE) as lines:
        clicks = in_time_order([json.loads(line) for line in lines])
    hits = measure(TfIdf().related(list(notes.values())), list(notes), clicks, arguments.queries)
    recalls = fitted_recalls(hits)
    kappa = fit(recalls)
    write("blend", rows(hits, recalls, kappa))
    if arguments.plot:
        draw(hits, kappa, arguments.plot)


if __name__ == "__main__":
    main()
