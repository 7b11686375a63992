"""Training on a CPU: products in bfloat16, updates in float32, and the work of a step split over threads.

Two threads that share each matrix product wait for each other whenever another process uses the machine. Two threads
that each take half of the batch synchronise once per step (docs/log/distillation.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Extra = TypeVar("Extra")

BETAS = (0.9, 0.98)
AVERAGE_EVERY = 10
"""Steps between updates of the average; an update costs about a tenth of a step."""


class MasterWeights:
    """Float32 copies of a module's weights, their AdamW optimizers, and their running average.

    `weights`: the module's weights, in the precision that it computes in. `rates`, `decays`: learning rate and weight
    decay of each. `horizon`: approximate number of steps over which the average runs. `threads`: number of threads for
    losses and updates.
    """

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        rates: Sequence[float],
        decays: Sequence[float],
        horizon: int,
        threads: int,
    ) -> None:
        self.weights = list(weights)
        self.masters = [nn.Parameter(weight.detach().float().clone()) for weight in weights]
        self._averages = [master.detach().clone() for master in self.masters]
        self.rates = list(rates)
        self.decay = max(0.0, 1 - AVERAGE_EVERY / max(horizon, AVERAGE_EVERY))
        self.updates = 0
        self.pool = ThreadPoolExecutor(threads)
        self.shares = [share for share in balanced_groups([weight.numel() for weight in weights], threads) if share]
        self.optimizers = [
            torch.optim.AdamW(
                [{"params": [self.masters[i]], "lr": rates[i], "weight_decay": decays[i]} for i in share],
                betas=BETAS,
                fused=True,
            )
            for share in self.shares
        ]

    def add_gradients(self, losses: Sequence[Callable[[], tuple[Tensor, Extra]]]) -> list[Extra]:
        """Sum the gradients of losses in float32; returns the second value that each loss function returned.

        Each function runs, forward and backward, in its own thread. `step` resets the gradients.
        """

        def run(loss: Callable[[], tuple[Tensor, Extra]]) -> tuple[tuple[Tensor, ...], Extra]:
            value, extra = loss()
            return torch.autograd.grad(value, self.weights), extra

        results = list(self.pool.map(run, losses))
        for gradients, _ in results:
            for master, gradient in zip(self.masters, gradients, strict=True):
                if master.grad is None:
                    master.grad = gradient.float()
                else:
                    master.grad += gradient
        return [extra for _, extra in results]

    def clip_gradients(self, clip: float) -> float:
        """Scale the gradients so that their joint norm is at most `clip`; returns the norm before scaling."""
        return float(nn.utils.clip_grad_norm_(self.masters, clip))

    def step(self, number: int, rate_factor: float) -> None:
        """Update masters, weights and, every AVERAGE_EVERY steps, the average, with gradients of finite norm.

        `number`: number of this step, from 1. `rate_factor`: factor of all learning rates.
        """
        for optimizer, share in zip(self.optimizers, self.shares, strict=True):
            for group, i in zip(optimizer.param_groups, share, strict=True):
                group["lr"] = self.rates[i] * rate_factor
        average = number % AVERAGE_EVERY == 0
        if average:
            self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 1))

        @torch.no_grad()
        def update(part: int) -> None:
            self.optimizers[part].step()
            for i in self.shares[part]:
                self.weights[i].copy_(self.masters[i])
                self.masters[i].grad = None
                if average:
                    self._averages[i].lerp_(self.masters[i], 1 - decay)

        list(self.pool.map(update, range(len(self.shares))))

    @property
    def averages(self) -> list[Tensor]:
        """Running averages of the weights, float32. Before their first update they are the current weights."""
        return self._averages if self.updates else [master.detach() for master in self.masters]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the module compute with the averages inside the context."""
        self._copy_to_module(self.averages)
        try:
            yield
        finally:
            self._copy_to_module(self.masters)

    def state(self) -> dict[str, Any]:
        """Return the state to resume from, for `torch.save`."""
        return {
            "masters": [master.detach() for master in self.masters],
            "averages": self.averages,
            "updates": self.updates,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned, on the same number of threads."""
        with torch.no_grad():
            for master, stored in zip(self.masters, state["masters"], strict=True):
                master.copy_(stored)
            if state["updates"]:  # otherwise the averages are still the initial weights, set in __init__
                for average, stored in zip(self._averages, state["averages"], strict=True):
                    average.copy_(stored)
        self.updates = state["updates"]
        for optimizer, stored_optimizer in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored_optimizer)
        self._copy_to_module(self.masters)

    @torch.no_grad()
    def _copy_to_module(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self.weights, values, strict=True):
            weight.copy_(value)


def balanced_groups(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Split the indices of `sizes` into `count` groups with about equal sums."""
    groups: list[list[int]] = [[] for _ in range(count)]
    sums = [0] * count
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        smallest = sums.index(min(sums))
        groups[smallest].append(i)
        sums[smallest] += sizes[i]
    return groups
