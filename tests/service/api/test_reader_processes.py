"""Reader processes: answers equal those of a single process, whichever reader process the system gives a connection
to."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.process import Process, alive, running, wait_until

pytestmark = pytest.mark.slow
KEY = "the-bootstrap-key-of-these-tests"
READERS, COUNT = 2, 60
CONNECTIONS = 40
"""Connections of a test; the probability that one of three processes gets none of them is 1 in 3 million."""


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path) -> Iterator[Process]:
    """A service with reader processes, keys and some notes."""
    with running(tiny_checkpoint, NOTELLM_READERS=str(READERS), NOTELLM_BOOTSTRAP_KEY=KEY) as process:
        notes = [
            {"id": f"n{i}", "title": f"note {i}", "author": f"a{i % 4}", "category": f"c{i % 3}"} for i in range(COUNT)
        ]
        assert call(process, "POST", "/notes", json=notes).status_code == 207
        yield process


def call(service: Process, method: str, path: str, key: str = KEY, **options: Any) -> httpx2.Response:
    """Send a request over a new connection."""
    headers = {"Authorization": f"Bearer {key}", **options.pop("headers", {})}
    return httpx2.request(method, service.url + path, headers=headers, timeout=60, **options)


def read_everywhere(service: Process, path: str, **options: Any) -> list[httpx2.Response]:
    """Send a request over CONNECTIONS connections, so that each process gets some."""
    return [call(service, "GET", path, **options) for _ in range(CONNECTIONS)]


def requests_by_reader(service: Process, route: str) -> dict[str, int]:
    """Return the number of answered requests of a route by reader process number; "" stands for the service itself."""
    counts: dict[str, int] = {}
    for family in text_string_to_metric_families(call(service, "GET", "/metrics").text):
        for sample in family.samples:
            if sample.name == "notellm_http_request_duration_seconds_count" and sample.labels["route"] == route:
                reader = sample.labels.get("reader", "")
                counts[reader] = counts.get(reader, 0) + int(sample.value)
    return counts


def lists_by_reader(service: Process) -> dict[str, float]:
    """Return the number of neighbour lists from memory by reader process number; "" stands for the service itself."""
    return {reader: lists for (reader, source), lists in searches_by_reader(service).items() if source == "memory"}


def searches_by_reader(service: Process) -> dict[tuple[str, str], float]:
    """Return the number of neighbour lists of searches by reader process number and source (memory or index)."""
    return {
        (sample.labels.get("reader", ""), sample.labels["source"]): sample.value
        for family in text_string_to_metric_families(call(service, "GET", "/metrics").text)
        for sample in family.samples
        if sample.name == "notellm_neighbour_lists_total"
    }


def reader_pids(service: Process) -> list[int]:
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == service.pid and b"service.cli.reader_process" in command:
            pids.append(int(stat.parent.name))
    return pids


@pytest.mark.parametrize(
    ("route", "path"),
    [
        ("/notes/{note_id}/similar", "/notes/n7/similar?k=5"),
        ("/notes/{note_id}/similar", "/notes/n7/similar?author=a1&min_score=-1&exclude=n1"),
        ("/notes/{note_id}", "/notes/n7"),
    ],
)
def test_read_has_the_same_answer_from_each_process(service: Process, route: str, path: str) -> None:
    before = requests_by_reader(service, route)
    answers = read_everywhere(service, path)
    after = requests_by_reader(service, route)
    told = {(answer.status_code, answer.headers.get("etag"), without_id(answer)) for answer in answers}
    assert len(told) == 1
    assert told.pop()[0] == 200
    assert all(after[reader] > before.get(reader, 0) for reader in ("", "1", "2"))
    assert sum(after.values()) - sum(before.values()) == CONNECTIONS
    assert len({answer.headers["x-request-id"] for answer in answers}) == CONNECTIONS


def without_id(answer: httpx2.Response) -> str:
    """Return the body of an answer without the ids that differ between equal answers."""
    body = answer.json()
    body.pop("recommendation_id", None)
    body.pop("instance", None)
    return json.dumps(body, sort_keys=True)


def test_reader_process_searches_nothing_for_a_key_that_has_used_up_its_quota(service: Process) -> None:
    body = {"name": "few", "scopes": ["similar"], "quota": {"requests_per_minute": 1}}
    key = call(service, "POST", "/keys", json=body).json()["key"]
    assert call(service, "GET", "/notes/n9/similar?k=4", key=key).status_code == 200
    before = searches_by_reader(service)
    answers = read_everywhere(service, "/notes/n9/similar?k=4", key=key)
    assert {answer.status_code for answer in answers} == {429}
    assert searches_by_reader(service) == before


def test_lists_that_each_process_keeps_are_counted(service: Process) -> None:
    before = lists_by_reader(service)
    for _ in range(2):
        read_everywhere(service, "/notes/n7/similar?k=3")
    now = lists_by_reader(service)
    assert now.keys() == {"", "1", "2"}
    assert all(now[reader] > before.get(reader, 0) for reader in now)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/notes/none/similar", 404),
        ("/notes/n7/similar?kk=5", 422),
        ("/notes/n7/similar?k=100000", 422),
        ("/notes/n7/similar?diversity=0.5", 200),
        ("/notes/n7/similar?min_log_position=99999999999999-0", 422),
        ("/notes/none", 404),
        ("/nothing", 404),
        ("/limits", 200),
        ("/livez", 200),
        ("/readyz", 200),
        ("/openapi.json", 200),
    ],
)
def test_what_a_reader_process_does_not_answer_comes_from_the_service(service: Process, path: str, status: int) -> None:
    answers = read_everywhere(service, path, headers={"X-Request-Id": "mine"})
    assert {answer.status_code for answer in answers} == {status}
    assert len({without_id(answer) for answer in answers}) == 1
    assert {answer.headers["x-request-id"] for answer in answers} == {"mine"}
    assert len({answer.headers["content-type"] for answer in answers}) == 1


def test_head_is_counted_as_head_by_the_process_that_answers_it(service: Process) -> None:
    answers = [call(service, "HEAD", "/limits") for _ in range(CONNECTIONS)]
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, b"")}
    (counted,) = [
        sample.value
        for family in text_string_to_metric_families(call(service, "GET", "/metrics").text)
        for sample in family.samples
        if sample.name == "notellm_http_request_duration_seconds_count"
        and sample.labels["route"] == "/limits"
        and sample.labels["method"] == "HEAD"
        and "reader" not in sample.labels
    ]
    assert counted == CONNECTIONS


def test_invalid_time_to_wait_is_refused_by_each_process(service: Process) -> None:
    answers = read_everywhere(service, "/notes/n7/similar?k=2", headers={"X-Request-Timeout": "-1"})
    assert {answer.status_code for answer in answers} == {422}


def test_new_note_is_in_the_next_list_of_each_process(service: Process) -> None:
    for n in range(5):
        assert call(service, "PUT", f"/notes/twin-{n}", json={"title": "the very same words"}).status_code == 201
        answers = read_everywhere(service, "/notes/twin-0/similar?k=4")
        assert {len(answer.json()["items"]) for answer in answers} == {4}
        assert all({f"twin-{i}" for i in range(1, n + 1)} <= ids_of(answer) for answer in answers)


def ids_of(answer: httpx2.Response) -> set[str]:
    return {item["id"] for item in answer.json()["items"]}


def test_export_is_the_export_at_each_process_beside_a_note_of_this_id(service: Process) -> None:
    assert call(service, "PUT", "/notes/export", json={"title": "a note called export"}).status_code == 201
    assert all('"end"' in answer.text for answer in read_everywhere(service, "/notes/export"))
    assert call(service, "DELETE", "/notes/export").status_code in (200, 204)


def test_change_is_seen_by_each_process_at_once(service: Process) -> None:
    """Notes are added and removed over any connection; no later answer over another one is older than the change."""
    rng = random.Random(1)
    for number in range(30):
        note_id = f"short-{number}"
        assert call(service, "PUT", f"/notes/{note_id}", json={"title": f"note {rng.randrange(COUNT)}"}).is_success
        with ThreadPoolExecutor(6) as threads:
            paths = [f"/notes/{note_id}/similar", f"/notes/{note_id}", "/notes/n1/similar?k=50"] * 2
            answers = list(threads.map(lambda path: call(service, "GET", path), paths))
            assert {answer.status_code for answer in answers} == {200}
            assert call(service, "DELETE", f"/notes/{note_id}").status_code == 200
            answers = list(threads.map(lambda path: call(service, "GET", path), paths))
        assert [answer.status_code for answer in answers] == [404, 404, 200] * 2
        assert note_id not in answers[2].text + answers[5].text


def test_quota_counts_the_requests_of_all_processes(service: Process) -> None:
    body = {"name": "few", "scopes": ["similar", "notes.read"], "quota": {"requests_per_minute": 15}}
    key = call(service, "POST", "/keys", json=body).json()["key"]
    paths = ["/notes/n1/similar", "/notes/none/similar", "/notes/n2"]
    answers = [call(service, "GET", paths[i % 3], key) for i in range(30)]
    assert [answer.status_code for answer in answers] == [200, 404, 200] * 5 + [429] * 15
    assert all("ratelimit" in answer.headers for answer in answers)
    assert all(len(answer.headers.get_list("ratelimit")) == 1 for answer in answers)
    assert "retry-after" in answers[-1].headers


def test_scope_and_revocation_hold_at_each_process(service: Process) -> None:
    made = call(service, "POST", "/keys", json={"name": "reads", "scopes": ["notes.read"]}).json()
    assert {answer.status_code for answer in read_everywhere(service, "/notes/n1", key=made["key"])} == {200}
    assert {answer.status_code for answer in read_everywhere(service, "/notes/n1/similar", key=made["key"])} == {403}
    assert {answer.status_code for answer in read_everywhere(service, "/notes/n1", key="wrong")} == {401}
    assert call(service, "DELETE", f"/keys/{made['prefix']}").is_success
    wait_until(lambda: {one.status_code for one in read_everywhere(service, "/notes/n1", key=made["key"])} == {401})


def test_tenants_are_apart_at_each_process(service: Process) -> None:
    body = {"name": "other", "scopes": ["notes.read", "notes.write", "similar"], "tenant": "other"}
    key = call(service, "POST", "/keys", json=body).json()["key"]
    assert call(service, "PUT", "/notes/n1", key, json={"title": "of another tenant"}).status_code == 201
    for answer in read_everywhere(service, "/notes/n1/similar", key=key):
        assert (answer.status_code, answer.json()["items"]) == (200, [])
    assert {answer.json()["title"] for answer in read_everywhere(service, "/notes/n1", key=key)} == {
        "of another tenant"
    }


def test_killed_reader_process_is_replaced_and_counted(service: Process) -> None:
    killed = random.choice(reader_pids(service))
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not alive(killed) and len(reader_pids(service)) == READERS)
    wait_until(lambda: "2 of 2 are ready" in call(service, "GET", "/readyz").text)
    assert "notellm_reader_restarts_total 1.0" in call(service, "GET", "/metrics").text
    assert '"reader_gone"' in service.log
    assert {answer.status_code for answer in read_everywhere(service, "/notes/n1")} == {200}


def test_reader_processes_end_with_the_service_and_have_no_admin_routes(tiny_checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        admin_port = str(free.getsockname()[1])
    settings = {"NOTELLM_READERS": "1", "NOTELLM_ADMIN_PORT": admin_port, "NOTELLM_DRAIN_SECONDS": "600"}
    settings["NOTELLM_STORE_MEMORY_BYTES"] = str(2**28)  # for the parent only: with a Redis address it would be refused
    with running(tiny_checkpoint, **settings) as service:
        assert {answer.status_code for answer in read_everywhere(service, "/metrics")} == {404}
        assert call(service, "PUT", "/notes/n1", json={"title": "soup"}).status_code == 201
        (reader,) = reader_pids(service)
        service.end(signal.SIGKILL)
        wait_until(lambda: not alive(reader))
        service.start()
        (other,) = reader_pids(service)
        check_drain(service)
        assert not alive(other)


def check_drain(service: Process) -> None:
    """Send SIGTERM, and check that every process still answers, with `Connection: close`."""
    service.send(signal.SIGTERM)
    wait_until(lambda: call(service, "GET", "/readyz").status_code == 503)
    answers = read_everywhere(service, "/notes/n1/similar")
    assert {(answer.status_code, answer.headers.get("connection")) for answer in answers} == {(200, "close")}
    service.send(signal.SIGTERM)  # a second signal ends the drain
    assert service.wait() == -signal.SIGTERM
