"""POST /events: which events are accepted, each once, and which are refused."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import httpx2
import pytest
from fastapi import Request

from service.api.problems import MAX_ANSWER_ERRORS
from service.events import EventEntry
from service.store.events import RedisEventStore
from tests.service.api.conftest import Serve
from tests.service.api.requests import NO_JSON

Eventually = Callable[[Callable[[], bool]], None]
NUMBERS = count()
NDJSON = {"content-type": "application/x-ndjson"}


def event(note_id: str = "a", user: str = "u1", type: str = "click", **fields: Any) -> dict[str, Any]:
    """Return an event with a new id."""
    return {"event_id": f"e{next(NUMBERS)}", "type": type, "note_id": note_id, "user": user} | fields


@pytest.fixture(scope="module")
def server(serve: Serve) -> Iterator[str]:
    with serve(max_batch_events=20, event_types=("shown=0", "click=1", "finished=2")) as url:
        with httpx2.Client(base_url=url, timeout=60) as client:
            client.post("/notes", json=[{"id": name, "title": name} for name in "abcd"])
        yield url


@pytest.fixture
def client(server: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server, timeout=60) as opened:
        yield opened


def statuses(answer: httpx2.Response) -> list[str]:
    return [result["status"] for result in answer.json()["results"]]


def test_an_event_is_accepted_once(client: httpx2.Client) -> None:
    one = event()
    first, second = client.post("/events", json=one), client.post("/events", json=one)
    assert (first.status_code, first.json()) == (200, {"event_id": one["event_id"], "status": "accepted"})
    assert (second.status_code, second.json()["status"]) == (200, "duplicate")


def test_each_event_of_a_list_has_its_own_result(client: httpx2.Client) -> None:
    known = event()
    client.post("/events", json=known)
    events = [event(), known, event("nobody"), event(type="bought"), {"event_id": "x"}, event(user="u 1"), event()]
    answer = client.post("/events", json=events)
    assert answer.status_code == 207
    assert statuses(answer) == ["accepted", "duplicate", *["refused"] * 4, "accepted"]
    results = answer.json()["results"]
    assert [result.get("event_id") for result in results] == [one["event_id"] for one in events]
    assert "nobody" in results[2]["problem"]["detail"]
    assert results[3]["problem"]["errors"] == [
        {"pointer": "/3/type", "detail": "must be one of shown, click, finished (NOTELLM_EVENT_TYPES)"}
    ]
    assert {error["pointer"] for error in results[4]["problem"]["errors"]} >= {"/4/type", "/4/note_id"}
    assert results[5]["problem"]["errors"][0]["pointer"] == "/5/user"


@pytest.mark.parametrize("item", NO_JSON)
def test_event_of_a_list_that_cannot_be_read_is_refused_alone(client: httpx2.Client, item: bytes) -> None:
    first, last = event(), event()
    body = b"[%s, %s, %s]" % (json.dumps(first).encode(), item, json.dumps(last).encode())
    answer = client.post("/events", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 207
    assert statuses(answer) == ["accepted", "refused", "accepted"]
    results = answer.json()["results"]
    assert results[1]["problem"]["status"] == 400
    assert [results[0]["event_id"], results[2]["event_id"]] == [first["event_id"], last["event_id"]]


def test_results_keep_their_places_whatever_the_times_of_the_events(client: httpx2.Client) -> None:
    known, now = event(), datetime.now(UTC)
    client.post("/events", json=known)
    earlier, earliest = ((now - timedelta(seconds=seconds)).isoformat() for seconds in (30, 60))
    events = [known, event("nobody", at=earlier), event(at=earliest)]
    assert statuses(client.post("/events", json=events)) == ["duplicate", "refused", "accepted"]


def test_an_event_twice_in_one_list_counts_once(client: httpx2.Client) -> None:
    one = event()
    assert statuses(client.post("/events", json=[one, one])) == ["accepted", "duplicate"]


def test_lines_get_a_result_each(client: httpx2.Client) -> None:
    lines = [json.dumps(event()), "{", "", json.dumps(event("nobody")), json.dumps(event())]
    answer = client.post("/events", content="\n".join(lines), headers=NDJSON)
    assert answer.status_code == 200
    results = [json.loads(line) for line in answer.text.splitlines()]
    assert [result["status"] for result in results] == ["accepted", "refused", "refused", "accepted"]


@pytest.mark.parametrize("nested", ["[" * 65, '{"a":' * 65], ids=["lists", "objects"])
def test_event_of_too_many_brackets_is_refused_alone(client: httpx2.Client, nested: str) -> None:
    answer = client.post("/events", content=f"{json.dumps(event())}\n{nested}\n{json.dumps(event())}", headers=NDJSON)
    results = [json.loads(line) for line in answer.text.splitlines()]
    assert [result["status"] for result in results] == ["accepted", "refused", "accepted"]
    whole = client.post("/events", content=nested, headers={"Content-Type": "application/json"})
    assert whole.status_code in (400, 422)


def test_refused_events_name_a_bounded_number_of_errors(client: httpx2.Client) -> None:
    wrong = json.dumps({f"unknown {number}": number for number in range(15)})
    headers = {"Content-Type": "application/x-ndjson"}
    answer = client.post("/events", content=f"{wrong}\n" * 200, headers=headers)
    results = [json.loads(line) for line in answer.text.splitlines()]
    assert len(results) == 200
    assert all(result["problem"]["errors"] for result in results)
    assert sum(len(result["problem"]["errors"]) for result in results) < MAX_ANSWER_ERRORS + 20 + len(results)


def test_lines_over_their_bound_are_refused_and_none_counts(client: httpx2.Client) -> None:
    limit = client.get("/limits").json()["max_event_lines"]
    one = event()
    lines = [json.dumps(one), *["{"] * limit]
    answer = client.post("/events", content="\n".join(lines), headers=NDJSON)
    assert answer.status_code == 413
    assert f"max_event_lines = {limit}" in answer.json()["detail"]
    assert client.post("/events", json=one).json()["status"] == "accepted"


@pytest.mark.parametrize(
    ("fields", "status", "pointer"),
    [
        pytest.param({"note_id": "nobody"}, 404, None, id="unknown-note"),
        pytest.param({"type": "bought"}, 422, "/type", id="unknown-type"),
        pytest.param({"session": "s"}, 422, "/user", id="two-readers"),
        pytest.param({"user": None}, 422, "/user", id="no-reader"),
        pytest.param({"user": "a/b"}, 422, "/user", id="user-no-path-holds"),
        pytest.param({"event_id": ""}, 422, "/event_id", id="empty-id"),
        pytest.param({"position": 0}, 422, "/position", id="position-0"),
        pytest.param({"colour": "red"}, 422, "/colour", id="unknown-field"),
        pytest.param({"at": "2020-01-01T00:00:00Z"}, 422, "/at", id="too-old"),
        pytest.param({"at": "yesterday"}, 422, "/at", id="no-time"),
        pytest.param({"scenario": "x" * 5000}, 413, None, id="too-large"),
    ],
)
def test_an_event_is_refused_with_what_is_wrong(
    client: httpx2.Client, fields: dict[str, Any], status: int, pointer: str | None
) -> None:
    answer = client.post("/events", json=event() | fields)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    if pointer:
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize(("ahead", "status"), [(240, 200), (360, 422)], ids=["within", "beyond"])
def test_a_time_ahead_of_the_clock_is_bounded(client: httpx2.Client, ahead: int, status: int) -> None:
    at = (datetime.now(UTC) + timedelta(seconds=ahead)).isoformat()
    assert client.post("/events", json=event(at=at)).status_code == status


def test_an_unknown_note_is_not_created(client: httpx2.Client) -> None:
    client.post("/events", json=[event("nobody")])
    assert client.get("/notes/nobody").status_code == 404


def test_a_refused_event_is_accepted_once_its_note_is_there(client: httpx2.Client) -> None:
    one = event("later")
    assert client.post("/events", json=one).status_code == 404
    client.post("/notes", json={"id": "later", "title": "later"})
    assert client.post("/events", json=one).json()["status"] == "accepted"


def test_a_list_over_its_bound_is_refused_whole(client: httpx2.Client) -> None:
    answer = client.post("/events", json=[event() for _ in range(21)])
    assert (answer.status_code, "max_batch_events = 20" in answer.text) == (413, True)


def test_a_list_that_is_not_json_is_refused_whole(client: httpx2.Client) -> None:
    answer = client.post("/events", content="[{}, {]", headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_bounds_of_events_are_published(client: httpx2.Client) -> None:
    limits = client.get("/limits").json()
    assert limits["max_batch_events"] == 20
    assert {"max_event_bytes", "event_seconds", "event_bytes", "event_id_seconds", "event_ids"} <= limits.keys()


def test_a_key_needs_the_scope_of_events(serve: Serve) -> None:
    bootstrap = "the-bootstrap-key-of-these-tests"
    with serve(bootstrap_key=bootstrap) as url, httpx2.Client(base_url=url) as client:
        root = {"Authorization": f"Bearer {bootstrap}"}
        body = {"name": "reads", "scopes": ["notes.read", "similar"]}
        key = client.post("/keys", json=body, headers=root).json()["key"]
        own = {"Authorization": f"Bearer {key}"}
        assert client.post("/events", json=event(), headers=own).status_code == 403
        assert client.delete("/users/u1/events", headers=own).status_code == 403
        assert client.get("/reports/recommendations", headers=own).status_code == 403


def test_accepted_events_are_counted_by_what_became_of_them(client: httpx2.Client) -> None:
    def counted(outcome: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        values = [line.split()[1] for line in lines if line.startswith(f'notellm_events_total{{outcome="{outcome}"}}')]
        return float(values[0]) if values else 0.0

    before = [counted(outcome) for outcome in ("accepted", "unknown_note", "invalid")]
    client.post("/events", json=[event(), event("nobody"), event(type="bought")])
    assert [counted(outcome) for outcome in ("accepted", "unknown_note", "invalid")] == [one + 1 for one in before]


def test_reports_tell_shown_and_clicked_apart(client: httpx2.Client, eventually: Eventually) -> None:
    def told(type: str, note: str, recommendation: str, **fields: Any) -> dict[str, Any]:
        return event(note, type=type, recommendation_id=recommendation, scenario="feed", **fields)

    client.post(
        "/events",
        json=[
            *(told("shown", note, "r1", position=place) for place, note in enumerate("abcd", 1)),
            *(told("click", note, "r1") for note in "aab"),
            told("click", "c", "r2"),
            event("a", type="shown"),
        ],
    )

    def report(**params: Any) -> Any:
        return client.get("/reports/recommendations", params={"by": "scenario", **params}).json()

    eventually(lambda: report()["unmatched"] == 1)
    (rate,) = report()["rates"]
    assert (rate["scenario"], rate["shown"], rate["clicked"], rate["rate"]) == ("feed", 4, 2, 0.5)
    assert 0.14 < rate["low"] < 0.16 < 0.84 < rate["high"] < 0.86
    by_position = {rate["position"]: rate["clicked"] for rate in report(by="position")["rates"]}
    assert by_position == {"1": 1, "2": 1, "3": 0, "4": 0}
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert (report(since=tomorrow)["rates"], report(since=tomorrow)["unmatched"]) == ([], 0)
    assert report()["left_out"] == 0


def test_note_that_is_shown_twice_is_not_clicked_where_showing_has_a_weight(
    serve: Serve, eventually: Eventually
) -> None:
    with serve(event_types=("shown=0.1", "click=1")) as url, httpx2.Client(base_url=url, timeout=60) as client:
        client.post("/notes", json=[{"id": name, "title": name} for name in "ab"])
        told = [("a", "shown"), ("a", "shown"), ("b", "shown"), ("b", "click")]
        client.post("/events", json=[event(note, type=type, recommendation_id="r") for note, type in told])

        def rates() -> list[tuple[int, int]]:
            answer = client.get("/reports/recommendations").json()
            return [(rate["shown"], rate["clicked"]) for rate in answer["rates"]]

        eventually(lambda: bool(rates()) and rates()[0][1] > 0)
        assert rates() == [(2, 1)]


@pytest.mark.parametrize(
    ("path", "module", "name", "others"),
    [
        ("/events/reads", "service.api.ingest_events", "max_exports", []),
        ("/notes/export", "service.api.routes.export", "max_exports", ["/users/exported/events", "/sessions/s/events"]),
        ("/users/exported/events", "service.api.ingest_events", "max_reader_exports", ["/notes/export"]),
    ],
)
def test_exports_run_for_as_many_callers_as_the_limits_say(
    client: httpx2.Client,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    module: str,
    name: str,
    others: list[str],
) -> None:
    def count_refused() -> float:
        series = 'notellm_rejected_total{reason="too-many-waiting"} '
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.removeprefix(series)) for line in lines if line.startswith(series))

    bound, refused_before = client.get("/limits").json()[name], count_refused()
    client.post("/events", json=event(user="exported"))
    eventually(lambda: bool(client.get("/events/reads").text))
    held, release = count(1), threading.Event()
    all_held = threading.Event()

    async def hold(request: Request) -> None:
        if next(held) == bound:
            all_held.set()
        await asyncio.to_thread(release.wait, 60)

    monkeypatch.setattr(f"{module}.reauthorise", hold)
    with ThreadPoolExecutor(bound) as threads:
        exports = [threads.submit(client.get, path) for _ in range(bound)]
        assert all_held.wait(60)
        refused = client.get(path)
        assert [client.get(other).status_code for other in others] == [200] * len(others)
        release.set()
        assert {export.result().status_code for export in exports} == {200}
    assert count_refused() == refused_before + 1
    assert (refused.status_code, f"{name} = {bound}" in refused.json()["detail"]) == (429, True)
    assert client.get(path).status_code == 200


def test_reads_are_not_exported_before_all_events_were_read(
    serve: Serve, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, read = threading.Event(), RedisEventStore.read

    async def read_behind_gate(own: RedisEventStore, *arguments: Any) -> tuple[list[EventEntry], str]:
        await asyncio.to_thread(gate.wait, 60)
        return await read(own, *arguments)

    monkeypatch.setattr(RedisEventStore, "read", read_behind_gate)
    with serve() as url, httpx2.Client(base_url=url, timeout=60) as client:
        try:
            refused = client.get("/events/reads")
            assert (refused.status_code, refused.json()["type"].rpartition("/")[2]) == (503, "behaviour-behind")
            assert int(refused.headers["retry-after"]) >= 1
        finally:
            gate.set()
        eventually(lambda: client.get("/events/reads").status_code == 200)


def test_bodies_of_lines_run_for_as_many_callers_as_the_limits_say(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = client.get("/limits").json()["max_event_bodies"]
    held, release, all_held = count(1), threading.Event(), threading.Event()

    async def hold(request: Request) -> None:
        if next(held) == bound:
            all_held.set()
        await asyncio.to_thread(release.wait, 60)

    def post_lines() -> httpx2.Response:
        return client.post("/events", content=json.dumps(event()), headers=NDJSON)

    monkeypatch.setattr("service.api.ingest_events.reauthorise", hold)
    with ThreadPoolExecutor(bound) as threads:
        bodies = [threads.submit(post_lines) for _ in range(bound)]
        assert all_held.wait(60)
        refused = post_lines()
        assert statuses(client.post("/events", json=[event(), event()])) == ["accepted"] * 2
        release.set()
        assert ['"accepted"' in body.result().text for body in bodies] == [True] * bound
    assert (refused.status_code, f"max_event_bodies = {bound}" in refused.json()["detail"]) == (429, True)
    assert int(refused.headers["retry-after"]) >= 1
    assert post_lines().status_code == 200


def test_one_erasure_of_a_tenant_runs_at_a_time(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, release, forget = threading.Event(), threading.Event(), RedisEventStore.forget

    async def hold(store: RedisEventStore, reader: str) -> int:
        begun.set()
        await asyncio.to_thread(release.wait, 60)
        return await forget(store, reader)

    monkeypatch.setattr(RedisEventStore, "forget", hold)
    client.post("/events", json=event(user="erased"))
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(client.delete, "/users/erased/events")
        assert begun.wait(60)
        refused = [client.delete(f"/{kind}/another/events") for kind in ("users", "sessions")]
        release.set()
        assert first.result().json() == {"events": 1}
    assert {answer.status_code for answer in refused} == {429}
    assert all("max_erasures = 1" in answer.json()["detail"] for answer in refused)
    assert client.delete("/users/erased/events").json() == {"events": 0}


def test_a_report_by_an_unknown_dimension_names_those_that_there_are(client: httpx2.Client) -> None:
    answer = client.get("/reports/recommendations", params={"by": "colour"})
    assert answer.status_code == 422
    assert "scenario, variant, position, source" in answer.json()["errors"][0]["detail"]
