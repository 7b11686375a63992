"""Keys over HTTP: their life cycle, who may manage which, and the audit log."""

from __future__ import annotations

import asyncio
import json
import pkgutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from fastapi import Request

from service.access.api_key import MAX_OLD_SECRETS
from service.access.principal import Scope
from service.api.access import reauthorise
from tests.service.api.conftest import Serve, eventually_true
from tests.service.conftest import DebianRedis

BOOTSTRAP_KEY = "the-bootstrap-key-of-these-tests"
READER = {"name": "reader", "scopes": ["notes.read"]}


@pytest.fixture(scope="module")
def closed_url(serve: Serve) -> Iterator[str]:
    """Address of a service that requires keys."""
    with serve(bootstrap_key=BOOTSTRAP_KEY) as address:
        yield address


@pytest.fixture
def root(closed_url: str) -> Iterator[httpx2.Client]:
    """A client with the bootstrap key."""
    with under(closed_url, BOOTSTRAP_KEY) as client:
        yield client


def under(url: str, key: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def create(client: httpx2.Client, **fields: object) -> dict[str, Any]:
    answer = client.post("/keys", json=READER | fields)
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


def listed(client: httpx2.Client) -> dict[str, dict[str, Any]]:
    """Return the keys that the client can list, by prefix."""
    return {key["prefix"]: key for key in client.get("/keys").json()["keys"]}


def status_of(url: str, key: str, path: str = "/notes/nobody") -> int:
    with under(url, key) as client:
        return client.get(path).status_code


def test_created_key_opens_what_its_scopes_say(root: httpx2.Client, closed_url: str) -> None:
    created = create(root)
    assert created["key"].startswith(f"nlm_{created['prefix']}_")
    assert status_of(closed_url, created["key"]) == 404
    assert status_of(closed_url, created["key"], "/keys") == 403


def test_secret_is_in_no_other_answer(root: httpx2.Client) -> None:
    created = create(root)
    secret = created.pop("key").split("_", 2)[2]
    assert listed(root)[created["prefix"]] == created
    for path in ("/keys", "/audit", "/metrics"):
        assert secret not in root.get(path).text


def test_secret_is_in_no_file_of_redis(serve: Serve, guarded_redis: DebianRedis, short_folder: Path) -> None:
    with serve(redis_url=guarded_redis.url, bootstrap_key=BOOTSTRAP_KEY) as url, under(url, BOOTSTRAP_KEY) as client:
        secret = create(client)["key"].split("_", 2)[2]
    kept = b"".join(path.read_bytes() for path in short_folder.rglob("*") if path.is_file())
    assert b"notes.read" in kept
    assert secret.encode() not in kept


def test_revoked_key_is_refused(root: httpx2.Client, closed_url: str) -> None:
    created = create(root)
    assert root.delete(f"/keys/{created['prefix']}").status_code == 204
    assert status_of(closed_url, created["key"]) == 401
    assert created["prefix"] not in listed(root)
    assert root.delete(f"/keys/{created['prefix']}").status_code == 404


def test_rotated_key_has_two_secrets_for_the_overlap(root: httpx2.Client, closed_url: str) -> None:
    first = create(root)
    second = root.post(f"/keys/{first['prefix']}/rotate", json={"overlap_seconds": 3600}).json()
    assert second["key"] != first["key"]
    assert second["old_secret_until"] > datetime.now(UTC).isoformat()
    assert [status_of(closed_url, key["key"]) for key in (first, second)] == [404, 404]
    third = root.post(f"/keys/{first['prefix']}/rotate", json={"overlap_seconds": 0}).json()
    assert [status_of(closed_url, key["key"]) for key in (first, second, third)] == [401, 401, 404]


def test_rotation_that_is_repeated_leaves_the_secret_that_callers_have(root: httpx2.Client, closed_url: str) -> None:
    known = create(root)
    path = f"/keys/{known['prefix']}/rotate"
    lost = [root.post(path, json={"overlap_seconds": 3600}).json() for _ in range(2)]
    last = root.post(path, json={"overlap_seconds": 1800}).json()
    assert last["old_secret_until"] < lost[0]["old_secret_until"]
    assert [status_of(closed_url, key["key"]) for key in (known, *lost, last)] == [404] * 4
    for _ in range(MAX_OLD_SECRETS - 2):
        root.post(path, json={})
    assert [status_of(closed_url, key["key"]) for key in (known, *lost)] == [401, 404, 404]


def test_expiry_and_name_and_quota_are_changed(root: httpx2.Client, closed_url: str) -> None:
    created = create(root)
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    path = f"/keys/{created['prefix']}"
    assert root.patch(path, json={"expires_at": past}).status_code == 200
    assert status_of(closed_url, created["key"]) == 401
    changed = root.patch(path, json={"expires_at": None, "name": "another", "quota": {"requests_per_minute": 9}}).json()
    assert (changed["expires_at"], changed["name"]) == (None, "another")
    assert changed["quota"] == {"requests_per_minute": 9, "tokens_per_minute": None}
    assert root.patch(path, json={}).json() == changed
    other = root.patch(path, json={"quota": {"tokens_per_minute": 5}}).json()
    assert other["quota"] == {"requests_per_minute": 9, "tokens_per_minute": 5}
    cleared = root.patch(path, json={"quota": {"requests_per_minute": None}}).json()
    assert cleared["quota"] == {"requests_per_minute": None, "tokens_per_minute": 5}
    assert status_of(closed_url, created["key"]) == 404


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"name": "x", "scopes": []}, "/scopes"),
        ({"name": "x", "scopes": ["everything"]}, "/scopes/0"),
        ({"name": " ", "scopes": ["similar"]}, "/name"),
        ({"name": "x", "scopes": ["similar"], "tenant": "Films"}, "/tenant"),
        ({"name": "x", "scopes": ["similar"], "tenant": "a\n"}, "/tenant"),
        ({"name": "x", "scopes": ["similar"], "expires_at": "tomorrow"}, "/expires_at"),
        ({"name": "x", "scopes": ["similar"], "quota": {"requests_per_minute": 0}}, "/quota/requests_per_minute"),
        ({"name": "x", "scopes": ["similar"], "secret": "mine"}, "/secret"),
    ],
)
def test_invalid_key_is_422_and_names_the_field(root: httpx2.Client, body: dict[str, Any], pointer: str) -> None:
    answer = root.post("/keys", json=body)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


