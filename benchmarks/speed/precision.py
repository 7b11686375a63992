"""Effect of fewer bits: each precision of the engine against float32, on the validation notes of a data set.

python -m benchmarks.speed.precision DATA/microlens50k

Takes a quarter of an hour on two cores; every note is read once in each precision.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.inputs import Vectors
from benchmarks.harness.report import Row, row, write
from model.data.dataset import read_notes
from model.data.pairs import Split, split_of
from model.evaluation.metrics import recall_at
from model.evaluation.protocol import COLD_COLD, NOTES_FILE, evaluation_pairs
from model.evaluation.ranking import cosine, rank_pairs
from model.generation import GenerationRequest
from model.inference.engine import Engine
from model.inference.openvino.runtime import PRECISIONS
from model.note import Note
from service.settings import Settings

SPLIT: Split = "validation"
REFERENCE = "float32"
GENERATED_NOTES = 500
"""Notes whose hashtags and categories are compared; generating takes longer than embedding."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs of an engine in one precision: vectors (N, D), Recall@100 of the pairs, and for the first
    GENERATED_NOTES notes their hashtags and likeliest category."""

    vectors: Vectors
    recall: float
    hashtags: list[list[str]]
    categories: list[str]


def measure(data: Path) -> dict[str, Outputs]:
    """Return the outputs for the validation notes of a data set by precision."""
    notes = {i: note for i, note in sorted(read_notes(data / NOTES_FILE).items()) if split_of(i) == SPLIT}
    by_protocol, _ = evaluation_pairs(data, SPLIT, [COLD_COLD])
    pairs = [(p.note, p.related) for p in by_protocol[COLD_COLD] if p.note in notes and p.related in notes]
    return {precision: read(precision, list(notes.values()), pairs) for precision in PRECISIONS}


def read(precision: str, notes: Sequence[Note], pairs: Sequence[tuple[str, str]]) -> Outputs:
    """Read all notes with an engine of one precision."""
    engine = Engine.load(cache=Settings().cache_dir, device="cpu", runtime="openvino", dtype=precision)
    vectors = engine.embed(notes)
    recall = recall_at(rank_pairs(cosine(vectors), [note.id for note in notes], pairs), 100)
    request = GenerationRequest(hashtags=5, categories=engine.categories)
    outputs = engine.generate(notes[:GENERATED_NOTES], request)
    hashtags = [[hashtag.text for hashtag in output.hashtags or ()] for output in outputs]
    return Outputs(vectors, recall, hashtags, [output.categories[0].name for output in outputs if output.categories])


def rows(outputs: Mapping[str, Outputs]) -> list[Row]:
    """Return the rows of the result."""
    reference = outputs[REFERENCE]
    return [
        line
        for precision, reduced in outputs.items()
        if precision != REFERENCE
        for line in precision_rows(precision, reduced, reference)
    ]


def precision_rows(precision: str, reduced: Outputs, reference: Outputs) -> list[Row]:
    cosines = (reduced.vectors * reference.vectors).sum(1)
    first = share_equal([h[:1] for h in reduced.hashtags], [h[:1] for h in reference.hashtags])
    all_five = share_equal([set(h) for h in reduced.hashtags], [set(h) for h in reference.hashtags])
    category = share_equal(reduced.categories, reference.categories)
    points = 100 * (reduced.recall - reference.recall)
    return [
        row(f"{precision}: cosine similarity to {REFERENCE}, mean of {len(cosines):,} notes", f"{cosines.mean():.5f}",
            spread=f"minimum {cosines.min():.4f}", target="≥ 0.999", met=bool(cosines.mean() >= 0.999)),
        row(f"{precision}: Recall@100", round(100 * reduced.recall, 2), "%", target="within 0.2 points",
            against=f"{REFERENCE}: {100 * reference.recall:.2f} %; difference {points:+.2f} points",
            met=abs(points) <= 0.2),
        row(f"{precision}: same first hashtag as {REFERENCE}, {len(reduced.hashtags)} notes", f"{first:.1%}",
            spread=f"all five the same: {all_five:.1%}", target="≥ 95%", met=first >= 0.95),
        row(f"{precision}: same category as {REFERENCE}", f"{category:.1%}"),
    ]  # fmt: skip


def share_equal(left: Sequence[Any], right: Sequence[Any]) -> float:
    """Return the share of positions at which two lists of the same length are equal."""
    return float(np.mean([one == other for one, other in zip(left, right, strict=True)]))


if __name__ == "__main__":
    write("precision", rows(measure(Path(sys.argv[1]))))
