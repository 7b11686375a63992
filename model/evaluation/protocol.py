"""Which pairs a figure counts: the same for every system, and for whoever measures again.

A data set is a folder with notes.jsonl.gz and clicks.jsonl.gz; the names of those that we report are known here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from model.data.pairs import Pair, PairOptions, Split, clicks_by_note, read_pairs, related_pairs, split_of

NOTES_FILE, CLICKS_FILE = "notes.jsonl.gz", "clicks.jsonl.gz"
COLD_COLD, COLD_ALL = "cold-cold", "cold-all"
PROTOCOLS = (COLD_COLD, COLD_ALL)
"""A note of the split for another one of it, among the split; for any note, among all: what a new post meets."""

PAIR_OPTIONS: Mapping[str, PairOptions] = {
    # 0.3: more than one user speaks, of whom the least active has five clicks.
    "microlens50k": PairOptions(lower=0.3, top=1000),
    # Histories have hundreds of films: a window keeps a pair to a few sittings.
    "movielens_tmdb": PairOptions(min_rating=4, window=50, lower=0, top=10),
}
"""What is not named here has the paper's bounds (section 3)."""


def evaluation_pairs(
    folder: Path, split: Split, protocols: Sequence[str], progress: Callable[[str], None] = lambda message: None
) -> tuple[dict[str, list[Pair]], dict[str, int]]:
    """By protocol, the pairs of a data set that start in `split`; and the clicks of each note, for its exposure.

    In cold-cold the pairs are of that split's notes alone before the best of each are kept. Both empty for a data set
    without clicks. Raises PairsError for bad clicks.
    """
    clicks = folder / CLICKS_FILE
    if not clicks.is_file():
        return {}, {}
    options = PAIR_OPTIONS.get(folder.resolve().name, PairOptions())
    with tempfile.TemporaryDirectory() as name:
        found = {}
        for protocol in protocols:
            of = replace(options, split=split if protocol == COLD_COLD else "all")
            related_pairs(clicks, Path(name) / "pairs.parquet", of, progress=progress)
            made = read_pairs(Path(name) / "pairs.parquet")
            found[protocol] = [pair for pair in made if split_of(pair.note) == split]
    return found, clicks_by_note(clicks, options)