def test_last_use_is_shown(root: httpx2.Client, closed_url: str) -> None:
    created = create(root)
    assert created["last_used_at"] is None
    status_of(closed_url, created["key"])
    eventually_true(lambda: listed(root)[created["prefix"]]["last_used_at"] is not None)


def test_nobody_gives_a_scope_that_they_have_not(root: httpx2.Client, closed_url: str) -> None:
    strong = create(root, scopes=["notes.read", "admin"])
    manager = create(root, scopes=["keys.manage", "similar"])
    with under(closed_url, manager["key"]) as client:
        refused = client.post("/keys", json=READER)
        assert refused.status_code == 403
        assert "notes.read" in refused.json()["detail"]
        path = f"/keys/{strong['prefix']}"
        answers = [
            client.post(f"{path}/rotate", json={}),
            client.patch(path, json={"name": "mine"}),
            client.delete(path),
        ]
        assert [answer.status_code for answer in answers] == [403, 403, 403]
        assert create(client, scopes=["similar"])["tenant"] == "default"
    assert status_of(closed_url, strong["key"]) == 404


def test_keys_of_another_tenant_take_the_scope_admin(root: httpx2.Client, closed_url: str) -> None:
    films = create(root, tenant="films", scopes=["keys.manage", "notes.read"])
    ours = create(root)
    with under(closed_url, films["key"]) as client:
        other = create(client)
        assert other["tenant"] == "films"
        assert client.post("/keys", json=READER | {"tenant": "default"}).status_code == 403
        assert set(listed(client)) == {films["prefix"], other["prefix"]}
        for answer in (client.delete(f"/keys/{ours['prefix']}"), client.patch(f"/keys/{ours['prefix']}", json={})):
            assert answer.status_code == 404
    assert {films["prefix"], ours["prefix"]} <= set(listed(root))


