"""Problems: every error that may reach a caller has a status."""

from __future__ import annotations

from collections.abc import Iterator

from service.api.problems import STATUS
from service.errors import NoteLLMError, TryLater


def subclasses(error: type[NoteLLMError]) -> Iterator[type[NoteLLMError]]:
    for child in error.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_error_but_the_abstract_one_has_a_status() -> None:
    assert set(subclasses(NoteLLMError)) - {TryLater} == set(STATUS)
