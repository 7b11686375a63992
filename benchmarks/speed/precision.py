"""What fewer bits change: each precision of the engine against float32, on the validation notes of a data set.

.venv/bin/python benchmarks/speed/precision.py DATA/microlens50k

A quarter of an hour on two cores; the notes are read once in each precision.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.report import row, write
from model.data.dataset import read_notes
from model.data.pairs import split_of
from model.evaluation.metrics import recall_at
from model.evaluation.protocol import COLD_COLD, NOTES_FILE, evaluation_pairs
from model.evaluation.ranking import cosine, rank_pairs
from model.generation import GenerationRequest
from model.inference.engine import Engine
from model.inference.openvino.runtime import PRECISIONS
from model.note import Note
from service.settings import Settings

SPLIT = "validation"
WRITTEN = 500
"""Notes of which hashtags and categories are compared."""


class Answers:
    """What an engine of one precision says of the notes."""

    def __init__(self, precision: str, notes: Sequence[Note], pairs: Sequence[tuple[str, str]]) -> None:
        engine = Engine.load(cache=Settings().cache_dir, device="cpu", runtime="openvino", dtype=precision)
        self.vectors = engine.embed(notes)
        self.recall = recall_at(rank_pairs(cosine(self.vectors), [note.id for note in notes], pairs), 100)
        wanted = GenerationRequest(hashtags=5, categories=engine.categories)
        readings = engine.generate(notes[:WRITTEN], wanted)
        self.hashtags = [[hashtag.text for hashtag in reading.hashtags or ()] for reading in readings]
        self.categories = [reading.categories[0].name for reading in readings if reading.categories]


def rows(precision: str, of: Answers, exact: Answers) -> list[dict[str, Any]]:
    cosines = (of.vectors * exact.vectors).sum(1)
    first, all_five, category = (
        np.mean([one == other for one, other in zip(ours, theirs, strict=True)])
        for ours, theirs in (
            ([h[:1] for h in of.hashtags], [h[:1] for h in exact.hashtags]),
            ([set(h) for h in of.hashtags], [set(h) for h in exact.hashtags]),
            (of.categories, exact.categories),
        )
    )
    points = 100 * (of.recall - exact.recall)
    return [
        row(f"{precision}, cosine, mean of {len(cosines):,} notes", f"{cosines.mean():.5f}", "",
            spread=f"least {cosines.min():.4f}", reach="0.999 or more", held=bool(cosines.mean() >= 0.999)),
        row(f"{precision}, Recall@100", round(100 * of.recall, 2), "%", reach="within 0.2 points",
            against=f"float32: {100 * exact.recall:.2f} %, so {points:+.2f} points", held=abs(points) <= 0.2),
        row(f"{precision}, the same first hashtag, of {len(of.hashtags)} notes", f"{first:.1%}", "",
            against=f"all five the same: {all_five:.1%}", reach="95% or more", held=bool(first >= 0.95)),
        row(f"{precision}, the same category", f"{category:.1%}", ""),
    ]  # fmt: skip


def main(data: Path) -> None:
    notes = {i: note for i, note in sorted(read_notes(data / NOTES_FILE).items()) if split_of(i) == SPLIT}
    found, _ = evaluation_pairs(data, SPLIT, [COLD_COLD])
    pairs = [(p.note, p.related) for p in found[COLD_COLD] if p.note in notes and p.related in notes]
    measured = {precision: Answers(precision, list(notes.values()), pairs) for precision in PRECISIONS}
    exact = measured.pop("float32")
    write("exactness", [each for precision, of in measured.items() for each in rows(precision, of, exact)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
