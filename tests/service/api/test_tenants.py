"""Tenants over HTTP: what one tenant does is never visible to another."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from fastapi import Request

from service.access.principal import DEFAULT_TENANT, Principal, Scope
from service.erasure.purge import purge
from service.index.live import LiveIndex
from service.records import StoredNote, Unreadable
from service.store.backup.backup import make_backup
from service.store.backup.restore import restore_backup
from service.store.embedded_redis import EmbeddedRedis
from service.store.redis_keys import RedisKeys
from service.store.redis_store import RedisNoteStore
from service.tenants import MAX_OPENING, Tenants
from tests.service.api.conftest import Serve, eventually_true, gauge

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def tenant_by_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the caller's tenant from a header."""

    async def admit(request: Request, scopes: tuple[Scope, ...]) -> None:
        tenant = request.headers.get("x-tenant", DEFAULT_TENANT)
        request.state.principal = Principal(None, tenant, frozenset(Scope))

    monkeypatch.setattr("service.api.strict_route.StrictRoute.admit", staticmethod(admit))


@contextlib.contextmanager
def as_tenant(url: str, name: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=30, headers={"x-tenant": name}) as client:
        yield client


@pytest.fixture
def store(embedded: EmbeddedRedis) -> EmbeddedRedis:
    """A server that outlives the services of a test."""
    return embedded


