"""Tests of the benchmarks' synthetic vectors: the shipped checkpoint's dimension, and near to their bases."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.harness.inputs import DIMENSION, noisy_copies, normalise
from model.config import NoteLLMConfig
from model.weights import SHIPPED_CHECKPOINT


def test_synthetic_vectors_have_the_dimension_of_the_shipped_checkpoint() -> None:
    assert NoteLLMConfig.load(SHIPPED_CHECKPOINT).dimension == DIMENSION


def test_noisy_copies_are_unit_vectors_near_to_their_bases() -> None:
    bases = normalise(np.random.default_rng(1).standard_normal((5, DIMENSION)))
    copies = noisy_copies(bases, 200, 0)
    assert copies.shape == (200, DIMENSION)
    assert np.linalg.norm(copies, axis=1) == pytest.approx(1, abs=1e-5)
    assert (copies @ bases.T).max(axis=1).mean() == pytest.approx(0.86, abs=0.01)
