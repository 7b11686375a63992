"""Related notes answered by the short path, before FastAPI gets the request: answers equal those of the route."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog

from service.api.connection_bounds import MAX_EARLY_PER_ITERATION
from service.api.early_response import EarlyResponse
from service.api.protocol import BoundedProtocol
from service.api.rendered import render_nearest
from service.search.nearest import Nearest, NearestNotes
from tests.service.api.conftest import Serve

OPENAPI = json.loads((Path(__file__).parents[3] / "docs" / "openapi.json").read_text())
PARAMETERS = OPENAPI["paths"]["/notes/{note_id}/similar"]["get"]["parameters"]
QUERY = [parameter["name"] for parameter in PARAMETERS if parameter["in"] == "query"]
NOTE = "sample-en-001"
PATH = f"/notes/{NOTE}/similar"
BY_FASTAPI = {"x-request-timeout": "1"}
"""A header that the short path leaves to the route. Without min_log_position it has no effect on the answer."""
RENDER = "service.api.short_path.render_nearest"
"""Name of the function by which the short path renders its answers."""
KEY = "the-bootstrap-key-of-these-tests"


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the notes for which the short path had an answer. Keys stay cached, however slow the machine is."""
    note_ids: list[str] = []

    def recorded(nearest: Nearest, note_id: str, model: str) -> bytes:
        note_ids.append(note_id)
        return render_nearest(nearest, note_id, model)

    monkeypatch.setattr(RENDER, recorded)
    monkeypatch.setattr("service.access.authenticator.CACHE_SECONDS", 600.0)
    return note_ids


@pytest.fixture
def closed(serve: Serve) -> Iterator[httpx2.Client]:
    """Client with the bootstrap key of a service with keys and two notes."""
    with serve(bootstrap_key=KEY) as url, client_under(url, KEY) as root:
        for note_id in ("a", "b"):
            assert root.put(f"/notes/{note_id}", json={"title": note_id}).status_code == 201
        yield root


def client_under(url: str, key: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60)


def key_of(root: httpx2.Client, **fields: Any) -> tuple[str, httpx2.Client]:
    """Create a key; return its prefix, and a client with it."""
    created = root.post("/keys", json={"name": "n", "scopes": ["similar", "notes.write"], **fields})
    assert created.status_code == 201, created.text
    return created.json()["prefix"], client_under(str(root.base_url), created.json()["key"])


@pytest.mark.parametrize("query", ["", "k=3", "k=3&exclude=sample-en-002&hashtag=food&hashtag=travel", "min_score=-1"])
def test_answer_is_that_of_the_route(client: httpx2.Client, answered: list[str], query: str) -> None:
    by_short_path = client.get(f"{PATH}?{query}", headers={"x-request-id": "mine"})
    assert answered == [NOTE]
    by_route = client.get(f"{PATH}?{query}", headers={"x-request-id": "mine", **BY_FASTAPI})
    assert answered == [NOTE]
    assert by_short_path.status_code == by_route.status_code == 200
    ids = [answer.json()["recommendation_id"].encode() for answer in (by_short_path, by_route)]
    assert by_short_path.content.replace(*ids) == by_route.content
    without_date = [[pair for pair in one.headers.raw if pair[0] != b"date"] for one in (by_short_path, by_route)]
    assert without_date[0] == without_date[1]


def test_line_and_metrics_are_those_of_the_route(
    client: httpx2.Client, answered: list[str], eventually: Callable[[Callable[[], bool]], None]
) -> None:
    series = 'route="/notes/{note_id}/similar"'

    def counted() -> float:
        lines = client.get("/metrics").text.splitlines()
        names = ("notellm_http_request_duration_seconds_count", "notellm_tenant_requests_total")
        values = [line.rsplit(" ", 1) for line in lines if line.startswith(names)]
        return sum(float(value) for name, value in values if 'code="200"' in name and series in name)

    def own_lines() -> list[Any]:
        return [line for line in captured if line.get("request_id") == "mine"]  # without late lines of other requests

    before = counted()
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as captured:
        for headers in ({}, BY_FASTAPI):
            assert client.get(PATH, headers={"x-request-id": "mine", **headers}).status_code == 200
        eventually(lambda: len(own_lines()) == 2)
    assert answered == [NOTE]
    by_short_path, by_route = lines = own_lines()
    assert sorted(by_short_path) == sorted(by_route)
    timeless = [{name: value for name, value in line.items() if not name.endswith("ms")} for line in lines]
    assert timeless[0] == timeless[1]
    assert counted() == before + 2


