"""Prints the hashtags and category that a checkpoint gives to sixty notes of ours, to be judged as a user would.

    python -m benchmarks.quality.judgement [CHECKPOINT] [--before CHECKPOINT]

A third of the notes are plain lifestyle notes, the others are short, foreign, hostile or vague. The Markdown table has
hashtags with their scores by the policies open and grounded (in the hashtags of our sample notes that training saw),
and the best category. With --before it has three hashtags without scores: the earlier checkpoint's by the default
policy, and the other's by the default policy and by open. No figure is computed; docs/log/ has our conclusions.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.report import markdown_table
from model.data.dataset import read_notes
from model.data.pairs import split_of
from model.evaluation.system import EngineSystem
from model.generation import GenerationOutput, GenerationRequest, HashtagPolicy
from model.inference.engine import Engine
from model.note import Note
from service import SAMPLES
from service.settings import Settings

JUDGEMENT_NOTES = Path(__file__).parent / "judgement_notes.jsonl"
"""Written for this project and kept out of training; the id says what is hard about a note."""
HASHTAGS = 5
COMPARED_HASHTAGS = 3
"""Hashtags of each checkpoint in the table that compares two."""
DEFAULT_POLICY: HashtagPolicy = Settings.model_fields["hashtag_policy"].default
MAX_TEXT, MAX_COMPARED_TEXT = 60, 40
"""Characters of a note that the table shows, and of its title or content in the table that compares two checkpoints."""


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
    """Return the hashtags with their scores on one line, or the reason why there are none."""
    scored = [f"#{hashtag.text} {hashtag.score:.2g}" for hashtag in output.hashtags or ()]
    return " ".join(scored) or f"none: {output.hashtags_reason}"


def shown_text(text: str, length: int) -> str:
    """Return the first `length` characters of a text on one line, with HTML escaped."""
    return html.escape(text.replace("\n", " ")[:length], quote=False)


def table(engine: Engine, notes: Sequence[Note], known: Sequence[Note]) -> str:
    """Return the Markdown table of the hashtags and categories of `notes`; neighbours are taken from `known`."""
    lines = []
    opened, grounded = (outputs(engine, notes, policy, known) for policy in ("open", "grounded"))
    for note, written, reranked in zip(notes, opened, grounded, strict=True):
        text = shown_text(f"{note.title} / {note.content}".strip(" /"), MAX_TEXT)
        best = next(iter(written.categories or ()), None)
        category = f"{best.name} {best.probability:.2f}" if best else "none"
        lines.append([note.id, text, hashtag_text(written), hashtag_text(reranked), category])
    return markdown_table(["note", "text", "open", "grounded", "category"], lines)


def first_words(output: GenerationOutput) -> str:
    """Return the first hashtags without their scores, or "none"."""
    return ", ".join(hashtag.text for hashtag in (output.hashtags or ())[:COMPARED_HASHTAGS]) or "none"


def comparison(before: Engine, now: Engine, notes: Sequence[Note], known: Sequence[Note]) -> str:
    """Return the Markdown table of two checkpoints' hashtags for `notes`; neighbours are taken from `known`."""
    columns = [
        outputs(engine, notes, policy, known)
        for engine, policy in ((before, DEFAULT_POLICY), (now, DEFAULT_POLICY), (now, "open"))
    ]
    lines = [
        [shown_text(note.title or note.content, MAX_COMPARED_TEXT), *map(first_words, hashtags)]
        for note, *hashtags in zip(notes, *columns, strict=True)
    ]
    return markdown_table(["note", f"before, {DEFAULT_POLICY}", f"now, {DEFAULT_POLICY}", "now, open"], lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Print hashtags and categories of the judgement notes.")
    parser.add_argument("checkpoint", nargs="?", help="the shipped one by default")
    parser.add_argument("--before", help="an earlier checkpoint, to print both side by side")
    options = parser.parse_args(arguments)
    cache = Settings().cache_dir
    engine = Engine.load(options.checkpoint, cache=cache)
    known = [note for note_id, note in read_notes(SAMPLES).items() if split_of(note_id) == "train"]
    if options.before:
        print(comparison(Engine.load(options.before, cache=cache), engine, judged_notes(), known))
    else:
        print(table(engine, judged_notes(), known))


if __name__ == "__main__":
    main()
