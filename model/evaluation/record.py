"""Evaluation records: ranks and choices, from which tables and paired tests are made. They hold no text of the data.

A record is stored as JSON with the names of these fields, so none may be renamed. A new field needs a default, or
stored records that lack it cannot be read, such as those from before `Ranks.targets`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from model.data.pairs import Split
from model.evaluation.metrics import (
    EXPOSURES,
    accuracy,
    expected_calibration_error,
    illusory_share,
    macro_f1,
    mean_reciprocal_rank,
    recall_at,
    recall_by_exposure,
)
from model.whole_file import whole_file

CUTOFFS = (10, 100, 1000)
"""Values of k at which recall of related notes is reported."""
HashtagSource = Literal["written", "known", "grounded", "copied", "copied, tuned"]
"""Origin of the hashtags that a record measures."""
HASHTAG_CUTOFFS = (1, 3, 5)
"""Values of k at which hashtags are scored; the last is the number requested."""
EXPOSURE_CUTOFF = 100
"""Value of k at which recall is split by the target's clicks, as in the paper."""
INVENTED = -1
"""Index that stands for no category of the closed set: one that was freely written outside of it, or none at all."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Pairs of one protocol, in the order of (note, related): lists of the same length.

    `ranks`: rank of the target, 1 for the best. `queries`, `targets`: index of the pair's query among the queries, and
    of its target among the targets, each sorted by id. `exposures`: the target's group by clicks, an index into
    EXPOSURES; empty if clicks are unknown.
    """

    ranks: list[int]
    queries: list[int]
    targets: list[int]
    exposures: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Categories:
    """Notes with a category, in the order of ids. Categories are indices into the closed set, or INVENTED.

    `truth`: the note's own. `chosen`: the likeliest of the closed set, with its `probability`. `free`: the one that the
    system writes without a closed set, None if it cannot.
    """

    truth: list[int]
    chosen: list[int]
    probability: list[float]
    free: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Hashtags:
    """Notes with hashtags, in the order of ids; a list for each note.

    `f1`, `precision`, `recall`: at each of HASHTAG_CUTOFFS. `rouge`: ROUGE-1, 2 and L of the predicted hashtags, joined
    by spaces, against the note's own. `unused`: number of predicted hashtags that no training note has, and number of
    all predicted ones.
    """

    f1: list[list[float]]
    precision: list[list[float]]
    recall: list[list[float]]
    rouge: list[list[float]]
    unused: list[list[int]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One system on one split of one data set. A part that was not measured, or cannot be, is None or empty.

    `with_hashtags`: whether the system saw the notes' hashtags. `seconds_per_note`: time to embed or index the pool.
    `related`: by protocol. `hashtags_from`: where `hashtags` come from: written under the policy "open" ("written"),
    "known" or "grounded", or copied from the nearest training notes (model/baselines/hashtags.py).
    """

    system: str
    data: str
    split: Split
    with_hashtags: bool
    seconds_per_note: float | None = None
    related: Mapping[str, Ranks] = field(default_factory=dict)
    categories: Categories | None = None
    hashtags: Hashtags | None = None
    hashtags_from: HashtagSource = "written"

    def summary(self) -> dict[str, Any]:
        """Return the means of the record, shares in [0, 1], in the form of `notellm evaluate --json`; missing parts are
        None."""
        ranks = {protocol: np.array(related.ranks) for protocol, related in self.related.items()}
        recall = {protocol: {str(k): recall_at(of_pairs, k) for k in CUTOFFS} for protocol, of_pairs in ranks.items()}
        return {
            "recall": recall or None,
            "mrr": {protocol: mean_reciprocal_rank(of_pairs) for protocol, of_pairs in ranks.items()} or None,
            "pairs": {protocol: len(of_pairs) for protocol, of_pairs in ranks.items()} or None,
            "recall_by_exposure": {p: _recall_by_exposure(related) for p, related in self.related.items()} or None,
            "category": self.categories and _category_summary(self.categories),
            "hashtags": self.hashtags and _hashtag_summary(self.hashtags),
            "notes_per_second": self.seconds_per_note and 1 / self.seconds_per_note,
        }

    def write(self, path: Path, origin: Mapping[str, str]) -> None:
        """Write the record atomically as one line of JSON, after the fields of `origin`; creates the folder. Raises
        OSError."""
        with whole_file(path) as file:
            file.write((json.dumps({**origin, **asdict(self)}) + "\n").encode())


def _recall_by_exposure(related: Ranks) -> dict[str, float] | None:
    """Return the recall of the pairs of each exposure group; None if clicks are unknown or a group has no pair."""
    ranks, groups = np.array(related.ranks), np.array(related.exposures)
    if set(related.exposures) != set(range(len(EXPOSURES))):
        return None
    return recall_by_exposure(ranks, groups, EXPOSURE_CUTOFF)


def _category_summary(categories: Categories) -> dict[str, float | None]:
    truth, chosen, free = categories.truth, categories.chosen, categories.free
    return {
        "notes": len(truth),
        "accuracy_free": None if free is None else accuracy(free, truth),
        "accuracy_constrained": accuracy(chosen, truth),
        "macro_f1": macro_f1(chosen, truth),
        "illusory": None if free is None else illusory_share(free, set(free) - {INVENTED}),
        "ece": expected_calibration_error(np.array(categories.probability), np.equal(truth, chosen)),
    }


def _hashtag_summary(hashtags: Hashtags) -> dict[str, float | None]:
    scores = {"f1": hashtags.f1, "precision": hashtags.precision, "recall": hashtags.recall}
    by_cutoff = {
        f"{name}@{k}": float(mean)
        for name, rows in scores.items()
        for k, mean in zip(HASHTAG_CUTOFFS, np.mean(rows, axis=0), strict=True)
    }
    rouges = dict(zip(("rouge1", "rouge2", "rougeL"), np.mean(hashtags.rouge, axis=0).tolist(), strict=True))
    unused, predicted = np.sum(hashtags.unused, axis=0) if hashtags.unused else (0, 0)
    unused_share = float(unused / predicted) if predicted else None
    return {"notes": len(hashtags.f1), **by_cutoff, **rouges, "unused": unused_share}
