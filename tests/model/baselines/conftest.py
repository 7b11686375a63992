"""The published encoder, loaded once for all tests of the baselines."""

import pytest

from model.baselines.encoder import SentenceEncoder


@pytest.fixture(scope="session")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()
