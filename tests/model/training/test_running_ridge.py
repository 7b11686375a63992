"""The running ridge regression: it finds a linear rule, recent batches weigh more, and its state can be restored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.training.running_ridge import RunningRidge


def linear_rule(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States (N, 16) with a mean, and vectors (N, 6) that are a linear function of the centred states."""
    rng = np.random.default_rng(0)
    states = torch.from_numpy(rng.normal(2.0, 1.0, (count, 16))).float()
    rule = torch.from_numpy(rng.normal(size=(6, 16))).float()
    return states, (states - 2.0) @ rule.T


def test_head_finds_a_linear_rule_in_batches() -> None:
    states, vectors = linear_rule(500)
    ridge = RunningRidge(16, 6, decay=1.0)
    for at in range(0, 500, 50):
        ridge.add(states[at : at + 50], vectors[at : at + 50])
    head = ridge.head()
    assert head.norm() == pytest.approx(6**0.5, rel=1e-5)
    assert torch.nn.functional.cosine_similarity(states @ head.T, vectors).mean() > 0.85


def test_head_follows_recent_batches() -> None:
    states, vectors = linear_rule(400)
    ridge = RunningRidge(16, 6, decay=0.5)
    for sign in (-1.0, 1.0):
        for at in range(0, 400, 40):
            ridge.add(states[at : at + 40], sign * vectors[at : at + 40])
    assert torch.nn.functional.cosine_similarity(states @ ridge.head().T, vectors).mean() > 0.7
    restored = RunningRidge(16, 6, decay=0.5)
    restored.restore(ridge.state())
    assert torch.equal(restored.head(), ridge.head())
