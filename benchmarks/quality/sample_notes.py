"""What a checkpoint writes for our own sample notes that training did not see, and for categories that it never saw.

.venv/bin/python benchmarks/quality/sample_notes.py [CHECKPOINT]

Prints hashtags and category of 20 notes, to be judged by eye, and how often the right category is chosen, also out of
twelve unseen names.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from benchmarks.harness.report import ROOT, row, write
from model.data.dataset import read_notes
from model.data.pairs import split_of
from model.evaluation.evaluate import evaluate_categories
from model.evaluation.system import EngineSystem
from model.generation import GenerationOutput, GenerationRequest
from model.inference.engine import Engine
from model.note import Note
from service.settings import Settings

SHOWN = 20
UNSEEN = {
    "Travel": "Trips and places",
    "Food": "Recipes and restaurants",
    "Fashion": "Outfits",
    "Beauty": "Skincare and makeup",
    "Fitness": "Workouts",
    "Home": "Interior design",
    "Pets": "Cats and dogs",
    "Parenting": "Family life",
    "Tech": "Gadgets",
    "Reading": "Books",
    "Gaming": "Video games",
    "Outdoors": "Hiking and camping",
}
"""Our sample notes' categories by names that no training data has."""


def show(engine: Engine, notes: list[Note]) -> None:
    bare = [replace(note, hashtags=()) for note in notes]
    readings = engine.generate(bare, GenerationRequest(hashtags=5, categories=engine.categories))
    by_unseen = engine.generate(bare, GenerationRequest(categories=tuple(UNSEEN.values())))
    print("| title | written hashtags | category | its own | among the unseen | its own |\n|---|---|---|---|---|---|")
    for note, reading, other in zip(notes, readings, by_unseen, strict=True):
        written = " ".join(f"#{h.text}" for h in reading.hashtags or ())
        own = UNSEEN.get(note.category or "", "none of them")
        print(f"| {note.title} | {written} | {best(reading)} | {note.category} | {best(other)} | {own} |")


def best(reading: GenerationOutput) -> str:
    first = (reading.categories or ())[0]
    return f"{first.name} {first.probability:.2f}"


def main() -> None:
    engine = Engine.load(sys.argv[1] if len(sys.argv) > 1 else None, cache=Settings().cache_dir)
    notes = [n for i, n in read_notes(ROOT / "service" / "sample_notes.jsonl").items() if split_of(i) != "train"]
    show(engine, notes[:: max(1, len(notes) // SHOWN)][:SHOWN])
    with_category_synonym = [
        replace(n, category=UNSEEN[n.category], hashtags=()) for n in notes if n.category in UNSEEN
    ]
    rows = []
    for what, asked, names in (
        ("its own twenty categories", [replace(n, hashtags=()) for n in notes], engine.categories),
        ("twelve categories that no training data names", with_category_synonym, tuple(UNSEEN.values())),
    ):
        found = evaluate_categories(EngineSystem(engine), asked, names)
        assert found is not None
        right = sum(a == b for a, b in zip(found.truth, found.chosen, strict=True))
        rows.append(row(what, round(100 * right / len(found.truth), 1), "%", spread=f"{right} of {len(found.truth)}"))
    write("sample_notes", rows)


if __name__ == "__main__":
    main()
