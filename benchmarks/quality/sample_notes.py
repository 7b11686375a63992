"""Hashtags and categories of the test split of our own sample notes, also with category names that training never saw.

python -m benchmarks.quality.sample_notes [CHECKPOINT]

Prints hashtags and category of 20 notes, to be judged by eye, and writes how often the right category is chosen from
the checkpoint's own names and from twelve unseen ones. Notes in a script that the checkpoint does not read are left
out.

The distillation of the shipped checkpoint read 196 of the 200 English sample notes, without their categories. Notes of
the training split taught it hashtags and categories, and notes of the validation split selected the weights of what was
fitted to it afterwards, so only the test split is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.harness.report import Row, markdown_table, row, write
from model.data.dataset import read_notes
from model.evaluation.evaluate import evaluate_categories, notes_of_split
from model.evaluation.system import EngineSystem
from model.generation import GenerationOutput, GenerationRequest
from model.inference.engine import Engine
from model.note import Note
from service import SAMPLES
from service.settings import Settings

SHOWN_NOTES = 20
UNSEEN_NAMES = {
    "Travel": "Trips and places",
    "Food": "Recipes and restaurants",
    "Fashion": "Outfits",
    "Beauty": "Skincare and makeup",
    "Fitness": "Workouts",
    "Home": "Rooms and furniture",
    "Pets": "Cats and dogs",
    "Parenting": "Parents and children",
    "Tech": "Phones and laptops",
    "Reading": "Novels and poems",
    "Gaming": "Consoles and handhelds",
    "Outdoors": "Hiking and camping",
}
"""Names that training does not show, neither as categories nor as hashtags, by category of our sample notes."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Number of notes, and how many of them got their own category."""

    notes: int
    right: int


def measured_notes(supports: Callable[[Note], bool]) -> list[Note]:
    """Return the sample notes of the test split whose script the checkpoint reads, in the order of ids."""
    return [note for note in notes_of_split(read_notes(SAMPLES), "test") if supports(note)]


def measure(engine: Engine, notes: Sequence[Note]) -> tuple[Choices, Choices]:
    """Choose categories from the checkpoint's own names for all notes, and from the unseen names for the notes whose
    category has one. Notes are read without their hashtags."""
    bare = [replace(note, hashtags=()) for note in notes]
    renamed = [replace(note, category=UNSEEN_NAMES[note.category]) for note in bare if note.category in UNSEEN_NAMES]
    return choose(engine, bare, engine.categories), choose(engine, renamed, tuple(UNSEEN_NAMES.values()))


def choose(engine: Engine, notes: Sequence[Note], names: Sequence[str]) -> Choices:
    """Choose each note's category from `names`."""
    categories = evaluate_categories(EngineSystem(engine), notes, names)
    assert categories is not None
    pairs = zip(categories.truth, categories.chosen, strict=True)
    return Choices(len(categories.truth), sum(truth == chosen for truth, chosen in pairs))


def rows(own: Choices, unseen: Choices) -> list[Row]:
    """Return the rows of the result."""
    return [
        choices_row("category accuracy, the checkpoint's twenty names", own),
        choices_row("category accuracy, twelve names that it was not trained on", unseen),
    ]


def choices_row(what: str, choices: Choices) -> Row:
    share = round(100 * choices.right / choices.notes, 1)
    return row(what, share, "%", spread=f"{choices.right} of {choices.notes} notes")


def examples(engine: Engine, notes: Sequence[Note]) -> str:
    """Return a Markdown table of the hashtags and categories that the checkpoint gives to some notes."""
    bare = [replace(note, hashtags=()) for note in notes]
    outputs = engine.generate(bare, GenerationRequest(hashtags=5, categories=engine.categories))
    unseen_outputs = engine.generate(bare, GenerationRequest(categories=tuple(UNSEEN_NAMES.values())))
    lines = []
    for note, output, unseen in zip(notes, outputs, unseen_outputs, strict=True):
        hashtags = " ".join(f"#{hashtag.text}" for hashtag in output.hashtags or ())
        own_unseen = UNSEEN_NAMES.get(note.category or "", "none of them")
        lines.append([note.title, hashtags, best(output), note.category or "", best(unseen), own_unseen])
    return markdown_table(["title", "hashtags", "category", "its own", "out of the unseen", "its own"], lines)


def best(output: GenerationOutput) -> str:
    """Return the likeliest category and its probability as text."""
    first = (output.categories or ())[0]
    return f"{first.name} {first.probability:.2f}"


def main() -> None:
    engine = Engine.load(sys.argv[1] if len(sys.argv) > 1 else None, cache=Settings().cache_dir)
    notes = measured_notes(engine.prompt.supports)
    print(examples(engine, notes[:: max(1, len(notes) // SHOWN_NOTES)][:SHOWN_NOTES]))
    write("sample_notes", rows(*measure(engine, notes)))


if __name__ == "__main__":
    main()
