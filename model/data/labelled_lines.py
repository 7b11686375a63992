"""Notes with hashtags and category, written for this project and labelled by hand, in addition to an encoder's labels.

    python -m model.data.labelled_lines FILE

writes the English ones as a notes file to fit a category head to (`notellm fit-categories`).

`lines/en` and `lines/zh` have the notes of a language: a file of each category, such as travel.txt, and no_category.txt
for other subjects and for notes that say nothing. A line is `title // content | hashtags`, with the most fitting
hashtag first; content and hashtags may be missing. None of these notes is in
service/sample_notes.jsonl or in the judgement set of benchmarks/quality.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from model.config import DEFAULT_CATEGORIES
from model.data.pairs import Split, split_of
from model.note import Note, normalise_hashtags
from model.whole_file import whole_file

LINES = Path(__file__).parent / "lines"
LANGUAGES = tuple(sorted(folder.name for folder in LINES.iterdir()))
NO_CATEGORY = "no_category"
HELD_OUT = 10
"""Every tenth line of a file belongs to the validation split, all others to the train split."""


def labelled_notes(language: str = "en") -> Iterator[Note]:
    """Yield the notes of one of LANGUAGES, with ids of their splits; a note without hashtags should get none."""
    return notes_of_lines(LINES / language)


def notes_of_lines(folder: Path) -> Iterator[Note]:
    """Yield the notes of a folder of lines, with ids of their splits."""
    for path in sorted(folder.glob("*.txt")):
        category = None if path.stem == NO_CATEGORY else path.stem.capitalize()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            text, _, tags = line.partition("|")
            title, _, content = text.partition(" // ")
            yield Note(
                id=id_in_split(f"{path.stem}-{number}", "train" if number % HELD_OUT else "validation"),
                title=title.strip(),
                content=content.strip(),
                hashtags=normalise_hashtags(tags.split(",")),
                category=category,
            )


def category_examples() -> Iterator[Note]:
    """Yield the notes that have a category, and each training note that says nothing once under every one of
    DEFAULT_CATEGORIES: a head fitted to them finds no category likely for such a note (docs/log/categories.md)."""
    for note in labelled_notes():
        if note.category is not None:
            yield note
        elif not note.hashtags and split_of(note.id) == "train":
            for category in DEFAULT_CATEGORIES:
                yield replace(note, id=id_in_split(f"{note.id}-{category}", "train"), category=category)


def id_in_split(name: str, split: Split) -> str:
    """Return the first of the ids name-0, name-1, ... that belongs to a split."""
    return next(note_id for note_id in (f"{name}-{number}" for number in count()) if split_of(note_id) == split)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = argparse.ArgumentParser(description="Write our labelled English notes to a file, to fit a category head.")
    parser.add_argument("file", type=Path, help="notes file to write, JSONL")
    with whole_file(parser.parse_args(arguments).file) as file:
        for note in category_examples():
            fields = {"id": note.id, "title": note.title, "content": note.content, "category": note.category}
            file.write((json.dumps(fields) + "\n").encode())


if __name__ == "__main__":
    main()
