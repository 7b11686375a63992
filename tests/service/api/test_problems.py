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
def test_unknown_path_or_method_answers_with_a_problem(
    client: httpx2.Client, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("PATCH", "/notes", "GET, POST"), ("POST", "/notes/a", "DELETE, GET, PATCH, PUT"), ("GET", "/similar", "POST")],
)
def test_refused_method_is_answered_with_all_methods_of_the_path(
    client: httpx2.Client, method: str, path: str, allowed: str
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert allowed in answer.json()["detail"]


NOTE_ID_FORM = "must be a string of 1 to 128 characters of A-Z a-z 0-9 _ . : ~ -"
READER_ID_FORM = "must be a string of 1 to 128 characters, none of them white"


@pytest.mark.parametrize(
    ("path", "body", "pointer", "detail"),
    [
        ("/notes", {"id": "a b", "title": "x"}, "/id", NOTE_ID_FORM),
        ("/notes/get", {"ids": ["/"]}, "/ids/0", NOTE_ID_FORM),
        ("/notes", {"id": 5, "title": "x"}, "/id", NOTE_ID_FORM),
        ("/notes", {"title": "x", "body": "y"}, "/body", "is not a known field"),
        ("/notes", {"title": "x", "category": "\u200b"}, "/category", "must have a visible character"),
        ("/generate/category", {"title": "x", "categories": ["A", "\u2060"]}, "/categories/1", "must have a visible"),
        ("/generate/hashtags", {"title": "x", "blocked": ["#"]}, "/blocked/0", "must have a character besides '#'"),
        ("/similar", {"title": "x", "hashtag": ["##"]}, "/hashtag/0", "must have a character besides '#'"),
        ("/similar", {"title": "x", "filter": {"hashtag": "#"}}, "/filter/hashtag/0", "must have a character besides"),
        ("/similar", {"k": 5}, "/content", "title and content must not both be empty, unless you send examples"),
        ("/similar", {"title": "x", "user": "a b"}, "/user", READER_ID_FORM),
        ("/similar", {"title": "x", "min_log_position": "5"}, "/min_log_position", "must be a log position"),
        ("/similar", {"title": "x", "attribute": ["en"]}, "/attribute/0", "must be name:value"),
        ("/generate/hashtags", {"title": "x", "language": "English"}, "/language", "must be an ISO 639 code"),
        ("/keys", {"name": "x", "scopes": ["similar"], "tenant": "A"}, "/tenant", "must have 1 to 40 characters"),
    ],
)  # fmt: skip
def test_text_of_a_wrong_form_is_answered_in_words(
    client: httpx2.Client, path: str, body: dict[str, object], pointer: str, detail: str
) -> None:
    answer = client.post(path, json=body)
    (error,) = answer.json()["errors"]
    assert (answer.status_code, error["pointer"]) == (422, pointer)
    assert error["detail"].startswith(detail)


def test_detail_of_a_refused_request_has_the_first_of_its_errors(client: httpx2.Client) -> None:
    one = client.post("/notes", json={"id": "a b", "title": "x"}).json()
    assert one["detail"] == f"The request is not valid: /id {one['errors'][0]['detail']}."
    two = client.post("/notes", json={"id": "a b", "title": "x", "category": "\u200b"}).json()
    assert len(two["errors"]) == 2
    assert two["detail"].endswith("`errors` has 1 more.")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        *((target, "%2F") for target in ("/notes/a%2Fb", "/notes/a%2fsimilar", "/users/a%2Fb/events?x=%2F")),
        *(
            (target, "not UTF-8")
            for target in ("/users/Ren%E9/events", "/users/Ren%FF%FE/events", "/notes?author=Ren%E9")
        ),
    ],
)
def test_target_that_would_be_read_as_another_one_is_refused(
    client: httpx2.Client, method: str, target: str, reason: str
) -> None:
    answer = client.request(method, target)
    assert (answer.status_code, reason in answer.json()["detail"]) == (400, True)


@pytest.mark.parametrize("author", ["a%2Fb", "Ren%C3%A9"])
def test_author_with_a_slash_or_an_accent_is_read(client: httpx2.Client, author: str) -> None:
    assert client.get(f"/notes/sample-en-001/similar?author={author}").status_code == 200


def test_note_that_is_sent_back_as_it_was_answered_is_refused_with_advice(client: httpx2.Client) -> None:
    answered = client.get("/notes/sample-en-001").json()
    for refused in (client.put("/notes/sample-en-001", json=answered), client.patch("/notes/x", json=answered)):
        errors = {error["pointer"]: error["detail"] for error in refused.json()["errors"]}
        assert errors.keys() >= {"/revision", "/log_position", "/generated"}
        assert "PATCH it with the fields that change" in errors["/generated"]


