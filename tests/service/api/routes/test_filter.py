"""`filter` of POST /similar: conditions in groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

COUNT = 30


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60) as opened:
        notes = [
            {
                "id": f"t{i}",
                "title": f"a note of the tree {i}",
                "category": f"T-{('Food', 'Pets', 'Cars')[i % 3]}",
                "author": f"t-{'abcde'[i % 5]}",
                "hashtags": ["tree", f"t tag {i % 7}"],
                "attributes": {"language": "de" if i % 6 else "ja", "seats": i / 2},
                "created_at": f"2026-03-{i + 1:02}T00:00:00Z",
            }
            for i in range(COUNT)
        ]
        assert opened.post("/notes", json=notes).status_code == 207
        yield opened


def ask(client: httpx2.Client, filter: Any, **options: Any) -> httpx2.Response:
    return client.post("/similar", json={"title": "a note of the tree", "k": 50, "filter": filter} | options)


def numbers(client: httpx2.Client, filter: dict[str, Any], **options: Any) -> list[int]:
    """Return the numbers of the notes that pass, among those of these tests."""
    answer = ask(client, {"all": [filter, {"hashtag": "tree"}]} if filter else filter, hashtag=["tree"], **options)
    assert answer.status_code == 200, answer.text
    assert answer.json()["complete"]
    return sorted(int(item["id"][1:]) for item in answer.json()["items"])


@pytest.mark.parametrize(
    ("filter", "passes"),
    [
        ({}, lambda i: True),
        ({"category": "T-Food"}, lambda i: i % 3 == 0),
        ({"category": ["T-Food", "T-Cars"]}, lambda i: i % 3 in (0, 2)),
        ({"author": ["t-a", "t-b", "nobody"]}, lambda i: i % 5 < 2),
        ({"hashtag": ["#TTAG1", "t tag 2"]}, lambda i: i % 7 in (1, 2)),
        ({"all_hashtag": ["Tree", "t tag 2"]}, lambda i: i % 7 == 2),
        ({"not": {"category": "T-Food"}}, lambda i: i % 3),
        ({"not": {"any": [{"author": "t-a"}, {"hashtag": "t tag 0"}]}}, lambda i: i % 5 and i % 7),
        ({"not": {"author": "t-a", "category": "T-Food"}}, lambda i: i % 15),
        ({"attribute": {"language": "ja"}}, lambda i: i % 6 == 0),
        ({"attribute": {"language": ["ja", "fr"], "seats": {"gt": 3}}}, lambda i: i % 6 == 0 and i > 6),
        ({"attribute": {"seats": {"gte": 1.5, "lt": 4}}}, lambda i: 3 <= i < 8),
        ({"attribute": {"seats": [2, "4e0", "6.50"]}}, lambda i: i in (4, 8, 13)),
        ({"attribute": {"seats": {"lte": 4, "in": [0.0, 4.0, 14.5]}}}, lambda i: i in (0, 8)),
        ({"attribute": {"seats": {"gte": "a"}}}, lambda i: False),
        ({"attribute": {"language": {"gt": "de"}}}, lambda i: i % 6 == 0),
        ({"not": {"attribute": {"seats": {"gte": 2}}}}, lambda i: i < 4),
        ({"updated_at": {"gt": "2026-03-05T00:00:00Z", "lt": "2199-01-01T00:00:00Z"}}, lambda i: True),
        ({"not": {"updated_at": {"gt": "2199-01-01T00:00:00Z"}}}, lambda i: True),
        ({"updated_at": {"lt": "2026-03-05T00:00:00Z"}}, lambda i: False),
        ({"created_at": {"gte": "2026-03-05T00:00:00Z", "lt": "2026-03-08T00:00:00+00:00"}}, lambda i: 4 <= i < 7),
        (
            {"any": [{"category": "T-Food", "author": "t-a"}, {"all": [{"hashtag": "t tag 1"}, {"author": "t-b"}]}]},
            lambda i: i % 15 == 0 or (i % 7 == 1 and i % 5 == 1),
        ),
    ],
)
def test_a_filter_passes_exactly_the_notes_that_it_describes(
    client: httpx2.Client, filter: dict[str, Any], passes: Any
) -> None:
    assert numbers(client, filter) == [i for i in range(COUNT) if passes(i)]


@pytest.mark.parametrize("value", ["2", "2.0", "2e0"])
def test_attribute_in_a_query_string_is_found_however_its_number_is_written(client: httpx2.Client, value: str) -> None:
    query = {"attribute": f"seats:{value}", "hashtag": "tree"}
    found = client.get("/notes/t1/similar", params=query).json()["items"]
    assert [item["id"] for item in found] == ["t4"]
    boosted = ask(client, {"hashtag": "tree"}, boost=[{"match": {"attribute": f"seats:{value}"}, "weight": 5}])
    assert boosted.json()["items"][0]["id"] == "t4", boosted.text


def test_a_range_compares_integers_exactly(client: httpx2.Client) -> None:
    values = {"below": 2**53 - 1, "at": 2**53, "above": 2**53 + 1, "text": str(2**64 + 1)}
    notes = [
        {"id": note_id, "title": "large", "hashtags": ["large"], "attributes": {"seats": value}}
        for note_id, value in values.items()
    ]
    client.post("/notes", json=notes)

    def passing(**bounds: Any) -> set[str]:
        answer = ask(client, {"hashtag": "large", "attribute": {"seats": bounds}})
        return {item["id"] for item in answer.json()["items"]}

    assert passing(gt=2**53) == {"above", "text"}
    assert passing(gte=2**53 + 1) == {"above", "text"}
    assert passing(lt=2**53 + 1) == {"below", "at"}
    assert passing(gt=str(2**64)) == {"text"}


def test_bound_beyond_64_bits_holds_on_every_page(client: httpx2.Client) -> None:
    def page(bound: int, cursor: str) -> httpx2.Response:
        bounds = {"gt": str(-(2**70)), "lt": str(bound)}  # as JSON numbers they would be read as floats
        return ask(client, {"hashtag": "tree", "attribute": {"seats": bounds}}, k=COUNT - 1, cursor=cursor)

    first = page(2**70, "*")
    assert first.status_code == 200, first.text
    cursor = first.json()["next_cursor"]
    assert [len(one.json()["items"]) for one in (first, page(2**70, cursor))] == [COUNT - 1, 1]
    assert page(2**70 + 1, cursor).status_code == 422, "the cursor belongs to another filter"


def test_a_filter_holds_beside_the_flat_options(client: httpx2.Client) -> None:
    filter = {"not": {"author": "t-a"}}
    found = numbers(client, filter, category="T-Food", exclude=["t3"], attribute=["language:de"])
    assert found == [i for i in range(COUNT) if i % 3 == 0 and i % 5 and i % 6 and i != 3]


def test_ten_thousand_ids_are_left_out(client: httpx2.Client) -> None:
    others = [f"other-{n}" for n in range(9_980)]
    answer = ask(client, {"hashtag": "tree", "exclude": [*others, *(f"t{i}" for i in range(20))]})
    assert sorted(item["id"] for item in answer.json()["items"]) == sorted(f"t{i}" for i in range(20, COUNT))


NESTED_TOO_DEEP: dict[str, Any] = {"category": "T-Food"}
for _ in range(20):
    NESTED_TOO_DEEP = {"not": NESTED_TOO_DEEP}


@pytest.mark.parametrize(
    ("filter", "pointer", "says"),
    [
        ("T-Food", "/filter", "must be an object with"),
        ({"colour": "red"}, "/filter/colour", "is not a known field"),
        ({"category": []}, "/filter/category", "at least 1 item"),
        ({"category": [1]}, "/filter/category/0", "valid string"),
        ({"category": ["c"] * 101}, "/filter/category", "at most 100 items"),
        ({"not": {}}, "/filter/not", "must have at least one condition"),
        ({"any": []}, "/filter/any", "at least 1 item"),
        ({"any": [{"category": "T-Food"}, {}]}, "/filter/any/1", "must have at least one condition"),
        ({"all": [{"exclude": ["t0"]}]}, "/filter/all/0/exclude", "is not a known field"),
        ({"attribute": {"colour": "red"}}, "/filter/attribute/colour", "language, seats"),
        (
            {"any": [{"not": {"attribute": {"a/b": 1}}}]},
            "/filter/any/0/not/attribute/a~1b",
            "language, seats",
        ),
        ({"attribute": {"seats": {}}}, "/filter/attribute/seats", "must have at least one of in, gt, gte, lt, lte"),
        ({"attribute": {"seats": None}}, "/filter/attribute/seats", "must be an object with"),
        ({"attribute": {"seats": {"gt": True}}}, "/filter/attribute/seats/gt", "must be a number or a string"),
        ({"attribute": {"seats": {"gt": 1, "lt": "z"}}}, "/filter/attribute/seats", "all numbers or all strings"),
        ({"attribute": {"seats": [[1]]}}, "/filter/attribute/seats/in/0", "must be a string, a number, true or false"),
        ({"created_at": {}}, "/filter/created_at", "must have at least one of gt, gte, lt, lte"),
        ({"created_at": {"gt": "soon"}}, "/filter/created_at/gt", "valid datetime"),
        ({"created_at": "2026-03-05T00:00:00Z"}, "/filter/created_at", "must be an object with"),
        (
            {"created_at": {"gt": "2026-03-09T00:00:00Z", "lte": "2026-03-05T00:00:00Z"}},
            "/filter/created_at",
            "gt is above",
        ),
        ({"attribute": {"seats": {"gte": 5, "lt": 2}}}, "/filter/attribute/seats", "gte is above lt"),
        ({"category": "T-Food", "author": None}, "/filter/author", "leave it out"),
        ({"any": [{"category": "T-Food"}, {"not": None}]}, "/filter/any/1/not", "leave it out"),
        ({"created_at": {"gt": "2026-03-09T00:00:00Z", "lt": None}}, "/filter/created_at/lt", "leave it out"),
        ({"attribute": {"seats": {"gt": 1, "in": None}}}, "/filter/attribute/seats/in", "leave it out"),
        ({"exclude": ["a/b"]}, "/filter/exclude/0", "must be a string of 1 to 128 characters"),
        ({"exclude": ["t0"] * 10_001}, "/filter/exclude", "at most 10000 items"),
        ({"any": [{"author": "a", "category": "c", "hashtag": "h"}] * 17}, "/filter", "max_filter_conditions = 50"),
        (NESTED_TOO_DEEP, "/filter", "max_filter_depth = 8"),
    ],
    ids=range(29),
)
def test_a_bad_filter_is_refused_with_a_pointer(client: httpx2.Client, filter: Any, pointer: str, says: str) -> None:
    answer = ask(client, filter)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == pointer, error
    assert says in error["detail"]


def test_limits_publish_the_bounds_of_filters(client: httpx2.Client) -> None:
    limits = client.get("/limits").json()
    names = ("max_filter_depth", "max_filter_conditions", "max_filter_values", "max_filter_excluded", "max_excluded")
    assert [limits[name] for name in names] == [8, 50, 100, 10_000, 1000]


def test_filter_by_an_attribute_named_twice_removes_nothing(client: httpx2.Client) -> None:
    """One of the conditions would be dropped, and the filter would match more notes."""
    twice = {"attribute": {"seats": {"gte": 2}, " seats": {"lt": 3}}}
    answer = client.post("/notes/delete", json={"filter": twice})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/filter/attribute")
