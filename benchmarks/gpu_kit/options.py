"""Options of the steps, and how a step says that a machine lacks what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LEFT_OUT = "left out"
"""Value of a row for what this machine cannot run; its detail says why."""


class LeftOut(Exception):
    """This machine lacks what a step needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Options:
    """Where the model runs ("cuda" or "cpu"), which checkpoint (None: the shipped one), and the folder of the converted
    backbone."""

    device: str
    checkpoint: Path | None
    cache: Path

    @property
    def rehearsal(self) -> bool:
        """Whether sizes are small, since nothing is measured."""
        return self.device == "cpu"

    def arguments(self) -> list[str]:
        """Return the options as arguments of this module's process."""
        return [self.device, str(self.checkpoint or ""), str(self.cache)]

    @classmethod
    def of(cls, device: str, checkpoint: str, cache: str) -> Options:
        """Return the options that `arguments` made."""
        return cls(device, Path(checkpoint) if checkpoint else None, Path(cache))