def test_time_of_the_year_1970_is_taken(client: httpx2.Client) -> None:
    for at in ("1970-09-01T00:00:00Z", "1970-01-01T00:33:46Z", "20908800"):
        assert client.get(f"/notes?created_after={at}").status_code == 200


@pytest.mark.parametrize("date", ["2026", "202605", "20260501"])
def test_bare_date_in_the_place_of_a_time_is_refused(client: httpx2.Client, date: str) -> None:
    answers = [
        client.get(f"/notes?created_after={date}"),
        client.get(f"/notes/sample-en-001/similar?created_before={date}"),
    ]
    answers += [client.post("/notes", json={"title": "x", "created_at": sent}) for sent in (date, int(date))]
    for answer in answers:
        (error,) = answer.json()["errors"]
        assert error["detail"] == "must be ISO 8601 with a time zone: a number is read as seconds since 1970"


@pytest.mark.parametrize("time", ["2030-01-01", "2030-01-01T00:00:00", "tomorrow", ""])
def test_time_that_cannot_be_read_is_refused_with_an_example(client: httpx2.Client, time: str) -> None:
    (error,) = client.post("/notes", json={"title": "x", "expires_at": time}).json()["errors"]
    assert error["pointer"] == "/expires_at"
    assert "with a time zone, such as 2026-12-03T09:30:00Z" in error["detail"]


@pytest.mark.parametrize("path", ["/notes/sample-en-001/similar", "/notes"])
def test_plus_of_a_time_that_became_a_space_is_explained(client: httpx2.Client, path: str) -> None:
    wrong = client.get(f"{path}?created_after=2026-01-01T00:00:00+02:00")
    (error,) = wrong.json()["errors"]
    assert (wrong.status_code, error["detail"].endswith("; write + as %2B")) == (422, True)
    assert client.get(f"{path}?created_after=2026-01-01T00:00:00%2B02:00").status_code == 200


@pytest.mark.parametrize("path", ["/similar", "/notes", "/notes/get", "/similar/batch", "/events"])
def test_body_that_is_missing_is_a_400_at_every_endpoint(client: httpx2.Client, path: str) -> None:
    answer = client.post(path, content=b"", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (400, "malformed-body")
    assert answer.json()["detail"].endswith("it is empty")


@pytest.mark.parametrize(("method", "path"), [("POST", "/notes"), ("PUT", "/notes/x"), ("POST", "/similar")])
def test_place_of_an_error_in_json_is_told(client: httpx2.Client, method: str, path: str) -> None:
    answer = client.request(method, path, content=b'{"title": "a",}', headers={"Content-Type": "application/json"})
    assert (answer.status_code, "(char 13)" in answer.json()["detail"]) == (400, True)


@pytest.mark.parametrize("path", ["/similar/batch", "/notes/import"])
def test_body_that_is_no_list_where_one_is_taken_is_a_422(client: httpx2.Client, path: str) -> None:
    answer = client.post(path, json={"title": "x"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"] == [{"pointer": "", "detail": "must be a list"}]


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/similar", {"title": "x", "k": True}, "/k"),
        ("/similar", {"positive": [{"note_id": "sample-en-001", "weight": True}]}, "/positive/0/weight"),
        ("/generate/hashtags", {"title": "x", "count": True}, "/count"),
    ],
)
def test_boolean_in_the_place_of_a_number_is_refused(
    client: httpx2.Client, path: str, body: dict[str, object], pointer: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"] == [{"pointer": pointer, "detail": "must not be true or false"}]


def test_boolean_in_the_place_of_a_boolean_is_taken(client: httpx2.Client) -> None:
    body = {"title": "x", "exact": True, "filter": {"attribute": {"seats": {"in": True}}}}
    assert client.post("/similar", json=body).status_code == 200


@pytest.mark.parametrize("probe", ["/livez", "/startupz", "/readyz"])
def test_probe_by_head_has_the_status_and_no_body(client: httpx2.Client, probe: str) -> None:
    answer = client.head(probe)
    assert (answer.status_code, answer.content) == (200, b"")
    assert client.get(probe).status_code == 200  # the connection can still be used


def test_attribute_without_a_name_has_a_pointer_to_the_attributes(client: httpx2.Client) -> None:
    (error,) = client.post("/notes", json={"title": "x", "attributes": {"": 1}}).json()["errors"]
    assert error["pointer"] == "/attributes/"
