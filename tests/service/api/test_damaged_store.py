"""A store that is unavailable, full, or has lost writes: what the log and /readyz say."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
import structlog

from service.store import embedded_redis
from service.store.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from service.store.purge import purge_store, purge_store_if_due
from service.store.redis_keys import LOG
from tests.service.api.conftest import Serve, eventually_true, gauge
from tests.service.api.routes.test_events import event
from tests.service.api.test_tenant_keys import BOOTSTRAP_KEY, SCOPES, under
from tests.service.conftest import DebianRedis, Server

pytestmark = pytest.mark.slow
NOTES = 20


def readiness(url: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx2.get(f"{url}/readyz").json()
    return answer


def log_file(folder: Path) -> Path:
    """Return the append-only file that has the writes of an embedded server."""
    (file,) = (folder / "appendonlydir").glob("*.incr.aof")
    return file


@pytest.fixture
def filled(short_folder: Path, serve: Serve) -> Path:
    """Data folder of a stopped service, with a snapshot of all its notes."""
    with serve(data_dir=short_folder / "d") as url:
        for n in range(NOTES):
            assert httpx2.post(f"{url}/notes", json={"title": f"note {n}"}).status_code == 201
    return short_folder / "d"


def test_cut_log_is_told_by_the_log_and_by_readyz(filled: Path, serve: Serve) -> None:
    file = log_file(filled)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    with structlog.testing.capture_logs() as lines, serve(data_dir=filled) as url:
        ready = readiness(url)
        with httpx2.Client(base_url=url) as client:
            lost, durable = [gauge(client, f"notellm_store_{name}") for name in ("lost_writes", "durable")]
    events = {line["event"]: line["detail"] for line in lines if line["log_level"] == "error"}
    assert (lost, durable) == (1, 1), "what is written from now on is durable"
    assert "truncated" in events["embedded_redis_warns"]
    assert "acknowledged writes are lost" in events["store_lost_writes"]
    assert (ready["ready"], ready["durable"]) == (True, False)
    assert "acknowledged writes are lost" in ready["checks"]["store"]["detail"]
    assert 0 < ready["notes"] < NOTES


def test_whole_log_is_told_to_be_durable(filled: Path, serve: Serve) -> None:
    with structlog.testing.capture_logs() as lines, serve(data_dir=filled) as url:
        ready = readiness(url)
    assert [line for line in lines if line["log_level"] == "error"] == []
    assert (ready["durable"], ready["notes"]) == (True, NOTES)


def test_overwritten_log_is_told_by_the_start(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = log_file(filled)
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"overwritten" * 100)
    monkeypatch.setattr(embedded_redis, "START_SECONDS", 5.0)
    server = EmbeddedRedis(filled)
    with structlog.testing.capture_logs() as lines, pytest.raises(EmbeddedRedisError):
        server.start()
    server.stop()
    assert any("Bad file format" in line["detail"] for line in lines if line["event"] == "embedded_redis_warns")


def test_full_embedded_store_refuses_writes_and_reads_go_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.store_probe.WATCH_SECONDS", 0.02)
    with serve(store_memory_bytes=16 * 2**20) as url, httpx2.Client(base_url=url, timeout=60) as client:
        statuses = []
        while 503 not in statuses:
            assert len(statuses) < 1000, "the store was never full"
            answer = client.post("/notes", json={"title": f"note {len(statuses)}", "content": "full " * 40_000})
            statuses.append(answer.status_code)
        assert "memory" in answer.json()["detail"]
        assert set(statuses) == {201, 503}
        note_id = client.post("/similar", json={"title": "note", "k": 1}).json()["items"][0]["id"]
        assert client.get(f"/notes/{note_id}").status_code == 200
        eventually_true(lambda: gauge(client, "notellm_store_memory_filled_ratio") > 0.9)
        assert client.get("/readyz").status_code == 200, "the alert on this gauge is what tells of it"


def test_nearly_full_disk_refuses_writes_and_reads_go_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as url, httpx2.Client(base_url=url, timeout=60) as client:

        def written() -> httpx2.Response:
            return client.post("/notes", json={"title": "another note"})

        client.post("/notes", json={"id": "before", "title": "note"})
        assert 0 < gauge(client, "notellm_data_free_ratio") < 1
        monkeypatch.setattr(embedded_redis, "DISK_RESERVE_BYTES", 2**62)
        eventually_true(lambda: written().status_code == 503)
        assert "or, for the embedded server, its disk" in written().json()["detail"]
        assert client.get("/notes/before").status_code == 200
        assert client.get("/notes/before/similar").json()["degraded"] is False
        assert client.delete("/notes/before").status_code == 200
        monkeypatch.setattr(embedded_redis, "DISK_RESERVE_BYTES", 0)
        eventually_true(lambda: written().status_code == 201)


def test_whatever_removes_goes_on_where_memory_is_full(serve: Serve, server: Server) -> None:
    with (
        serve(redis_url=server.url, bootstrap_key=BOOTSTRAP_KEY) as url,
        under(url, BOOTSTRAP_KEY) as root,
        redis.Redis.from_url(server.url) as admin,
    ):
        root.post("/notes", json=[{"id": note_id, "title": note_id} for note_id in ("a", "b", "keyed")])
        root.post("/events", json=[event("a"), event("b"), event("b", user="u2")])
        revoked, acme = (
            root.post("/keys", json={"name": name, "tenant": name, "scopes": SCOPES}).json()
            for name in ("default", "acme")
        )
        with under(url, acme["key"]) as client:
            assert client.put("/notes/a", json={"title": "a"}).status_code == 201
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
        assert root.put("/notes/c", json={"title": "c"}).status_code == 503

        with under(url, revoked["key"]) as client:
            assert client.get("/notes/a").status_code == 200
            assert root.delete(f"/keys/{revoked['prefix']}").status_code == 204
            assert client.get("/notes/a").status_code == 401, (
                "the keys were read again, beside the last use of this one"
            )
        assert len(root.get("/users/u1/events").text.splitlines()) == 2
        assert root.delete("/users/u1/events").json() == {"events": 2}
        assert root.delete("/notes/a").status_code == 200
        assert root.delete("/notes/keyed", headers={"Idempotency-Key": "once"}).status_code == 200
        assert root.delete("/tenants/acme").status_code == 204
        assert purge_store_if_due(server.url, 60.0, time.time()) == (pytest.approx(time.time(), abs=60), False)
        purge_store(server.url)
        assert len(root.get("/users/u2/events").text.splitlines()) == 1
        assert [act["act"] for act in root.get("/audit").json()["acts"]][:4] == [
            *("tenants.remove", "keys.revoke", "tenants.remove", "keys.revoke")
        ]
        assert not admin.keys("{notes}:tenant:acme:*")
        assert admin.hkeys("{access}:keys") == []
        assert [fields[b"op"] for _, fields in admin.xrange(LOG)] == [b"purge"]


def test_store_unavailable_at_the_start_is_told(serve: Serve, debian_redis: DebianRedis) -> None:
    debian_redis.stop()
    with (
        structlog.testing.capture_logs() as lines,
        serve(redis_url=debian_redis.url, wait=False) as url,
    ):
        eventually_true(lambda: httpx2.get(f"{url}/startupz").status_code == 200)
        ready = httpx2.get(f"{url}/readyz")
        assert (ready.status_code, ready.json()["checks"]["store"]["ok"]) == (503, False)
        debian_redis.start()
        eventually_true(lambda: httpx2.get(f"{url}/readyz").status_code == 200)
    events = [line["event"] for line in lines if line["event"].startswith("store_")]
    assert events == ["store_unavailable", "store_available"]
