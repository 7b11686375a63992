"""Problems: every error that may reach a caller has a status."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from service.api.problems import STATUS
from service.errors import NoteLLMError, TryLater


def subclasses(error: type[NoteLLMError]) -> Iterator[type[NoteLLMError]]:
    for child in error.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_error_but_the_abstract_one_has_a_status() -> None:
    assert set(subclasses(NoteLLMError)) - {TryLater} == set(STATUS)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("POST", "/livez", 405)])
def test_unknown_address_or_method_answers_with_a_problem(
    client: httpx2.Client, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
