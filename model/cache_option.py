"""The option --cache of the modules that are run as commands: the folder for converted model weights.

The service and the commands of `notellm` read the same environment variable.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

CACHE_VARIABLE = "NOTELLM_CACHE_DIR"
DEFAULT_CACHE = Path("~/.cache/notellm")


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    """Add --cache. Its default is read from CACHE_VARIABLE now, or is DEFAULT_CACHE where that is unset or empty."""
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE).expanduser(),
        help=f"folder for converted model weights (default: {CACHE_VARIABLE} or {DEFAULT_CACHE})",
    )
