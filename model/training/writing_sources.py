"""Sources of the notes that teach to write: notes files with their shares, and our labelled lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from model.data.dataset import read_notes
from model.data.labelled_lines import labelled_notes
from model.data.pairs import Split, split_of
from model.note import Note
from model.weights import Progress, silent

LINES = "lines"
"""Name of the source with the notes of model/data/lines."""


def parse_shares(texts: Sequence[str]) -> Iterator[tuple[str, Path, float]]:
    """Yield name, path and share of each FILE=SHARE; the name is the file's without its extensions.

    Raises ValueError for a share that is not a number, and for a name that another file has or that equals LINES.
    """
    names = {LINES}
    for text in texts:
        path, _, share = text.rpartition("=")
        name = Path(path).name.split(".")[0]
        if name in names:
            raise ValueError(f"{path}: another source is already called {name}; rename the file")
        names.add(name)
        yield name, Path(path), float(share)


def read_sources(
    files: Mapping[str, Path], split: Split, progress: Progress = silent, *, language: str = "en"
) -> dict[str, list[Note]]:
    """Read the notes of one split, by source; LINES are our labelled lines in `language`. Notes of nothing but
    hashtags are left out: they would teach to write popular hashtags for an empty note.

    `progress` gets the fields of each file, as from `read_notes`, how many notes are left out, and a warning where no
    note of a file has hashtags. Raises as `read_notes` does.
    """
    sources = {}
    for name, path in files.items():
        notes = read_notes(path, progress).values()
        if notes and not any(note.hashtags for note in notes):
            progress(f"{path}: no note has hashtags, so each of them teaches to write none; they must be in `hashtags`")
        of_split = [note for note in notes if split_of(note.id) == split]
        sources[name] = [note for note in of_split if note.title or note.content or not note.hashtags]
        if empty := len(of_split) - len(sources[name]):
            progress(f"{path}: {empty:,} notes of the {split} split have hashtags alone and are left out")
    return sources | {LINES: [note for note in labelled_notes(language) if split_of(note.id) == split]}
