"""Options shared by several offline commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Cache = Annotated[Path, typer.Option(envvar="NOTELLM_CACHE_DIR", help="Folder for converted model weights.")]
CACHE = Path("~/.cache/notellm").expanduser()
Memory = Annotated[
    str, typer.Option(help="Maximum memory for joining clicks, such as 1GB; the rest is spilled to disk.")
]
