"""Query strings that are parsed once and kept, and those that are not."""

from __future__ import annotations

import pytest

from service.api.query import parse_query
from service.api.schemas.similar import SimilarQuery


@pytest.mark.parametrize("query", [b"user=tom", b"k=3&user=tom", b"%75ser=tom", b"k=3&us%65r=tom"])
def test_query_that_names_a_reader_does_not_stay_in_memory(query: bytes) -> None:
    first, second = parse_query(SimilarQuery, query), parse_query(SimilarQuery, query)
    assert first.user == second.user == "tom"
    assert first is not second


@pytest.mark.parametrize("query", [b"", b"k=3&exclude=user%3A1", b"author=user"])
def test_short_query_without_a_reader_is_parsed_once(query: bytes) -> None:
    assert parse_query(SimilarQuery, query) is parse_query(SimilarQuery, query)


def test_long_query_does_not_stay_in_memory() -> None:
    query = "&".join(f"exclude=note-{number}" for number in range(50)).encode()
    assert parse_query(SimilarQuery, query) is not parse_query(SimilarQuery, query)
