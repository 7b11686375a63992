"""A sentence encoder as a teacher of writing: the command that labels a corpus with hashtags and categories.

    python -m model.baselines.encoder_labels FOLDER --wordnet FOLDER --out FOLDER [--encoder mpnet] [--source NAME]

reads the notes of FOLDER that have the encoder's vectors (model.baselines.encoder_teacher) and writes notes files of
the same names to --out, each note with its labels (model/data/pseudo_labels.py); notes without labels are left out. It
also writes categories.jsonl.gz, with about the same number of notes per category, for `notellm fit-categories`; a note
has the same id, and so the same split, in both files. A progress bar is on standard error.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from model.baselines.encoder import SentenceEncoder
from model.baselines.encoder_teacher import add_encoder_options, embed_in_bfloat16, encoder_of
from model.config import CheckpointError
from model.count_option import at_least_one
from model.data.corpora import write_notes
from model.data.dataset import DatasetError, read_notes
from model.data.pseudo_labels import Floats, PseudoLabeller
from model.data.tag_vocabulary import TagVocabulary, build_vocabulary
from model.note import Note
from model.training.corpus_vectors import read_corpus_vectors

UNUSED_SOURCES = ("samples",)
"""Sources that are not labelled: the sample notes already have hashtags and categories."""
SOURCE_CATEGORIES: Mapping[str, str] = {"recipes": "Food", "debian": "Tech"}
"""Category of a source's notes where the labeller finds none."""
CATEGORIES_FILE = "categories.jsonl.gz"
MAX_NOTES_PER_CATEGORY = 300
"""Maximum notes of a category in categories.jsonl.gz. Most reach it; packages and recipes have thousands."""
HUB_SAMPLE = 2000
"""Notes of each source by which the hubness of tags is estimated."""
TAGS_PER_STEP = 2048
"""Tags that are embedded between two steps of the progress bar."""


def embed_tags(encoder: SentenceEncoder, progress: Progress, tags: Sequence[str]) -> Floats:
    """Unit vectors (len(tags), K) of tags. `progress` shows how many are embedded until all are."""
    task = progress.add_task(f"vectors of {len(tags):,} tags", total=len(tags))
    vectors: list[Floats] = []
    for start in range(0, len(tags), TAGS_PER_STEP):
        notes = [Note(title=tag) for tag in tags[start : start + TAGS_PER_STEP]]
        vectors.append(embed_in_bfloat16(encoder, notes))
        progress.advance(task, len(notes))
    progress.remove_task(task)
    return np.concatenate(vectors)


def balanced(notes: Sequence[Note], count: int = MAX_NOTES_PER_CATEGORY) -> list[Note]:
    """Draw at most `count` notes of each category at random."""
    by_category: dict[str, list[Note]] = defaultdict(list)
    for note in random.Random("categories").sample(notes, len(notes)):
        if note.category is not None and len(by_category[note.category]) < count:
            by_category[note.category].append(note)
    return [note for drawn in by_category.values() for note in drawn]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = argparse.ArgumentParser(description="Label the notes of a corpus with hashtags and categories.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wordnet", type=Path, required=True, help="folder of WordNet's data files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", action="append", help="may be repeated; by default all but the sample notes")
    parser.add_argument("--threads", type=at_least_one, default=2)
    add_encoder_options(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        vocabulary = build_vocabulary(options.wordnet)
        encoder = encoder_of(options)
        console = Console(stderr=True)
        with Progress(console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
            label_sources(options, vocabulary, encoder, progress)
    except (CheckpointError, DatasetError, ModuleNotFoundError, OSError) as error:
        parser.exit(1, f"{error}\n")


def label_sources(
    options: argparse.Namespace, vocabulary: TagVocabulary, encoder: SentenceEncoder, progress: Progress
) -> None:
    """Write the labelled notes of each source that the options name. Raises DatasetError, OSError."""
    options.out.mkdir(parents=True, exist_ok=True)
    all_sources = sorted(path.name.removesuffix(".jsonl.gz") for path in options.folder.glob("*.jsonl.gz"))
    sources = options.source or [source for source in all_sources if source not in UNUSED_SOURCES]
    texts = {source: read_corpus_vectors(options.folder, encoder.name, source) for source in sources}
    if not texts:
        raise DatasetError(f"{options.folder} has no notes files")
    sample = np.concatenate([vectors[:HUB_SAMPLE] for _, vectors in texts.values()]).astype(np.float32)
    labeller = PseudoLabeller(vocabulary, partial(embed_tags, encoder, progress), sample)
    for source, (notes, vectors) in texts.items():
        default = SOURCE_CATEGORIES.get(source)
        labelled = progress.track(
            labeller.label(notes, vectors.astype(np.float32)), len(notes), description=f"{source}: {len(notes):,} notes"
        )
        tagged = (note for note in labelled if note.hashtags)
        kept = [
            replace(note, id=f"{source}-{number}", category=note.category or default)
            for number, note in enumerate(tagged, 1)
        ]
        write_notes(options.out / f"{source}.jsonl.gz", kept)
        print(f"{source}: {len(kept):,} of {len(notes):,} notes have labels", flush=True)
    # Of all sources that have been labelled, also where `--source` has named one that is labelled anew.
    labelled_files = sorted(path for path in options.out.glob("*.jsonl.gz") if path.name != CATEGORIES_FILE)
    all_kept = [note for path in labelled_files for note in read_notes(path).values()]
    write_notes(options.out / CATEGORIES_FILE, balanced(all_kept))


if __name__ == "__main__":
    main()