def test_tenant_makes_keys_up_to_its_bound_and_an_admin_beyond(
    root: httpx2.Client, closed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.access.manager.MAX_KEYS_OF_TENANT", 2)
    manager = create(root, tenant="bounded", scopes=["notes.read", "keys.manage"])
    with under(closed_url, manager["key"]) as client:
        create(client)
        refused = client.post("/keys", json=READER)
        assert (refused.status_code, "max_keys_of_tenant = 2" in refused.json()["detail"]) == (409, True)
    create(root, tenant="bounded")


def test_key_that_is_over_is_not_created(root: httpx2.Client) -> None:
    keys = root.get("/keys").json()
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    answer = root.post("/keys", json=READER | {"expires_at": past})
    assert (answer.status_code, answer.json()["errors"]) == (
        422,
        [{"pointer": "/expires_at", "detail": "must be in the future"}],
    )
    assert root.get("/keys").json() == keys


def test_first_key_closes_an_open_service(serve: Serve) -> None:
    with serve() as url, httpx2.Client(base_url=url, timeout=60) as client:
        assert client.get("/notes/nobody").status_code == 404
        useless = client.post("/keys", json=READER)
        assert useless.status_code == 422
        assert "keys.manage" in useless.json()["errors"][0]["detail"]
        over = client.post("/keys", json=READER | {"scopes": ["keys.manage"], "expires_at": "2001-01-01T00:00:00Z"})
        assert (over.status_code, over.json()["errors"][0]["pointer"]) == (422, "/expires_at")
        first = create(client, scopes=list(Scope))
        assert client.get("/notes/nobody").status_code == 401
        assert status_of(url, first["key"]) == 404
        with under(url, first["key"]) as manager:
            manager.delete(f"/keys/{first['prefix']}")
        assert client.get("/notes/nobody").status_code == 404


def test_replica_learns_of_another_ones_keys(serve: Serve, guarded_redis: DebianRedis) -> None:
    both = {"redis_url": guarded_redis.url, "bootstrap_key": BOOTSTRAP_KEY}
    with serve(**both) as first, serve(**both) as second, under(first, BOOTSTRAP_KEY) as client:
        created = create(client)
        assert status_of(second, created["key"]) == 404
        client.delete(f"/keys/{created['prefix']}")
        eventually_true(lambda: status_of(second, created["key"]) == 401)


def test_acts_are_recorded_and_logged_without_secrets(root: httpx2.Client, closed_url: str) -> None:
    with structlog.testing.capture_logs() as lines:
        created = create(root, scopes=["keys.manage"])
        with under(closed_url, created["key"]) as client:
            rotated = client.post(f"/keys/{created['prefix']}/rotate", json={}).json()
        root.patch(f"/keys/{created['prefix']}", json={"name": "another"})
        assert root.post("/verify").status_code == 200
        root.delete(f"/keys/{created['prefix']}")
    acts = root.get("/audit", params={"limit": 6}).json()["acts"]
    names = ["keys.revoke", "verify", "verify", "keys.change", "keys.rotate", "keys.create"]
    assert [act["act"] for act in acts] == names
    assert [act["by"] for act in acts] == ["bootstrap"] * 4 + [created["prefix"], "bootstrap"]
    assert acts[3]["details"] == {"name": "another"}
    assert root.get("/audit", params={"before": acts[0]["position"], "limit": 1}).json()["acts"] == [acts[1]]
    audit = [line for line in lines if line["event"] == "audit"]
    assert [line["act"] for line in audit] == [act["act"] for act in reversed(acts)]
    for secret in (created["key"], rotated["key"], BOOTSTRAP_KEY):
        assert secret.split("_", 2)[-1] not in json.dumps(acts) + repr(lines)  # a secret may contain an underscore


def test_acts_are_recorded_with_their_outcome(root: httpx2.Client) -> None:
    create(root, tenant="removed")
    assert root.delete("/tenants/removed").status_code == 204
    assert root.delete("/tenants/removed").status_code == 404
    refused = root.delete("/tenants/default")
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/path/name")
    acts = root.get("/audit", params={"limit": 7}).json()["acts"]
    removals = [(act["target"], act["details"]["outcome"]) for act in acts if act["act"] == "tenants.remove"]
    assert removals == [
        *(("default", "refused"), ("default", "begun"), ("removed", "refused")),
        *(("removed", "begun"), ("removed", "done"), ("removed", "begun")),
    ]


def test_request_line_has_tenant_and_prefix(root: httpx2.Client, closed_url: str) -> None:
    films = create(root, tenant="films")
    with structlog.testing.capture_logs() as lines:
        status_of(closed_url, films["key"])
        eventually_true(lambda: any(line["event"] == "request" for line in list(lines)))
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["tenant"], line["key"]) == ("films", films["prefix"])


