"""The log line of a request: what it says, what it never says, and which requests have none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import structlog

from tests.service.api.conftest import Serve

Lines = Callable[[int], list[dict[str, Any]]]
TEXT = "the secret of the lemon tart"


@pytest.fixture
def lines(eventually: Callable[[Callable[[], bool]], None]) -> Iterator[Lines]:
    """Return a function that returns the log lines of requests, once there are at least `count`."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as captured:

        def requests(count: int) -> list[dict[str, Any]]:
            def found() -> list[dict[str, Any]]:
                return [dict(line) for line in list(captured) if line["event"] == "request"]

            eventually(lambda: len(found()) >= count)
            return found()

        yield requests


@pytest.fixture(scope="module")
def unlogged_url(serve: Serve) -> Iterator[str]:
    """Address of a service that does not log fast answers with a status below 400."""
    with serve(log_sample=0) as address:
        yield address


@pytest.fixture
def nothing_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no answer count as slow, so that a slow machine logs none because of that."""
    monkeypatch.setattr("service.api.request_log.FAST_SECONDS", math.inf)


def test_line_of_a_write_has_its_stages_and_tokens(client: httpx2.Client, lines: Lines) -> None:
    client.post("/notes", json={"title": TEXT}, headers={"x-request-id": "mine"})
    (line,) = lines(1)
    assert {key: line[key] for key in ("method", "route", "status", "request_id")} == {
        "method": "POST",
        "route": "/notes",
        "status": 201,
        "request_id": "mine",
    }
    stages = [line[f"{stage}_ms"] for stage in ("store", "queue", "engine", "index")]
    assert 0 < sum(stages) <= line["ms"] + 0.1  # each is rounded to 0.01
    assert line["prompt_tokens"] > 0
    assert "generated_tokens" not in line
    assert "trace_id" not in line


def test_line_of_a_read_has_its_route_and_no_id(client: httpx2.Client, lines: Lines) -> None:
    client.get("/notes/nobody-knows-me/similar", params={"k": 3})
    (line,) = lines(1)
    assert (line["route"], line["status"]) == ("/notes/{note_id}/similar", 404)
    assert "nobody-knows-me" not in repr(line)
    assert "engine_ms" not in line
    assert "prompt_tokens" not in line


def test_line_of_an_answer_with_problems_has_their_statuses(client: httpx2.Client, lines: Lines) -> None:
    client.post("/similar/batch", json=[{"positive": [{"note_id": "nobody"}]}, {"k": 0}, {"k": 0}])
    client.get("/limits")
    assert [line.get("problems") for line in lines(2)] == [[404, 422], None]


def test_line_of_a_generation_counts_what_was_written(client: httpx2.Client, lines: Lines) -> None:
    client.post("/generate/hashtags", json={"title": TEXT, "count": 2, "policy": "open"})
    (line,) = lines(1)
    assert line["generated_tokens"] > 0
    assert TEXT not in repr(line)


@pytest.mark.usefixtures("nothing_slow")
def test_unlogged_request_leaves_no_stage_to_the_next(unlogged_url: str, lines: Lines) -> None:
    with httpx2.Client(base_url=unlogged_url, timeout=60) as client:
        assert client.post("/similar", json={"title": TEXT}).status_code == 200
        assert client.get("/nothing").status_code == 404
    (line,) = lines(1)
    assert (line["status"], [key for key in line if key.endswith("_ms")]) == (404, [])


@pytest.mark.usefixtures("nothing_slow")
def test_sample_of_none_drops_fast_answers_and_keeps_errors(unlogged_url: str, lines: Lines) -> None:
    assert httpx2.get(f"{unlogged_url}/limits").status_code == 200
    assert httpx2.get(f"{unlogged_url}/notes/nobody").status_code == 404
    assert [line["status"] for line in lines(1)] == [404]


def test_sample_of_none_keeps_slow_answers(unlogged_url: str, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.request_log.FAST_SECONDS", 0.0)
    assert httpx2.get(f"{unlogged_url}/limits").status_code == 200
    assert [line["status"] for line in lines(1)] == [200]
