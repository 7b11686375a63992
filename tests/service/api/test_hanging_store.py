"""A Redis that accepts connections and answers nothing: one bound on all waits of a read, whatever it asks for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx2
import pytest

from service.index.live import LiveIndex
from service.read_time import NEXT_SECONDS
from service.records import LogBounds, LogEntry
from service.search.examples import read_examples
from service.store.redis_store import RedisNoteStore
from tests.service.api.conftest import Serve, eventually_true, gauge

FOR_EVER = 600.0
"""Seconds of the store's own time-out, so long that a read with no other bound is not answered in time."""


@pytest.fixture(autouse=True)
def patient_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.shared_wiring.RedisNoteStore", partial(RedisNoteStore, timeout_seconds=FOR_EVER))


@contextlib.contextmanager
def short_reads() -> Iterator[None]:
    """Let reads wait a tenth of a second for the store while the block lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.read_time.READ_SECONDS", 0.1)
        yield


def test_metrics_say_not_ready_where_readyz_does(
    serve: Serve, guarded_redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store_probe.WATCH_SECONDS", 0.02)
    with serve(redis_url=guarded_redis.url) as url, httpx2.Client(base_url=url, timeout=20) as client:
        eventually_true(lambda: gauge(client, "notellm_ready") == 1)
        with short_reads(), guarded_redis.hanging():
            assert client.get("/readyz").status_code == 503
            eventually_true(lambda: gauge(client, "notellm_ready") == 0)
        eventually_true(lambda: gauge(client, "notellm_ready") == 1)


class RecordedTimes:
    """Reads examples as the service does, and records how many seconds each search may wait for the store."""

    def __init__(self) -> None:
        self.times: list[float] = []

    async def __call__(self, *arguments: Any) -> Any:
        self.times.append(arguments[-1].seconds)
        return await read_examples(*arguments)


def test_reads_of_a_hanging_store_share_one_bound(serve: Serve, guarded_redis: Any) -> None:
    with serve(redis_url=guarded_redis.url) as url, httpx2.Client(base_url=url, timeout=20) as client:
        for note_id in ("a", "b"):
            added = client.post("/notes", json={"id": note_id, "title": note_id, "hashtags": ["tagged"]})
            assert added.status_code == 201
        later = f"{int(added.json()['log_position'].partition('-')[0]) + 1}-0"
        with short_reads(), guarded_redis.hanging():
            for answer in (
                client.get("/notes/a"),
                client.get("/notes/unknown/similar"),
                client.get("/notes/a/similar", params={"min_log_position": later}),
            ):
                assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (503, "store-unavailable")
                assert int(answer.headers["retry-after"]) >= 1
            assert client.get("/notes/a/similar").json()["degraded"]
            searches = [{"positive": [{"note_id": "unknown"}]}] * 2
            listed = client.post("/similar/batch", json=searches)
            assert (listed.status_code, [one["status"] for one in listed.json()["results"]]) == (207, [503, 503])
            within = 'notellm_answers_with_problems_total{method="POST",route="/similar/batch",status="503"}'
            assert gauge(client, within) == 1
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("service.search.search.read_examples", recorded := RecordedTimes())
                assert client.post("/similar/batch", json=searches * 5).status_code == 207
            assert recorded.times == [0.1, *[NEXT_SECONDS] * 9], "one search waits for the whole time"
            included = client.post("/similar", json={"title": "a", "include": ["content"]}).json()
            assert included["degraded"]
            assert {item["content"] for item in included["items"]} == {None}
            list_of_one = {"title": "a", "k": 1, "cursor": "*"}
            page = client.post("/similar", json=list_of_one).json()
            assert (page["degraded"], page["next_cursor"], len(page["items"])) == (True, None, 1)
            assert client.post("/generate/hashtags", json={"title": "a", "policy": "grounded"}).status_code == 200
            readiness = client.get("/readyz")
            assert (readiness.status_code, readiness.json()["checks"]["store"]["ok"]) == (503, False)
        eventually_true(lambda: client.get("/notes/a/similar").json().get("degraded") is False)
        assert client.post("/similar", json=list_of_one).json()["next_cursor"], "the null of before was no end"


def test_wait_for_a_position_has_the_same_bound_or_the_callers(
    serve: Serve, guarded_redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.recommender.WAIT_SECONDS", FOR_EVER)
    follows = threading.Event()
    follows.set()

    class HeldStore(RedisNoteStore):
        async def read_log(self, after: str, count: int, block_seconds: float) -> tuple[list[LogEntry], LogBounds]:
            await asyncio.to_thread(follows.wait, 60)
            return await super().read_log(after, count, block_seconds)

    with serve(redis_url=guarded_redis.url) as first:
        httpx2.post(f"{first}/notes", json={"id": "a", "title": "a"}).raise_for_status()
        monkeypatch.setattr("service.shared_wiring.RedisNoteStore", HeldStore)
        with serve(redis_url=guarded_redis.url) as url, httpx2.Client(base_url=url, timeout=20) as second:
            follows.clear()
            written: dict[str, str] = {}

            def is_behind() -> bool:
                answer = httpx2.put(f"{first}/notes/b", json={"title": f"b {time.monotonic()}"}, timeout=20)
                written["min_log_position"] = answer.json()["log_position"]
                return second.get("/notes/a/similar", params=written).json().get("type", "").endswith("/index-behind")

            with short_reads():
                eventually_true(is_behind)
            body = {"title": "a", **written}
            late = second.post("/similar", json=body, headers={"x-request-timeout": "1"})
            assert (late.status_code, late.json()["type"].rpartition("/")[2]) == (503, "index-behind")
            assert written["min_log_position"] in late.json()["detail"]
            asked, waits, wait_for = list[float](), threading.Event(), LiveIndex.wait_for

            async def recorded(index: LiveIndex, position: str, seconds: float) -> None:
                if position == written["min_log_position"]:
                    asked.append(seconds)
                    waits.set()
                await wait_for(index, position, seconds)

            def release() -> None:
                waits.wait(30)
                follows.set()

            monkeypatch.setattr(LiveIndex, "wait_for", recorded)
            releasing = threading.Thread(target=release)
            releasing.start()
            answer = second.get("/notes/a/similar", params=written, headers={"x-request-timeout": "15"})
            releasing.join()
            assert asked[:1] == [15]
            assert [item["id"] for item in answer.json()["items"]] == ["b"]
            assert answer.json()["degraded"] is False, "the wait for the index is not one for the store"


@pytest.mark.parametrize("value", ["0", "soon", "nan"])
def test_wrong_time_to_wait_is_named(client: httpx2.Client, value: str) -> None:
    answer = client.get("/notes/sample-en-001/similar", headers={"x-request-timeout": value})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/header/x-request-timeout"
