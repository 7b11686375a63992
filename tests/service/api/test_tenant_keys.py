"""Keys of tenants: what each can see, and what remains of them after their tenant is removed."""

from __future__ import annotations

from collections.abc import Sequence

import httpx2
import pytest

from tests.service.api.conftest import Serve, eventually_true
from tests.service.api.test_tenants import failing_to_open

pytestmark = pytest.mark.slow
BOOTSTRAP_KEY = "the-bootstrap-key-of-these-tests"
SCOPES = ["notes.read", "notes.write", "similar"]


def under(url: str, key: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def key_of(root: httpx2.Client, tenant: str, scopes: Sequence[str] = SCOPES) -> str:
    created = root.post("/keys", json={"name": tenant, "tenant": tenant, "scopes": scopes})
    assert created.status_code == 201, created.text
    key: str = created.json()["key"]
    return key


def test_readyz_counts_notes_of_the_callers_tenant_alone(serve: Serve) -> None:
    with serve(bootstrap_key=BOOTSTRAP_KEY) as url, under(url, BOOTSTRAP_KEY) as root:
        with under(url, key_of(root, "acme")) as acme:
            assert acme.put("/notes/a", json={"title": "a"}).status_code == 201
            assert acme.get("/readyz").json()["notes"] == 1
        assert root.get("/readyz").json()["notes"] == 0
        stranger = httpx2.get(f"{url}/readyz")
        assert stranger.status_code == 200
        hidden = ("log_position", "notes", "notes_of_another_model")
        assert [stranger.json()[name] for name in hidden] == [None, None, None]


def test_tenant_may_neither_list_nor_remove_tenants(serve: Serve) -> None:
    with (
        serve(bootstrap_key=BOOTSTRAP_KEY) as url,
        under(url, BOOTSTRAP_KEY) as root,
        under(url, key_of(root, "acme")) as acme,
    ):
        for method, path in (("GET", "/tenants"), ("DELETE", "/tenants/acme"), ("GET", "/metrics")):
            assert acme.request(method, path).status_code == 403, path


def test_keys_go_with_their_tenant(serve: Serve) -> None:
    with serve(bootstrap_key=BOOTSTRAP_KEY) as url, under(url, BOOTSTRAP_KEY) as root:
        with under(url, key_of(root, "acme")) as acme, under(url, key_of(root, "other")) as other:
            assert acme.put("/notes/a", json={"title": "a"}).status_code == 201
            assert other.put("/notes/a", json={"title": "a"}).status_code == 201
            assert root.delete("/tenants/acme").status_code == 204
            eventually_true(lambda: acme.get("/notes/a").status_code == 401)
            assert other.get("/notes/a").status_code == 200
        assert [key["tenant"] for key in root.get("/keys").json()["keys"]] == ["other"]
        assert [tenant["name"] for tenant in root.get("/tenants").json()["tenants"]] == ["default", "other"]
        unused = key_of(root, "never")
        assert root.delete("/tenants/never").status_code == 204, "it had a key"
        assert root.delete("/tenants/never").status_code == 404
        with under(url, unused) as never:
            eventually_true(lambda: never.get("/notes/a").status_code == 401)


def test_keys_of_a_tenant_that_cannot_be_opened_are_managed(serve: Serve) -> None:
    with (
        failing_to_open("acme"),
        serve(bootstrap_key=BOOTSTRAP_KEY) as url,
        under(url, BOOTSTRAP_KEY) as root,
        under(url, key_of(root, "acme", [*SCOPES, "keys.manage"])) as acme,
    ):
        created = acme.post("/keys", json={"name": "website", "scopes": ["similar"]})
        assert created.status_code == 201, created.text
        path = f"/keys/{created.json()['prefix']}"
        assert acme.patch(path, json={"name": "page"}).status_code == 200
        assert acme.post(f"{path}/rotate", json={"overlap_seconds": 0}).status_code == 200
        assert acme.delete(path).status_code == 204
