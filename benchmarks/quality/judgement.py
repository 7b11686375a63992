"""Prints hashtags and category of a checkpoint for sixty notes of ours, to be judged as a user would.

    python -m benchmarks.quality.judgement [CHECKPOINT]

A third of them are plain lifestyle notes, the others are short, foreign, hostile or vague. The Markdown table has
hashtags with their scores by the policies open and grounded (in the hashtags of our sample notes that training saw),
and the best category. No figure comes of it; docs/log/writing.md says what we thought.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.report import markdown_table
from model.data.dataset import read_notes
from model.data.pairs import split_of
from model.evaluation.system import EngineSystem
from model.generation import GenerationOutput, GenerationRequest, HashtagPolicy
from model.inference.engine import Engine
from model.note import Note
from service.samples import SAMPLES
from service.settings import Settings

JUDGEMENT_NOTES = Path(__file__).parent / "judgement_notes.jsonl"
"""Written for this project and kept out of training; the id says what is hard about a note."""
HASHTAGS = 5
MAX_TEXT = 60
"""Characters of a note that the table shows."""


def judged_notes() -> list[Note]:
    """Return the notes in the order of the file."""
    return list(read_notes(JUDGEMENT_NOTES).values())


def outputs(
    engine: Engine, notes: Sequence[Note], policy: HashtagPolicy, known: Sequence[Note]
) -> list[GenerationOutput]:
    """Generate hashtags and category of each note under a policy."""
    request = EngineSystem(engine, policy, known).hashtag_request(HASHTAGS)
    return engine.generate(
        notes, GenerationRequest(HASHTAGS, engine.categories, find_neighbours=request.find_neighbours)
    )


def hashtag_text(output: GenerationOutput) -> str:
    """Hashtags with their scores on one line, or the reason for none."""
    scored = [f"#{hashtag.text} {hashtag.score:.2g}" for hashtag in output.hashtags or ()]
    return " ".join(scored) or f"none: {output.hashtags_reason}"


def table(engine: Engine, notes: Sequence[Note], known: Sequence[Note]) -> str:
    """Return the Markdown table of what is told for `notes`; those of `known` are the neighbours."""
    lines = []
    opened, grounded = (outputs(engine, notes, policy, known) for policy in ("open", "grounded"))
    for note, written, reranked in zip(notes, opened, grounded, strict=True):
        text = " / ".join(part for part in (note.title, note.content) if part).replace("\n", " ")[:MAX_TEXT]
        best = next(iter(written.categories or ()), None)
        category = f"{best.name} {best.probability:.2f}" if best else "none"
        lines.append([note.id, text, hashtag_text(written), hashtag_text(reranked), category])
    return markdown_table(["note", "text", "open", "grounded", "category"], lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Print what a checkpoint tells for the judgement notes.")
    parser.add_argument("checkpoint", nargs="?", help="the shipped one by default")
    options = parser.parse_args(arguments)
    engine = Engine.load(options.checkpoint, cache=Settings().cache_dir)
    known = [note for note_id, note in read_notes(SAMPLES).items() if split_of(note_id) == "train"]
    print(table(engine, judged_notes(), known))


if __name__ == "__main__":
    main()
