"""fingerprint: equal for equal values only, in every process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from service.filters import AnyOf, Filter, Has, Not
from service.fingerprint import fingerprint

WHERE = Filter(clause=AnyOf((Has("author", frozenset("abcdef")), Not(Has("category", frozenset("xyz"))))))
PROGRAM = "from tests.service.test_fingerprint import WHERE, fingerprint; print(fingerprint(WHERE))"


def test_equal_values_have_one_fingerprint_whatever_the_order_of_their_sets() -> None:
    clause = AnyOf((Has("author", frozenset("fedcba")), Not(Has("category", frozenset("zyx")))))
    assert fingerprint(Filter(clause=clause)) == fingerprint(WHERE)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_fingerprint_is_the_same_in_a_process_that_hashes_otherwise(seed: str) -> None:
    environment = os.environ | {"PYTHONHASHSEED": seed}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == fingerprint(WHERE)


def test_integers_of_any_size_have_a_fingerprint() -> None:
    numbers = [2**63, 2**64, 2**64 + 1, -(2**63) - 1, 10**30]
    assert len({fingerprint((number,)) for number in numbers}) == len(numbers)
    assert fingerprint((10**30,)) == fingerprint((10**30,))


@pytest.mark.parametrize(
    "other",
    [
        Filter(),
        Filter(clause=Has("author", frozenset("abcdef"))),
        Filter(clause=AnyOf((Not(Has("author", frozenset("abcdef"))), Has("category", frozenset("xyz"))))),
    ],
    ids=["no-clause", "another-clause", "not-elsewhere"],
)
def test_different_values_have_different_fingerprints(other: Filter) -> None:
    assert fingerprint(other) != fingerprint(WHERE)
