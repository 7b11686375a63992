"""Texts recombined from a community's notes, without clicks, on which to distil a teacher's similarities.

    python -m model.data.recombined_notes --notes FILE --out FILE [--texts N] [--seed N]

writes the notes and N additional texts to one gzipped notes file. A teacher has vectors for any text; its vectors of
texts similar to a community's teach a model more of it than the community's notes alone (docs/guides/training.md).

Texts are made from training notes only, and their ids put them in the training split.
"""

from __future__ import annotations

import argparse
import gzip
import random
from collections.abc import Collection, Iterator, Sequence
from itertools import count, islice
from pathlib import Path

from model.count_option import at_least_one
from model.data.corpora import note_line
from model.data.dataset import DatasetError, read_notes
from model.data.pairs import split_of
from model.note import Note
from model.whole_file import whole_file

ID_PREFIX = "recombined-"
"""Prefix of the id of each text."""
JOINED_SHARE = 0.5
"""Share of the texts whose title joins the beginning and the end of two notes' titles; the others vary one title."""
LEFT_OUT_SHARE = REPLACED_SHARE = 0.15
"""Share of a varied title's words that are left out, and share that is replaced by a word from another note."""
OWN_HASHTAGS_SHARE = 0.5
"""Share of the texts with the hashtags of the note that their title begins with; the others have another note's."""


def recombine(notes: Sequence[Note], rng: random.Random) -> Note:
    """Make one text, without an id, from the titles, contents and hashtags of notes drawn at random."""
    first, second = rng.choice(notes), rng.choice(notes)
    words, other_words = first.title.split(), second.title.split()
    if rng.random() < JOINED_SHARE:
        title = [*words[: (len(words) + 1) // 2], *other_words[len(other_words) // 2 :]]
    else:
        title = list(_varied(words, other_words, rng)) or words
    hashtags = (first if rng.random() < OWN_HASHTAGS_SHARE else second).hashtags
    return Note(title=" ".join(title), content=first.content, hashtags=hashtags)


def _varied(words: Sequence[str], others: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Yield `words`, with some left out and some replaced by one of `others`."""
    for word in words:
        draw = rng.random()
        if draw >= LEFT_OUT_SHARE + REPLACED_SHARE or not others:
            yield word
        elif draw >= LEFT_OUT_SHARE:
            yield rng.choice(others)


def training_ids(taken: Collection[str]) -> Iterator[str]:
    """Yield ids of the training split without end, except those in `taken`."""
    names = (f"{ID_PREFIX}{n}" for n in count())
    return (name for name in names if name not in taken and split_of(name) == "train")


def write_with_texts(notes_file: Path, out: Path, texts: int, seed: int) -> None:
    """Write the notes of `notes_file` and `texts` additional ones. The file is written atomically.

    Raises DatasetError for a notes file that cannot be read, or that has no training notes, FileNotFoundError for a
    missing one, and OSError where `out` cannot be written.
    """
    notes = read_notes(notes_file)
    training_notes = [
        note for note in notes.values() if (note.title + note.content).strip() and split_of(note.id) == "train"
    ]
    if not training_notes:
        raise DatasetError(f"{notes_file} has no notes with a text in the training split")
    rng = random.Random(seed)
    with whole_file(out) as packed, gzip.open(packed, "wt", encoding="utf-8") as file:
        file.writelines(note_line(note.id, note) for note in notes.values())
        file.writelines(note_line(name, recombine(training_notes, rng)) for name in islice(training_ids(notes), texts))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = argparse.ArgumentParser(description="Create texts from parts of a community's notes.")
    parser.add_argument("--notes", type=Path, required=True, help="notes file of the community, JSONL or .gz")
    parser.add_argument(
        "--out", type=Path, required=True, help="gzipped notes file to write, with the notes and the texts"
    )
    parser.add_argument("--texts", type=at_least_one, default=20_000, help="number of texts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choice (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.out.suffix != ".gz":
        parser.error(f"--out: {options.out} must end in .gz: the file is compressed")
    try:
        write_with_texts(options.notes, options.out, options.texts, options.seed)
    except (DatasetError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