@pytest.fixture
def admin(store: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        yield client


def keys_of(admin: redis.Redis, tenant: str) -> set[str]:
    return set(admin.keys(f"{{notes}}:tenant:{tenant}:*"))


def states(client: httpx2.Client) -> dict[str, tuple[str, int | None]]:
    listed = client.get("/tenants").json()["tenants"]
    return {tenant["name"]: (tenant["state"], tenant["notes"]) for tenant in listed}


def test_note_of_a_tenant_is_no_other_ones(serve: Serve, store: EmbeddedRedis, admin: redis.Redis) -> None:
    note = {"title": "lemon soup", "hashtags": ["soup"]}
    with serve(redis_url=store.url) as url, as_tenant(url, "acme") as acme, as_tenant(url, "other") as other:
        assert acme.put("/notes/a", json=note, headers={"Idempotency-Key": "k"}).status_code == 201
        assert other.get("/notes/a").status_code == 404
        assert other.delete("/notes/a").status_code == 404
        assert other.post("/similar", json=note).json()["items"] == []
        assert other.put("/notes/a", json=note, headers={"Idempotency-Key": "k"}).status_code == 201
        assert other.put("/notes/b", json=note).json()["revision"] == 1
        assert [item["id"] for item in acme.post("/similar", json=note).json()["items"]] == ["a"]
        assert acme.post("/verify").json()["notes"] == 1
        with as_tenant(url, "default") as default:
            assert default.get("/readyz").json()["notes"] == 0
            assert states(default) == {"acme": ("ready", 1), "default": ("ready", 0), "other": ("ready", 2)}
            metrics = default.get("/metrics").text
        assert 'notellm_tenant_index_vectors{tenant="other"} 2.0' in metrics
        assert 'notellm_tenant_requests_total{tenant="acme"} 3.0' in metrics
        assert 'notellm_index_vectors{state="live"} 3.0' in metrics
    assert keys_of(admin, "acme") >= {f"{{notes}}:tenant:acme:{name}" for name in ("note:a", "log", "identity")}
    left = set(admin.keys()) - keys_of(admin, "acme") - keys_of(admin, "other")
    ours = {"{notes}:tenants", "{notes}:identity", "{notes}:snapshots", "{access}:audit"}
    assert left <= ours, "nothing lies outside of the tenants"


def test_restart_opens_tenants_from_their_snapshots(
    serve: Serve, store: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(redis_url=store.url, data_dir=tmp_path) as url:
        for name in ("acme", "other", "default"):
            with as_tenant(url, name) as client:
                client.put(f"/notes/{name}", json={"title": f"note of {name}"})
    monkeypatch.setattr(RedisNoteStore, "scan", None)
    with serve(redis_url=store.url, data_dir=tmp_path) as url:
        for name in ("acme", "other", "default"):
            with as_tenant(url, name) as client:
                assert states(client)[name] == ("ready", 1)
                found = client.post("/similar", json={"title": "note"}).json()["items"]
                assert [item["id"] for item in found] == [name]


def test_tenant_beyond_the_bound_is_refused(serve: Serve, store: EmbeddedRedis) -> None:
    with serve(redis_url=store.url, max_tenants=2) as url:
        with as_tenant(url, "acme") as acme, as_tenant(url, "other") as other:
            assert acme.put("/notes/a", json={"title": "a"}).status_code == 201
            refused = other.get("/notes/a")
            assert refused.status_code == 403
            assert refused.json()["type"].endswith("/too-many-tenants")
            assert "max_tenants = 2" in refused.json()["detail"]
            assert acme.get("/limits").json()["max_tenants"] == 2
        with as_tenant(url, "default") as default:
            assert default.delete("/tenants/acme").status_code == 204
        with as_tenant(url, "other") as other:
            assert other.get("/notes/a").status_code == 404


def test_removed_tenant_leaves_nothing_on_any_replica(
    serve: Serve, store: EmbeddedRedis, admin: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    gate, follow_once = threading.Event(), Tenants._follow_once

    async def follow_behind_gate(own: Tenants[Any]) -> None:
        await asyncio.to_thread(gate.wait, 60)
        await follow_once(own)

    monkeypatch.setattr(Tenants, "_follow_once", follow_behind_gate)
    with contextlib.ExitStack() as stack:
        urls = [
            stack.enter_context(serve(redis_url=store.url, data_dir=folder, snapshot_seconds=0.05))
            for folder in folders
        ]
        stack.callback(gate.set)
        acme, there = (stack.enter_context(as_tenant(url, "acme")) for url in urls)
        default = stack.enter_context(as_tenant(urls[0], "default"))
        assert default.put("/notes/kept", json={"title": "kept"}).status_code == 201
        written = acme.put("/notes/a", json={"title": "lemon"}, headers={"Idempotency-Key": "k"}).json()
        assert there.get("/notes/a").status_code == 200, "it is opened by its first request"
        position = {"min_log_position": written["log_position"]}
        assert there.get("/notes/a/similar", params=position).json()["items"] == []
        eventually_true(lambda: all(list(folder.glob("tenants/acme-*/0/manifest.json")) for folder in folders))
        assert default.delete("/tenants/acme").status_code == 204
        assert keys_of(admin, "acme") == set()
        assert default.delete("/tenants/acme").status_code == 404
        assert there.put("/notes/b", json={"title": "too late"}).status_code == 409, "nothing is written behind it"
        assert keys_of(admin, "acme") == set()
        gate.set()
        eventually_true(lambda: not any(list(folder.glob("tenants/acme-*")) for folder in folders))
        assert there.get("/notes/a").status_code == 404
        assert there.put("/notes/b", json={"title": "anew"}).status_code == 201
        assert acme.get("/notes/b").status_code == 200
        assert [item["id"] for item in acme.post("/similar", json={"title": "lemon"}).json()["items"]] == ["b"]
        assert default.get("/notes/kept").status_code == 200
        assert default.post("/verify").json()["notes"] == 1


def test_tenant_made_anew_while_the_removed_one_is_being_closed_waits_for_that(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded, gate, discard = threading.Event(), threading.Event(), LiveIndex.discard

    async def discard_behind_gate(own: LiveIndex) -> None:
        await discard(own)
        discarded.set()
        await asyncio.to_thread(gate.wait, 60)

    monkeypatch.setattr(LiveIndex, "discard", discard_behind_gate)
    with serve() as url, as_tenant(url, "acme") as acme, as_tenant(url, "default") as default:
        assert acme.put("/notes/a", json={"title": "lemon"}).status_code == 201
        with ThreadPoolExecutor(1) as elsewhere:
            removal = elsewhere.submit(default.delete, "/tenants/acme")
            try:
                assert discarded.wait(30)
                monkeypatch.setattr("service.tenants.OPEN_SECONDS", 0.1)
                refused = acme.put("/notes/b", json={"title": "anew"})
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                assert refused.json()["type"].endswith("/tenant-opening")
                assert "is being closed" in refused.json()["detail"]
            finally:
                gate.set()
            assert removal.result().status_code == 204
        monkeypatch.setattr("service.tenants.OPEN_SECONDS", 30.0)
        assert acme.put("/notes/b", json={"title": "anew"}).status_code == 201


def test_removed_tenant_is_in_no_answer_from_memory_on_one_data_folder(
    serve: Serve, store: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.tenants.FOLLOW_SECONDS", 3600.0)  # the other process does not follow the removal
    folder = store.socket.parent
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(serve(data_dir=folder)) for _ in range(2)]
        acme, there = (stack.enter_context(as_tenant(url, "acme")) for url in urls)
        default = stack.enter_context(as_tenant(urls[0], "default"))
        for note_id in ("a", "b"):
            assert acme.put(f"/notes/{note_id}", json={"title": "lemon"}).status_code == 201
        assert len(there.get("/notes/a/similar").json()["items"]) == 1
        assert default.delete("/tenants/acme").status_code == 204
        assert there.get("/notes/a/similar").status_code == 404


def test_default_tenant_and_bad_names_are_not_removed(serve: Serve) -> None:
    with serve() as url, as_tenant(url, "default") as default:
        for name in ("default", "A", "a_b", "*", "a" * 41):
            assert default.delete(f"/tenants/{name}").status_code == 422, name


def test_restored_tenants_are_opened_again_beside_a_running_service(
    serve: Serve, store: EmbeddedRedis, tmp_path: Path
) -> None:
    note = {"title": "lemon soup"}
    with serve(redis_url=store.url) as url, as_tenant(url, "acme") as acme, as_tenant(url, "default") as default:
        for client in (acme, default):
            client.put("/notes/a", json=note)
        make_backup(store.url, str(tmp_path / "b"), lambda *step: None)
        for client in (acme, default):
            client.put("/notes/b", json=note)
            client.delete("/notes/a")
        restore_backup(str(tmp_path / "b"), store.url, lambda *step: None, replace=True)

        def found(client: httpx2.Client) -> list[str]:
            answer = client.post("/similar", json=note).json()
            return [item["id"] for item in answer.get("items", [])]

        eventually_true(lambda: (found(acme), found(default)) == (["a"], ["a"]))
        eventually_true(lambda: states(default) == {"acme": ("ready", 1), "default": ("ready", 1)})
        assert acme.put("/notes/c", json=note).status_code == 201
        assert sorted(found(acme)) == ["a", "c"]


def test_purge_leaves_no_byte_of_any_tenants_removed_notes(serve: Serve, store: EmbeddedRedis, tmp_path: Path) -> None:
    secret = "Under the third stone from the well lies what nobody was ever told."
    with serve(redis_url=store.url, data_dir=tmp_path) as url:
        for name in ("acme", "default"):
            with as_tenant(url, name) as client:
                client.put(f"/notes/removed-of-{name}", json={"title": "x", "content": secret, "author": name})
                client.put("/notes/kept", json={"title": "x"})
                client.delete(f"/notes/removed-of-{name}")
        ids = ["removed-of-acme", "removed-of-default"]
        report = purge(store.url, tmp_path, [store.socket.parent], ids=ids, texts=[("x", secret)], wait_seconds=30)
        assert (report.proved, len(report.logs)) == (True, 2)
        for name in ("acme", "default"):
            with as_tenant(url, name) as client:
                assert client.post("/verify").json()["well"]
                assert client.get("/notes/kept").status_code == 200


def test_tenant_that_is_being_opened_holds_up_no_other(
    serve: Serve, store: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(redis_url=store.url) as url, as_tenant(url, "acme") as acme:
        for i in range(3):
            assert acme.put(f"/notes/n{i}", json={"title": f"note {i}"}).status_code == 201
    with redis.Redis.from_url(store.url) as admin:
        known = admin.hgetall("{notes}:tenants")
        admin.delete("{notes}:tenants")  # so that the tenant is not known at the start
    gate, scan = threading.Event(), RedisNoteStore.scan

    async def scan_behind_gate(own: RedisNoteStore) -> AsyncIterator[list[StoredNote | Unreadable]]:
        async for notes in scan(own):
            yield notes
            if notes:
                await asyncio.to_thread(gate.wait, 60)

    monkeypatch.setattr(RedisNoteStore, "scan", scan_behind_gate)
    with serve(redis_url=store.url) as url, as_tenant(url, "acme") as acme, as_tenant(url, "default") as default:
        try:
            with redis.Redis.from_url(store.url) as admin:
                admin.hset("{notes}:tenants", mapping=known)
            monkeypatch.setattr("service.tenants.OPEN_SECONDS", 1.0)
            refused = acme.get("/notes/n0")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["type"].endswith("/tenant-opening")
            eventually_true(lambda: "3 of about 3 notes read" in acme.get("/notes/n0").json()["detail"])
            assert default.put("/notes/a", json={"title": "a"}).status_code == 201
            assert default.get("/readyz").status_code == 200, "it was not there at the start"
            assert {t["name"]: t["state"] for t in default.get("/tenants").json()["tenants"]} == {
                "acme": "opening",
                "default": "ready",
            }
        finally:
            gate.set()
        eventually_true(lambda: acme.get("/notes/n0").status_code == 200)
        assert states(default)["acme"] == ("ready", 3)


def test_tenants_that_are_heard_of_after_the_start_are_opened_four_at_a_time(
    serve: Serve, store: EmbeddedRedis, admin: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"t{i}" for i in range(6)]
    with serve(redis_url=store.url) as url:
        for name in names:
            with as_tenant(url, name) as client:
                assert client.put("/notes/a", json={"title": "a"}).status_code == 201
    known = admin.hgetall("{notes}:tenants")
    admin.delete("{notes}:tenants")  # as if the start could not read it: it knows no tenants
    gate, scan = threading.Event(), RedisNoteStore.scan

    async def scan_behind_gate(own: RedisNoteStore) -> AsyncIterator[list[StoredNote | Unreadable]]:
        async for notes in scan(own):
            yield notes
            if notes and own._keys.prefix != RedisKeys(names[-1]).prefix:
                await asyncio.to_thread(gate.wait, 60)

    monkeypatch.setattr(RedisNoteStore, "scan", scan_behind_gate)
    with serve(redis_url=store.url) as url, as_tenant(url, "default") as default:
        try:
            admin.hset("{notes}:tenants", mapping=known)

            def details() -> list[str]:
                return [one["detail"] for one in default.get("/tenants").json()["tenants"] if one["name"] in names]

            eventually_true(lambda: details().count("1 of about 1 notes read") == MAX_OPENING)
            assert details().count("opening has not started yet") == len(names) - MAX_OPENING
            with as_tenant(url, names[-1]) as last:
                eventually_true(lambda: last.get("/notes/a").status_code == 200)
            assert details().count("opening has not started yet") == 1, (
                "a request waits for no slot, and brings no other tenant one"
            )
        finally:
            gate.set()
        eventually_true(lambda: states(default) == {"default": ("ready", 0)} | dict.fromkeys(names, ("ready", 1)))


@contextlib.contextmanager
def failing_to_open(name: str) -> Iterator[None]:
    """Make every attempt to open a tenant fail with "too many open files" while the block lasts."""
    identity = RedisNoteStore.identity

    async def fail(own: RedisNoteStore) -> str:
        if own._keys.prefix == RedisKeys(name).prefix:
            raise OSError(errno.EMFILE, "Too many open files")
        return await identity(own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RedisNoteStore, "identity", fail)
        yield


def test_tenant_that_cannot_be_opened_is_listed_and_tried_again(
    serve: Serve, store: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.tenants.RETRY_SECONDS", (0.05, 0.2))
    with serve(redis_url=store.url) as url, as_tenant(url, "acme") as acme:
        assert acme.put("/notes/a", json={"title": "a"}).status_code == 201
    with contextlib.ExitStack() as stack:
        failing = stack.enter_context(contextlib.ExitStack())
        failing.enter_context(failing_to_open("acme"))
        url = stack.enter_context(serve(redis_url=store.url))
        acme, default = (stack.enter_context(as_tenant(url, name)) for name in ("acme", "default"))
        assert states(default) == {"acme": ("failed", None), "default": ("ready", 0)}
        monkeypatch.setattr("service.tenants.OPEN_SECONDS", 0.1)
        refused = acme.get("/notes/a")
        assert (refused.status_code, refused.json()["type"].rpartition("/")[2]) == (503, "tenant-opening")
        assert "could not be opened" in refused.json()["detail"]
        assert gauge(default, "notellm_tenants_failed") == 1
        assert default.get("/readyz").status_code == 200, "other tenants are served"
        assert default.put("/notes/a", json={"title": "a"}).status_code == 201
        failing.close()
        eventually_true(lambda: states(default)["acme"] == ("ready", 1))
        assert acme.get("/notes/a").status_code == 200
        assert gauge(default, "notellm_tenants_failed") == 0


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_snapshots_of_a_removed_tenant_that_could_not_be_opened_are_removed(
    serve: Serve, store: EmbeddedRedis, tmp_path: Path, elsewhere: bool
) -> None:
    with serve(redis_url=store.url, data_dir=tmp_path / "failing") as url, as_tenant(url, "acme") as acme:
        assert acme.put("/notes/a", json={"title": "a"}).status_code == 201
    assert list(tmp_path.glob("failing/tenants/acme-*/0/manifest.json"))
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(serve(redis_url=store.url, data_dir=tmp_path / "other"))
        stack.enter_context(failing_to_open("acme"))
        failing = stack.enter_context(serve(redis_url=store.url, data_dir=tmp_path / "failing"))
        default = stack.enter_context(as_tenant(other if elsewhere else failing, "default"))
        assert default.delete("/tenants/acme").status_code == 204
        if elsewhere:
            eventually_true(lambda: not list(tmp_path.glob("failing/tenants/acme-*")))
        assert not list(tmp_path.glob("failing/tenants/acme-*"))


def test_replica_is_not_ready_before_the_tenants_it_knows(
    serve: Serve, store: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(redis_url=store.url) as url, as_tenant(url, "acme") as acme:
        assert acme.put("/notes/a", json={"title": "a"}).status_code == 201
    gate, scan = threading.Event(), RedisNoteStore.scan

    async def scan_behind_gate(own: RedisNoteStore) -> AsyncIterator[list[StoredNote | Unreadable]]:
        async for notes in scan(own):
            if notes:
                await asyncio.to_thread(gate.wait, 60)
            yield notes

    monkeypatch.setattr(RedisNoteStore, "scan", scan_behind_gate)
    with serve(wait=False, redis_url=store.url) as url, httpx2.Client(base_url=url, timeout=30) as client:
        try:
            eventually_true(lambda: "1 of 2 are ready" in client.get("/startupz").json()["detail"])
            assert client.get("/readyz").status_code == 503
        finally:
            gate.set()
        eventually_true(lambda: client.get("/readyz").status_code == 200)


def test_tenant_of_an_emptied_store_is_told_as_lost(serve: Serve, store: EmbeddedRedis, admin: redis.Redis) -> None:
    with serve(redis_url=store.url) as url, as_tenant(url, "acme") as acme, as_tenant(url, "default") as default:
        for name in ("acme", "other"):
            with as_tenant(url, name) as client:
                assert client.put("/notes/a", json={"title": "lemon"}).status_code == 201
        assert default.delete("/tenants/other").status_code == 204
        eventually_true(lambda: len(states(default)) == 2)
        assert default.get("/readyz").json()["durable"] is True, "a removal loses nothing"
        admin.flushall()
        eventually_true(lambda: default.get("/readyz").json()["durable"] is False)
        assert "a tenant has disappeared" in default.get("/readyz").json()["checks"]["store"]["detail"]
        eventually_true(lambda: acme.get("/notes/a").status_code == 404)
        assert acme.put("/notes/b", json={"title": "anew"}).status_code == 201
        assert [item["id"] for item in acme.post("/similar", json={"title": "lemon"}).json()["items"]] == ["b"]


def test_bulk_load_of_a_tenant_refuses_no_other_one(serve: Serve) -> None:
    notes = [{"title": f"note {i} of a long list"} for i in range(12)]
    stop, statuses = threading.Event(), list[int]()

    def load() -> None:
        with as_tenant(url, "load") as client:
            while not stop.is_set():
                statuses.append(client.post("/notes", json=notes).status_code)

    with serve(queue_notes=60, batch_notes=2) as url, as_tenant(url, "other") as other:
        assert other.put("/notes/first", json={"title": "first"}).status_code == 201
        threads = [threading.Thread(target=load) for _ in range(10)]
        for thread in threads:
            thread.start()
        try:
            eventually_true(lambda: 429 in statuses)
            answers = [other.put(f"/notes/n{i}", json={"title": f"note {i}"}).status_code for i in range(30)]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert answers == [201] * 30