@pytest.mark.parametrize("before", ["yesterday", "1-", "99999999999999999999-0", "1-1\n", "١-١"])
def test_malformed_position_of_the_audit_is_422(root: httpx2.Client, before: str) -> None:
    assert root.get("/audit", params={"before": before}).status_code == 422


@pytest.mark.parametrize("before", ["0-0", "00-0", "0-1", "1-0"])
def test_nothing_comes_before_the_first_act(root: httpx2.Client, before: str) -> None:
    answer = root.get("/audit", params={"before": before})
    assert (answer.status_code, answer.json()) == (200, {"acts": []})


def test_quota_of_requests_is_429_with_what_is_left(root: httpx2.Client, closed_url: str) -> None:
    key = create(root, quota={"requests_per_minute": 2, "tokens_per_minute": 10_000})
    with under(closed_url, key["key"]) as client:
        answers = [client.get("/notes/nobody") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [404, 404, 429]
    assert answers[2].json()["retry_after"] == int(answers[2].headers["retry-after"])
    policy = '"requests";q=2;w=60, "tokens";q=10000;w=60'
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {policy}
    left = [answer.headers["ratelimit"].partition(";t=")[0] for answer in answers]
    assert left == ['"requests";r=1', '"requests";r=0', '"requests";r=0']
    refused = answers[2]
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["type"].endswith("/quota-exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    metrics = root.get("/metrics").text
    assert 'notellm_access_refused_total{reason="quota"} 1.0' in metrics
    assert 'notellm_rejected_total{reason="quota-exceeded"} 1.0' in metrics
    assert 'reason="queue-full"' not in metrics  # the queue was never full


def test_requests_refused_for_quota_or_scope_are_counted_for_their_tenant(root: httpx2.Client, closed_url: str) -> None:
    limited = create(root, tenant="throttled", quota={"requests_per_minute": 1})["key"]
    assert [status_of(closed_url, limited) for _ in range(3)] == [404, 429, 429]
    assert status_of(closed_url, create(root, tenant="throttled")["key"], "/keys") == 403
    series = 'notellm_tenant_requests_total{tenant="throttled"} 4.0'
    eventually_true(lambda: series in root.get("/metrics").text)


def test_tokens_that_were_used_count_against_the_quota(root: httpx2.Client, closed_url: str) -> None:
    key = create(root, scopes=["generate"], quota={"tokens_per_minute": 5})
    text = {"title": "lemon tart"}
    with under(closed_url, key["key"]) as client:
        assert client.post("/generate", json=text).status_code == 200
        eventually_true(lambda: client.post("/generate", json=text).status_code == 429)
        refused = client.post("/generate", json=text)
        assert refused.headers["ratelimit"].startswith('"tokens";r=0;t=')
        assert int(refused.headers["retry-after"]) > 120, "tokens beyond the quota leave the window 5 a minute"
    assert root.post("/generate", json=text).status_code == 200


def test_requests_that_use_no_tokens_are_answered_when_those_of_the_quota_are_used_up(
    root: httpx2.Client, closed_url: str
) -> None:
    scopes = ["generate", "similar", "notes.read", "notes.write", "events"]
    key = create(root, scopes=scopes, quota={"requests_per_minute": 100, "tokens_per_minute": 5})["key"]
    note = {"id": "n", "title": "lemon tart"}
    with under(closed_url, key) as client:
        assert client.post("/notes", json=note).status_code == 201
        eventually_true(lambda: client.post("/notes", json=note).status_code == 429)
        spending = [
            client.put("/notes/n", json={"title": "tea"}),
            client.patch("/notes/n", json={"title": "tea"}),
            client.post("/similar", json={"title": "tea"}),
            client.post("/notes/n/similar", json={}),
            client.post("/similar/batch", json=[{"title": "tea"}]),
            client.post("/v1/embeddings", json={"input": "tea"}),
            *(client.post(path, json=note | {"id": None}) for path in ("/generate", "/generate/hashtags")),
        ]
        assert [answer.status_code for answer in spending] == [429] * len(spending)
        others = [
            client.get("/limits"),
            client.get("/notes/n"),
            client.get("/notes/n/similar"),
            client.get("/notes/export"),
            client.post("/notes/get", json={"ids": ["n"]}),
            client.post("/events", json={"event_id": "e", "user": "u", "note_id": "n", "type": "click"}),
            client.delete("/users/u/events"),
            client.post("/notes/delete", json={"ids": ["n"]}),
            client.delete("/notes/n"),
        ]
        assert [answer.status_code for answer in others] == [200] * (len(others) - 1) + [404]
        assert all("ratelimit" in answer.headers for answer in others)


def test_key_without_a_quota_gets_no_headers_of_one(root: httpx2.Client, closed_url: str) -> None:
    with under(closed_url, create(root)["key"]) as client:
        assert "ratelimit" not in client.get("/notes/nobody").headers


def test_quota_holds_by_what_the_process_counted_while_the_store_is_unavailable(
    serve: Serve, guarded_redis: DebianRedis
) -> None:
    with serve(redis_url=guarded_redis.url, bootstrap_key=BOOTSTRAP_KEY) as url, under(url, BOOTSTRAP_KEY) as client:
        key = create(client, scopes=["generate"], quota={"requests_per_minute": 2})["key"]
        with under(url, key) as limited:
            assert limited.post("/generate", json={"title": "tart"}).status_code == 200
            guarded_redis.stop()
            assert limited.post("/generate", json={"title": "tart"}).status_code == 200
            assert limited.post("/generate", json={"title": "tart"}).status_code == 429
        assert "notellm_quota_uncounted_total 1.0" in client.get("/metrics").text


def test_key_of_a_tenant_sees_its_tenant_alone(root: httpx2.Client, closed_url: str) -> None:
    scopes = ["notes.read", "notes.write", "similar"]
    acme, other = (create(root, tenant=name, scopes=scopes)["key"] for name in ("acme", "other"))
    note = {"title": "lemon soup"}
    with under(closed_url, acme) as ours, under(closed_url, other) as theirs:
        assert ours.put("/notes/secret-plan", json=note).status_code == 201
        assert ours.get("/notes/secret-plan").status_code == 200
        assert theirs.get("/notes/secret-plan").status_code == 404
        assert theirs.post("/similar", json=note).json()["items"] == []
        assert [item["id"] for item in ours.post("/similar", json=note).json()["items"]] == ["secret-plan"]
    assert root.get("/notes/secret-plan").status_code == 404


def begin_slowly(url: str, key: str, method: str, path: str, size: int) -> socket.socket:
    """Send the head of a request, and return once the service has authorised it, which its status 100 shows."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {size}\r\nExpect: 100-continue\r\n\r\n".encode())
    assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
    return connection


def test_revoked_key_makes_no_key_by_a_slow_request(root: httpx2.Client, closed_url: str) -> None:
    thief = create(root, scopes=["keys.manage"])
    body = json.dumps({"name": "for later", "scopes": ["keys.manage"]}).encode()
    with begin_slowly(closed_url, thief["key"], "POST", "/keys", len(body)) as connection:
        assert root.delete(f"/keys/{thief['prefix']}").status_code == 204
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")
    assert "for later" not in [key["name"] for key in listed(root).values()]


def test_removed_tenant_is_not_made_anew_by_a_slow_write(root: httpx2.Client, closed_url: str) -> None:
    key = create(root, tenant="slow", scopes=["notes.write"])["key"]
    with under(closed_url, key) as writer:
        assert writer.put("/notes/a", json={"title": "a"}).status_code == 201
    body = b'{"title": "late"}'
    with begin_slowly(closed_url, key, "PUT", "/notes/b", len(body)) as connection:
        assert root.delete("/tenants/slow").status_code == 204
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")
    assert "slow" not in [tenant["name"] for tenant in root.get("/tenants").json()["tenants"]]


def test_tenant_whose_keys_are_out_of_reach_keeps_all(root: httpx2.Client, closed_url: str) -> None:
    kept = [create(root, tenant="rich", scopes=[scope])["prefix"] for scope in ("similar", "notes.write")]
    few = create(root, scopes=["admin", "similar"])["key"]
    with under(closed_url, few) as admin:
        refused = admin.delete("/tenants/rich")
    assert (refused.status_code, "notes.write" in refused.json()["detail"]) == (403, True)
    assert set(kept) <= set(listed(root))


@pytest.mark.parametrize("step", ["service.store.api_keys.RedisKeyStore.revoke", "service.tenants.Tenants.remove"])
def test_key_made_during_the_removal_of_its_tenant_is_revoked(
    root: httpx2.Client, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    name = f"removed-{step.rpartition('.')[2]}"
    create(root, tenant=name)
    original, made = pkgutil.resolve_name(step), list[str]()

    async def make_a_key_first(*arguments: Any) -> Any:
        if not made:
            made.append((await asyncio.to_thread(create, root_again, tenant=name))["prefix"])
        return await original(*arguments)

    monkeypatch.setattr(step, make_a_key_first)
    with under(str(root.base_url), BOOTSTRAP_KEY) as root_again:
        assert root.delete(f"/tenants/{name}").status_code == 204
    assert made
    assert not any(key["tenant"] == name for key in listed(root).values())


def test_keys_made_at_once_keep_the_bound_of_their_tenant(
    root: httpx2.Client, closed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.access.manager.MAX_KEYS_OF_TENANT", 4)
    manager = create(root, tenant="crowded", scopes=["keys.manage", "notes.read"])["key"]
    with under(closed_url, manager) as client, ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: client.post("/keys", json=READER), range(12)))
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [409] * 9


def open_stream(url: str, key: str) -> socket.socket:
    """Begin a stream of notes."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST /notes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nTransfer-Encoding: chunked\r\n"
    connection.sendall(f"{head}Content-Type: application/x-ndjson\r\n\r\n".encode())
    return connection


def send_line(connection: socket.socket, title: str) -> dict[str, Any]:
    """Send a note of a stream, and return its result."""
    line = json.dumps({"title": title}).encode() + b"\n"
    connection.sendall(b"%x\r\n%s\r\n" % (len(line), line))
    received = b""
    while (begin := received.find(b'{"')) < 0 or not received.endswith(b"\n\r\n"):
        chunk = connection.recv(10_000)
        assert chunk, received
        received += chunk
    result: dict[str, Any] = json.loads(received[begin:].splitlines()[0])
    return result


def test_stream_ends_when_its_key_is_revoked(root: httpx2.Client, closed_url: str) -> None:
    key = create(root, scopes=["notes.write"])
    with open_stream(closed_url, key["key"]) as stream:
        assert send_line(stream, "before")["status"] == "created"
        assert root.delete(f"/keys/{key['prefix']}").status_code == 204
        assert send_line(stream, "after")["problem"]["status"] == 401


@pytest.mark.parametrize("part", [b'{"title": "x', b"\n\n"], ids=["unfinished line", "blank lines"])
def test_stream_of_no_whole_notes_ends_when_its_key_is_revoked(
    root: httpx2.Client, closed_url: str, monkeypatch: pytest.MonkeyPatch, part: bytes
) -> None:
    monkeypatch.setattr("service.api.ingest_stream.KEY_CHECK_SECONDS", 0.0)
    key = create(root, scopes=["notes.write"])
    with open_stream(closed_url, key["key"]) as stream:
        assert send_line(stream, "before")["status"] == "created"
        assert root.delete(f"/keys/{key['prefix']}").status_code == 204
        stream.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        received = b""
        while b'{"problem":' not in received:
            chunk = stream.recv(10_000)
            assert chunk, received
            received += chunk
    assert b'"status":401' in received


def test_stream_ends_when_its_secret_is_replaced_or_its_quota_lowered(root: httpx2.Client, closed_url: str) -> None:
    key = create(root, scopes=["notes.write"])
    with open_stream(closed_url, key["key"]) as stream:
        assert send_line(stream, "before")["status"] == "created"
        assert root.post(f"/keys/{key['prefix']}/rotate", json={"overlap_seconds": 0}).status_code == 200
        assert send_line(stream, "after")["problem"]["status"] == 401
    key = create(root, scopes=["notes.write"], quota={"tokens_per_minute": 1_000_000})
    with open_stream(closed_url, key["key"]) as stream:
        assert send_line(stream, "before")["status"] == "created"
        lower = {"quota": {"tokens_per_minute": 1}}
        assert root.patch(f"/keys/{key['prefix']}", json=lower).status_code == 200
        results = [send_line(stream, "after")]
        while len(results) < 20 and results[-1].get("status") == "created":
            results.append(send_line(stream, "more words for the model to read"))
        assert (list(results[-1]), results[-1]["problem"]["status"]) == (["problem"], 429)


def test_stream_to_an_open_service_ends_when_that_gets_keys(serve: Serve) -> None:
    with serve() as url, httpx2.Client(base_url=url, timeout=60) as client, open_stream(url, "") as stream:
        assert send_line(stream, "before")["status"] == "created"
        create(client, scopes=list(Scope))
        assert send_line(stream, "after")["problem"]["status"] == 401


def test_events_end_with_a_problem_when_their_key_is_revoked(
    root: httpx2.Client, closed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = create(root, tenant="tellers", scopes=["notes.write", "events"])
    calls = count()

    async def reauthorise_revoked(request: Request) -> None:
        if next(calls) == 1:
            assert await asyncio.to_thread(lambda: root.delete(f"/keys/{key['prefix']}").status_code) == 204
        await reauthorise(request)

    with under(closed_url, key["key"]) as client:
        client.put("/notes/a", json={"title": "a"})
        monkeypatch.setattr("service.api.ingest_events.STREAM_BATCH_SIZE", 1)
        monkeypatch.setattr("service.api.ingest_events.reauthorise", reauthorise_revoked)
        events = [{"event_id": f"n{i}", "type": "click", "note_id": "a", "user": "u9"} for i in range(3)]
        body = "\n".join(map(json.dumps, events))
        answer = client.post("/events", content=body, headers={"Content-Type": "application/x-ndjson"})
    first, last = map(json.loads, answer.text.splitlines())
    assert (first["status"], list(last), last["problem"]["status"]) == ("accepted", ["problem"], 401)


def test_each_search_of_a_list_counts_as_a_request(root: httpx2.Client, closed_url: str) -> None:
    key = create(root, scopes=["similar"], quota={"requests_per_minute": 5})["key"]
    search = {"positive": [{"note_id": "nobody"}]}
    with under(closed_url, key) as client:
        answers = [client.post("/similar/batch", json=[search] * size) for size in (6, 3, 1)]
    assert [answer.status_code for answer in answers] == [422, 207, 207]
    assert "your key may send 5 requests per minute" in answers[0].json()["errors"][0]["detail"]
    assert answers[2].headers["ratelimit"].startswith('"requests";r=0;')
    key = create(root, scopes=["similar"], quota={"requests_per_minute": 5})["key"]
    with under(closed_url, key) as client:
        answers = [client.post("/similar/batch", json=[search] * size) for size in (3, 3, 1, 1)]
    assert [answer.status_code for answer in answers] == [207, 429, 207, 429]


def test_searches_of_a_list_are_counted_before_they_are_read(root: httpx2.Client, closed_url: str) -> None:
    key = create(root, scopes=["similar"], quota={"requests_per_minute": 5})["key"]
    malformed = b"[" + b"{}," * 5 + b'{"title" 1}]'
    with under(closed_url, key) as client:
        answer = client.post("/similar/batch", content=malformed, headers={"content-type": "application/json"})
    assert (answer.status_code, "has 6 items" in answer.text) == (422, True)


def test_dry_run_by_a_filter_takes_the_scope_that_reads_notes(root: httpx2.Client, closed_url: str) -> None:
    assert root.put("/notes/dry", json={"title": "dry", "author": "dry"}).status_code == 201
    by_filter, by_id = {"filter": {"author": "dry"}}, {"ids": ["dry"]}
    with under(closed_url, create(root, scopes=["notes.write"])["key"]) as writer:
        refused = writer.post("/notes/delete", json=by_filter | {"dry_run": True})
        assert (refused.status_code, "notes.read, which a dry run" in refused.json()["detail"]) == (403, True)
        assert writer.post("/notes/delete", json=by_id | {"dry_run": True}).json()["ids"] == ["dry"]
    with under(closed_url, create(root, scopes=["notes.write", "notes.read"])["key"]) as both:
        assert both.post("/notes/delete", json=by_filter | {"dry_run": True}).json()["ids"] == ["dry"]
    with under(closed_url, create(root, scopes=["notes.write"])["key"]) as writer:
        assert writer.post("/notes/delete", json=by_filter).json()["count"] == 1


@pytest.mark.parametrize(
    ("path", "module", "batch_size", "sent"),
    [
        ("/events/reads", "service.api.ingest_events", "service.api.ingest_events.CHECKED_READERS", ("note", "a")),
        ("/notes/export", "service.api.routes.export", "service.collection.export.BATCH_SIZE", ("id", "a")),
    ],
)
def test_export_ends_with_a_problem_when_its_key_is_revoked(
    root: httpx2.Client,
    closed_url: str,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    module: str,
    batch_size: str,
    sent: tuple[str, str],
) -> None:
    key = create(root, tenant=f"exports{path.replace('/', '-')}", scopes=["notes.read", "notes.write", "events"])
    calls, begun, revoked = count(), threading.Event(), threading.Event()

    async def reauthorise_slowly(request: Request) -> None:
        if next(calls) == 1:
            begun.set()
            await asyncio.to_thread(revoked.wait, 60)
        await reauthorise(request)

    with under(closed_url, key["key"]) as client, ThreadPoolExecutor(1) as threads:
        for note_id in ("a", "b"):
            client.put(f"/notes/{note_id}", json={"title": note_id})
        events = [{"event_id": user, "type": "click", "note_id": "a", "user": user} for user in ("u1", "u2")]
        assert client.post("/events", json=events).status_code == 207
        eventually_true(lambda: len(client.get("/events/reads").text.splitlines()) == 2)
        monkeypatch.setattr(batch_size, 1)
        monkeypatch.setattr(f"{module}.reauthorise", reauthorise_slowly)
        export = threads.submit(client.get, path)
        assert begun.wait(60)
        assert root.delete(f"/keys/{key['prefix']}").status_code == 204
        revoked.set()
        *_, first, last = map(json.loads, export.result().text.splitlines())
    assert (first[sent[0]], last["problem"]["status"]) == (sent[1], 401)


def test_stream_ends_when_its_quota_is_used_up(root: httpx2.Client, closed_url: str) -> None:
    key = create(root, scopes=["notes.write"], quota={"tokens_per_minute": 5})["key"]
    with open_stream(closed_url, key) as stream:
        results = [send_line(stream, "one two three four five six seven eight")]
        while len(results) < 20 and results[-1].get("status") == "created":
            results.append(send_line(stream, "more words for the model to read"))
        assert (list(results[-1]), results[-1]["problem"]["status"]) == (["problem"], 429)
    with under(closed_url, key) as client:
        assert client.post("/notes", json={"id": "n", "title": "tea"}).status_code == 429