@pytest.mark.parametrize("name", QUERY)
def test_documented_parameter_is_read(client: httpx2.Client, name: str) -> None:
    answer = client.get(PATH, params={name: "\0"})
    assert answer.status_code in (200, 422), answer.text
    if answer.status_code == 200:  # a name may be any text, but no note has this one
        assert answer.json()["items"] == []
    else:
        (error,) = answer.json()["errors"]
        assert error["pointer"].startswith(f"/query/{name}")
        assert "is not a parameter of this endpoint" not in error["detail"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", f"{PATH}?k=0", {}, 422),
        ("GET", f"{PATH}?k=51", {}, 422),  # max_k is 50
        ("GET", f"{PATH}?k=1&k=2", {}, 422),
        ("GET", f"{PATH}?colour=red", {}, 422),
        ("GET", f"{PATH}?user=u", {}, 422),
        ("GET", PATH, {"if-match": "*"}, 400),
        ("GET", PATH, {"x-request-timeout": "-1"}, 422),
        ("GET", "/notes/:a/similar", {}, 422),
        ("GET", "/notes/nobody/similar", {}, 404),
        ("GET", "/notes/a%2Fb/similar", {}, 400),
        ("DELETE", PATH, {}, 405),
        ("HEAD", f"{PATH}?k=0", {}, 422),
    ],
    ids=["k", "max-k", "repeated", "unknown", "user", "condition", "timeout", "id", "note", "slash", "method", "head"],
)
def test_request_that_is_refused_is_refused_by_the_route(
    client: httpx2.Client, answered: list[str], method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = client.request(method, path, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert not answered


def test_failure_is_a_problem_that_names_the_request(
    client: httpx2.Client, answered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(RENDER, fail)
    answer = client.get(PATH, headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert answer.json()["instance"] == "mine"
    assert "secret" not in answer.text


def test_caller_gets_what_its_key_opens(closed: httpx2.Client, answered: list[str]) -> None:
    assert closed.get("/notes/a/similar").json()["items"][0]["id"] == "b"
    assert answered == ["a"]
    assert httpx2.get(closed.base_url.join("/notes/a/similar")).status_code == 401
    prefix, reader = key_of(closed)
    _, writer = key_of(closed, scopes=["notes.write"])
    _, other = key_of(closed, tenant="other")
    with reader, writer, other:
        assert reader.get("/notes/a/similar").status_code == 200
        assert writer.get("/notes/a/similar").status_code == 403
        assert other.put("/notes/a", json={"title": "a"}).status_code == 201
        assert other.get("/notes/a/similar").json()["items"] == []
        assert closed.delete(f"/keys/{prefix}").status_code == 204
        assert reader.get("/notes/a/similar").status_code == 401


def test_request_under_a_quota_is_counted(closed: httpx2.Client) -> None:
    _, bounded = key_of(closed, quota={"requests_per_minute": 2})
    with bounded:
        answers = [bounded.get("/notes/a/similar") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert all('"requests";r=' in answer.headers["ratelimit"] for answer in answers)


def test_note_that_was_removed_is_looked_for_once_and_then_asked_of_the_store(
    client: httpx2.Client, answered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []
    find = NearestNotes.find

    async def recorded(*arguments: Any) -> Nearest | None:
        nearest = await find(*arguments)
        found.append(nearest is not None)
        return nearest

    monkeypatch.setattr(NearestNotes, "find", recorded)
    assert client.put("/notes/short-lived", json={"title": "soup"}).status_code == 201
    assert client.get("/notes/short-lived/similar").status_code == 200
    assert client.delete("/notes/short-lived").status_code == 200
    assert client.get("/notes/short-lived/similar").status_code == 404
    assert answered == ["short-lived"]
    assert found == [False]  # the first request was answered without waiting, and not by `find`


def request_of(path: str, *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    return "\r\n".join((*lines, "", "")).encode()


def exchange(url: str, sent: bytes) -> list[tuple[int, bytes]]:
    """Send requests in one piece, the last of which ends the connection; return status and body of each answer."""
    address = httpx2.URL(url)
    answers = []
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        connection.sendall(sent)
        with connection.makefile("rb") as stream:
            while line := stream.readline():
                head = dict(field.lower().split(b": ", 1) for field in iter(stream.readline, b"\r\n"))
                answers.append((int(line.split()[1]), stream.read(int(head[b"content-length"]))))
    return answers


def test_pipelined_requests_are_answered_in_their_order(url: str, client: httpx2.Client, answered: list[str]) -> None:
    asked = [NOTE, "sample-en-002"] * (2 * MAX_EARLY_PER_ITERATION)
    for note_id in {*asked}:
        assert client.get(f"/notes/{note_id}/similar").status_code == 200  # puts the items into memory
    paths = [f"/notes/{note_id}/similar" for note_id in asked]
    paths[3:3] = ["/notes/nobody/similar", f"/notes/{NOTE}"]
    answers = exchange(url, b"".join(map(request_of, paths)) + request_of("/livez", "Connection: close"))
    assert [status for status, _ in answers] == [404 if "nobody" in path else 200 for path in paths] + [200]
    note_ids = [json.loads(body)["note_id"] for _, body in answers if b'"note_id"' in body]
    assert note_ids == asked


def test_caller_who_takes_no_answers_is_sent_no_more_than_a_bounded_part(
    url: str, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get(PATH).status_code == 200
    buffered: list[int] = []
    send = BoundedProtocol._send_early

    def recorded(self: BoundedProtocol, answer: EarlyResponse) -> None:
        send(self, answer)
        buffered.append(self.transport.get_write_buffer_size())

    monkeypatch.setattr(BoundedProtocol, "_send_early", recorded)
    count = 5000
    answers = exchange(url, request_of(PATH) * count + request_of(PATH, "Connection: close"))
    assert [status for status, _ in answers] == [200] * (count + 1)
    assert max(buffered) < 2**18


def test_connection_is_closed_where_the_caller_asks_for_it(url: str, client: httpx2.Client) -> None:
    assert client.get(PATH).status_code == 200
    (closed,) = exchange(url, request_of(PATH, "Connection: close"))
    (old,) = exchange(url, request_of(PATH).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert closed[0] == old[0] == 200


def test_web_page_of_an_allowed_origin_may_read_a_kept_answer(serve: Serve) -> None:
    with serve(cors_origins=["https://example.org"]) as url, httpx2.Client(base_url=url, timeout=60) as client:
        assert client.put("/notes/a", json={"title": "a"}).status_code == 201
        for _ in range(2):
            answer = client.get("/notes/a/similar", headers={"origin": "https://example.org"})
            assert answer.headers["access-control-allow-origin"] == "https://example.org"
