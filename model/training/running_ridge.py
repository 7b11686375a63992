"""Ridge regression from states onto a teacher's vectors over a stream of batches, of which recent ones weigh more.

Shapes: B notes of a batch, W width of a state, K the teacher's dimension.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.training.initialise import RIDGE


class RunningRidge:
    """The closed-form solution for a student's head, from sums over the batches seen so far.

    `decay`: the factor by which the weight of all earlier batches shrinks with each further batch. `device`: where the
    sums are; batches may come from another one.
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
        """Solve for the head (K, W) float32, scaled so that its rows have length 1 in the root mean square.

        The penalty is RIDGE of the mean variance of a component.
        """
        variance = (self.gram.trace() - self.total.square().sum() / self.count) / len(self.gram)
        penalty = RIDGE * variance * torch.eye(len(self.gram)).to(self.gram)
        weights = torch.linalg.solve(self.gram + penalty, self.moments).T
        scaled: Tensor = weights * (len(weights) ** 0.5 / weights.norm())
        return scaled.float()

    def state(self) -> dict[str, Tensor]:
        """State to resume from, for `torch.save`."""
        return {"gram": self.gram, "moments": self.moments, "total": self.total, "count": self.count}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        for name, value in self.state().items():
            value.copy_(state[name])
