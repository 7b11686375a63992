"""Options shared by several offline commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from model.cache_option import CACHE_VARIABLE, DEFAULT_CACHE

Cache = Annotated[Path, typer.Option(envvar=CACHE_VARIABLE, help="Folder for converted model weights.")]
CACHE = DEFAULT_CACHE.expanduser()
Memory = Annotated[
    str, typer.Option(help="Maximum memory for joining clicks, such as 1GB; the rest is spilled to disk.")
]
