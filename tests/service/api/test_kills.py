"""SIGKILL of the service, of its store, or of both: acknowledged operations hold afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.service.api.routes.test_events import event, statuses
from tests.service.api.test_behaviour import kept
from tests.service.conftest import running_embedded
from tests.service.process import Process, running, wait_until

pytestmark = pytest.mark.slow
EVENTS = [event(note, f"u{user}") for user in range(20) for note in "abc"]
SEARCH = {"positive": [{"note_id": "a"}], "k": 2, "diversity": 0.3}
REMOVAL = {"filter": {"author": "tom"}}
KEY = {"Idempotency-Key": "a-removal"}


@dataclass(frozen=True, slots=True)
class Survivor:
    """A client of a service after a kill, and its earlier answers: the whole list and the first page of SEARCH, and the
    receipt of REMOVAL. `store_went_on`: the store was not killed."""

    store_went_on: bool
    client: httpx2.Client
    whole: list[Any]
    page: Any
    receipt: Any


@pytest.fixture(scope="module", params=["service", "store", "both"])
def survivor(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Survivor]:
    """A Survivor of the kill of a service, its store, or both. An embedded server ends with its service, so the service
    that is killed alone uses a server of the test's own."""
    with contextlib.ExitStack() as stack:
        store_goes_on, environment = request.param == "service", dict[str, str]()
        if store_goes_on:
            own = stack.enter_context(running_embedded(tmp_path_factory.mktemp("s") / "data"))
            environment["NOTELLM_REDIS_URL"] = own.url
        process = stack.enter_context(running(tiny_checkpoint, **environment))
        client = stack.enter_context(httpx2.Client(base_url=process.url, timeout=60))
        notes = [{"id": name, "title": name} for name in "abcdef"]
        notes += [{"id": f"gone{number}", "title": "gone", "author": "tom"} for number in range(3)]
        assert client.post("/notes", json=notes).status_code == 207
        for begin in range(0, len(EVENTS), 3):
            assert statuses(client.post("/events", json=EVENTS[begin : begin + 3])) == ["accepted"] * 3
        receipt = client.post("/notes/delete", json=REMOVAL, headers=KEY).json()
        page = client.post("/similar", json=SEARCH | {"cursor": "*"}).json()
        whole = client.post("/similar", json=SEARCH | {"k": 5}).json()["items"]
        kill(process, request.param)
        yield Survivor(store_goes_on, client, whole, page, receipt)


def kill(process: Process, victim: str) -> None:
    """Kill the service, its store or both; return once the service is ready again."""
    if victim in ("store", "both"):
        os.kill(process.redis_pid(), signal.SIGKILL)
    if victim in ("service", "both"):
        process.end(signal.SIGKILL)
        process.start()
    wait_until(process.ready)


def test_acknowledged_events_are_counted(survivor: Survivor) -> None:
    wait_until(lambda: kept(survivor.client) == (60, 20, 3))
    assert statuses(survivor.client.post("/events", json=EVENTS)) == ["duplicate"] * 60


def test_cursor_of_before_goes_on_where_the_store_does_and_is_410_else(survivor: Survivor) -> None:
    items, page = survivor.page["items"], survivor.page
    while page["next_cursor"]:
        answer = survivor.client.post("/similar", json=SEARCH | {"cursor": page["next_cursor"]})
        if not survivor.store_went_on:
            assert (answer.status_code, '"*"' in answer.json()["detail"]) == (410, True)
            return
        assert answer.status_code == 200, answer.text
        page = answer.json()
        items = items + page["items"]
        assert page["recommendation_id"] == survivor.page["recommendation_id"]
    assert items == survivor.whole


def test_removal_that_is_repeated_has_its_receipt(survivor: Survivor) -> None:
    assert survivor.receipt["count"] == 3
    again = survivor.client.post("/notes/delete", json=REMOVAL, headers=KEY)
    assert (again.json(), again.headers["idempotent-replayed"]) == (survivor.receipt, "true")
    ids = survivor.receipt["ids"]
    assert survivor.client.post("/notes/get", json={"ids": ids}).json()["missing"] == ids
