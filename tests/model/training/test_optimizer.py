"""The schedule of the learning rate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.training.optimizer import cosine_with_warmup
from model.training.recipe import Recipe


def test_learning_rate_warms_up_and_falls_to_zero(recipe: Recipe):
    recipe = replace(recipe, steps=100, warmup=0.1)
    shares = [cosine_with_warmup(recipe, step) for step in range(101)]
    assert shares[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[100] == pytest.approx(0)
    short = replace(recipe, steps=5, warmup=0.1)
    assert max(cosine_with_warmup(short, step) for step in range(6)) == 1
