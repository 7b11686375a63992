"""Options of the steps, and the exception for a machine that lacks what a step needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LEFT_OUT = "left out"
"""Value of a row for something that this machine cannot run; the row's detail says why."""


class LeftOut(Exception):
    """This machine lacks what a step needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Options:
    """Device of the model ("cuda" or "cpu"), checkpoint (None: the shipped one), and folder of the converted
    backbone."""

    device: str
    checkpoint: Path | None
    cache: Path

    @property
    def rehearsal(self) -> bool:
        """Whether this is a rehearsal on a CPU: sizes are small, since its figures do not count."""
        return self.device == "cpu"

    def arguments(self) -> list[str]:
        """Return the options as arguments of a step's process."""
        return [self.device, str(self.checkpoint or ""), str(self.cache)]

    @classmethod
    def of(cls, device: str, checkpoint: str, cache: str) -> Options:
        """Return the options from the arguments that `arguments` returned."""
        return cls(device, Path(checkpoint) if checkpoint else None, Path(cache))
