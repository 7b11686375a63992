"""Input files of a distillation on a card: its recipe, and the files of the corpus that the recipe names."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from model.training.corpus_vectors import digest_path, notes_path, shard_path
from model.training.distil import Distillation
from model.training.token_teacher import TOKENS_FILE

CARD: Mapping[str, Any] = {"threads": 1, "batch": 256, "save_every": 3.0}
"""Defaults of a recipe's fields on a card. The state is saved often, since a run may be cut short."""


def read_recipe(file: Path) -> Distillation:
    """Read a recipe for a card. Raises OSError, ValueError and TypeError for a file that is no recipe."""
    recipe = Distillation(**{**CARD, **tomllib.loads(file.read_text("utf-8"))})
    if not recipe.shares:
        raise ValueError("no source has a share")
    return recipe


def corpus_files(folder: Path, recipe: Distillation) -> list[Path]:
    """Return the files of a corpus that a recipe reads: the notes of each source with a share, each encoder's digest
    and vectors of them, and the token teacher's table if it has a weight. Raises FileNotFoundError for a missing
    file."""
    files = [folder / TOKENS_FILE] if recipe.words else []
    sources = [source for source, share in recipe.shares.items() if share]
    files += [notes_path(folder, source) for source in sources]
    for encoder, source in product(recipe.teachers, sources):
        shards = sorted((folder / encoder).glob(f"{source}.[0-9]*.npy"))
        files += [digest_path(folder, encoder, source), *(shards or [shard_path(folder, encoder, source, 0)])]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing")
    return files
