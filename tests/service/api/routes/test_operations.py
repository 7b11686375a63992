"""Probes, metrics, limits, request ids, the documented API, and what happens when a part is away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

METRICS = (
    "notellm_http_request_duration_seconds",
    "notellm_queue_depth",
    "notellm_queue_wait_seconds",
    "notellm_batch_tokens",
    "notellm_prompt_tokens_total",
    "notellm_time_to_first_token_seconds",
    "notellm_ingest_to_searchable_seconds",
    "notellm_index_vectors",
    "notellm_index_segments",
    "notellm_quarantined_notes",
    "notellm_rejected_total",
    "notellm_model_info",
)


def test_a_ready_service_says_what_it_is(client: httpx2.Client) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["durable"] is True
    assert answer.json()["model"] == "tiny"
    assert all(check["ok"] for check in answer.json()["checks"].values())


def test_the_sample_notes_of_a_first_start_are_there(client: httpx2.Client) -> None:
    assert client.get("/notes/sample-en-001").status_code == 200
    assert client.get("/notes/sample-en-021").status_code == 404


def test_every_promised_metric_is_exported(client: httpx2.Client) -> None:
    client.post("/generate/hashtags", json={"title": "metrics"})
    text = client.get("/metrics").text
    assert [name for name in METRICS if name not in text] == []


def test_redis_away_is_503_and_heals_by_itself(
    serve: Any, debian_redis: Any, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with serve(redis_url=debian_redis.url) as url, httpx2.Client(base_url=url, timeout=30) as client:
        for note_id in ("a", "b"):
            assert client.post("/notes", json={"id": note_id, "title": note_id}).status_code == 201
        debian_redis.stop()
        eventually(lambda: client.get("/readyz").status_code == 503)
        assert client.get("/readyz").json()["checks"]["store"]["ok"] is False
        assert client.get("/livez").status_code == 200
        for answer in (
            client.post("/notes", json={"title": "lost"}),
            client.get("/notes/a"),
            client.get("/notes/unknown/similar"),
            client.delete("/notes/a"),
        ):
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) >= 1
        assert client.post("/generate/hashtags", json={"title": "needs no store"}).status_code == 200
        for similar in (client.get("/notes/a/similar").json(), client.post("/similar", json={"title": "b"}).json()):
            assert similar["degraded"]
            unknown = {"title": None, "hashtags": None, "category": None, "author": None}
            assert [item | {"score": 0} for item in similar["items"]] == [
                {"id": note_id, "score": 0, **unknown} for note_id in ("b", "a") if note_id != similar["note_id"]
            ]
        debian_redis.start()
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/notes", json={"id": "c", "title": "after"}).status_code == 201
        similar = client.get("/notes/a/similar").json()
        assert {item["title"] for item in similar["items"]} == {"b", "after"}
        assert not similar["degraded"]


def test_service_without_a_snapshot_folder_keeps_its_notes(serve: Any, tmp_path: Path, debian_redis: Any) -> None:
    (tmp_path / "snapshots").write_text("in the way")
    for round_ in range(2):
        with serve(data_dir=tmp_path, redis_url=debian_redis.url) as url:
            assert httpx2.get(f"{url}/readyz").json()["notes"] == round_
            assert httpx2.post(f"{url}/notes", json={"id": f"n{round_}", "title": "kept"}).status_code == 201


def test_verify_of_equal_index_and_store_is_well(serve: Any) -> None:
    with serve() as url, httpx2.Client(base_url=url, timeout=30) as client:
        for note_id in ("a", "b"):
            assert client.post("/notes", json={"id": note_id, "title": note_id}).status_code == 201
        answer = client.post("/verify", params={"repair": True}).json()
        assert (answer["well"], answer["repaired"], answer["notes"], answer["rows"]) == (True, False, 2, 2)
        assert all(kind == {"count": 0, "ids": []} for kind in answer["differing"].values())


def test_sample_notes_do_not_enter_a_used_store(serve: Any, tmp_path: Path) -> None:
    with serve(data_dir=tmp_path) as url:
        assert httpx2.post(f"{url}/notes", json={"title": "mine"}).status_code == 201
    with serve(data_dir=tmp_path, sample_notes=None) as url:
        assert httpx2.get(f"{url}/readyz").json()["notes"] == 1


def test_external_redis_gets_no_sample_notes(debian_redis: Any, serve: Any) -> None:
    with serve(redis_url=debian_redis.url, sample_notes=None) as url:
        assert httpx2.get(f"{url}/readyz").json()["notes"] == 0
