"""Evaluation protocols: which related pairs count, with options fixed for each data set.

A data set is a folder with notes.jsonl.gz and clicks.jsonl.gz, identified by the folder's name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from model.data.pairs import (
    DEFAULT_MEMORY,
    PairOptions,
    Split,
    clicks_by_note,
    related_pairs,
    split_of,
)
from model.data.pairs_file import Pair, read_pairs

NOTES_FILE, CLICKS_FILE = "notes.jsonl.gz", "clicks.jsonl.gz"
COLD_COLD, COLD_ALL = "cold-cold", "cold-all"
PROTOCOLS = (COLD_COLD, COLD_ALL)
"""Queries are notes of the split. Cold-cold: the targets and the pool are notes of the split too, as in the paper.
Cold-all: the targets and the pool are all notes, as for a new post."""

PAIR_OPTIONS: Mapping[str, PairOptions] = {
    # Users have at least five clicks, so a pair with a score of 0.3 comes from at least two users.
    "microlens50k": PairOptions(lower=0.3, top=1000),
    # Histories have hundreds of films: the window restricts a pair to a few sittings.
    "movielens_tmdb": PairOptions(min_rating=4, window=50, lower=0, top=10),
}
"""Options by data set; other data sets use the paper's (section 3)."""


def notes_path(data: Path) -> Path:
    """Return the path of the notes in a data folder; any path other than a folder is taken as the notes file itself."""
    return data / NOTES_FILE if data.is_dir() else data


def evaluation_pairs(
    folder: Path,
    split: Split,
    protocols: Sequence[str],
    progress: Callable[[str], None] = lambda message: None,
    *,
    memory: str = DEFAULT_MEMORY,
    max_history: int | None = None,
) -> tuple[dict[str, list[Pair]], dict[str, int]]:
    """Make the pairs of a data set that start in `split`, by protocol, and count the clicks of each note.

    In cold-cold the pairs are restricted to the split before the best of each note are kept. Pairs that only a tie
    would choose are left out (docs/decisions/0039-ties.md). `memory`, `max_history`:
    bounds of the join, as for `related_pairs`; `max_history` drops pairs. Both results are empty for a data set without
    clicks. Raises PairsError for clicks that cannot be used.
    """
    clicks = folder / CLICKS_FILE
    if not clicks.is_file():
        return {}, {}
    options = PAIR_OPTIONS.get(folder.resolve().name, PairOptions())
    pairs = {}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "pairs.parquet"
        for protocol in protocols:
            pairs_split = split if protocol == COLD_COLD else "all"
            protocol_options = replace(options, split=pairs_split, max_history=max_history, drop_ties=True)
            related_pairs(clicks, path, protocol_options, memory=memory, progress=progress)
            pairs[protocol] = [pair for pair in read_pairs(path) if split_of(pair.note) == split]
    return pairs, clicks_by_note(clicks, options, memory)
