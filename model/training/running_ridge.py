"""Ridge regression from states onto a teacher's vectors over a stream of batches, weighted towards recent batches.

Shapes: B notes of a batch, W width of a state, K the teacher's dimension.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.training.initialise import RIDGE


class RunningRidge:
    """Closed-form solution for a student's head, from decayed sums over the batches seen so far.

    `decay`: factor by which each new batch shrinks the weight of all earlier ones. `device`: where the sums are kept;
    batches may come from another device.
    """

    def __init__(self, width: int, dimension: int, decay: float, device: str = "cpu") -> None:
        self.decay = decay
        self.gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.moments = torch.zeros(width, dimension, dtype=torch.float64, device=device)
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, states: Tensor, teacher_vectors: Tensor) -> None:
        """Add a batch: states (B, W) and the teacher's vectors (B, K)."""
        states, teacher_vectors = states.to(self.gram), teacher_vectors.to(self.gram)
        self.gram.mul_(self.decay).addmm_(states.T, states)
        self.moments.mul_(self.decay).addmm_(states.T, teacher_vectors)
        self.total.mul_(self.decay).add_(states.sum(0))
        self.count.mul_(self.decay).add_(len(states))

    def head(self) -> Tensor:
        """Solve for the head (K, W) float32, scaled so that the root mean square of its rows' lengths is 1.

        The ridge penalty is RIDGE times the mean variance of a component.
        """
        variance = (self.gram.trace() - self.total.square().sum() / self.count) / len(self.gram)
        penalty = RIDGE * variance * torch.eye(len(self.gram)).to(self.gram)
        weights = torch.linalg.solve(self.gram + penalty, self.moments).T
        scaled: Tensor = weights * (len(weights) ** 0.5 / weights.norm())
        return scaled.float()

    def state(self) -> dict[str, Tensor]:
        """Return the state to resume from, for `torch.save`."""
        return {"gram": self.gram, "moments": self.moments, "total": self.total, "count": self.count}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for name, value in self.state().items():
            value.copy_(state[name])
