"""Options shared by several offline commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Cache = Annotated[Path, typer.Option(envvar="NOTELLM_CACHE_DIR", help="Folder of converted weights.")]
CACHE = Path("~/.cache/notellm").expanduser()
Memory = Annotated[str, typer.Option(help="Memory for the join; the rest goes to disk.")]
