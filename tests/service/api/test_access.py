"""Access to routes: each declares the scopes of its callers, and refuses all others."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from service.access.principal import TENANT, Scope
from service.api.access import needed_scopes
from service.api.app import ROUTERS
from service.api.strict_route import StrictRoute
from tests.service.api.conftest import Serve

BOOTSTRAP_KEY = "the-bootstrap-key-of-these-tests"
PROBES = {"/livez", "/startupz", "/readyz"}
DOCUMENTATION = ["/docs", "/openapi.json", "/docs/swagger-ui.css"]
ROUTES = [
    (method, route.path, tuple(sorted(needed_scopes(route.endpoint))))
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in sorted(route.methods or ())
]
GUARDED = [(method, path, scopes) for method, path, scopes in ROUTES if scopes]


@pytest.fixture(scope="module")
def closed_url(serve: Serve) -> Iterator[str]:
    """Address of a service that requires keys."""
    with serve(bootstrap_key=BOOTSTRAP_KEY) as address:
        yield address


@pytest.fixture(scope="module")
def closed(closed_url: str) -> Iterator[httpx2.Client]:
    """A client of that service without a key."""
    with httpx2.Client(base_url=closed_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def keys(closed: httpx2.Client) -> dict[frozenset[Scope], dict[str, str]]:
    """Authorization headers of a key for each set of scopes that the tests use."""
    sets = {frozenset(scopes) for _, _, scopes in GUARDED} | {frozenset([scope]) for scope in Scope}
    sets |= {frozenset(Scope) - scopes for scopes in sets} - {frozenset()}
    headers = {}
    for scopes in sets:
        body = {"name": "test", "scopes": sorted(scopes)}
        answer = closed.post("/keys", json=body, headers=bearer(BOOTSTRAP_KEY))
        assert answer.status_code == 201, answer.text
        headers[scopes] = bearer(answer.json()["key"])
    return headers


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def call(client: httpx2.Client, method: str, path: str, headers: dict[str, str]) -> httpx2.Response:
    """Call a route with a body that it refuses, so that the call changes nothing."""
    filled = path.format(note_id="nobody", prefix="aaaaaaaaaa", name="nobody", user="nobody", session="nobody")
    body = None if method in ("GET", "DELETE") else {"colour": "red"}
    return client.request(method, filled, json=body, headers=headers)


async def handler() -> None:
    """A route function that declares no scope."""


def test_route_without_a_scope_is_refused() -> None:
    router = APIRouter(route_class=StrictRoute)
    with pytest.raises(TypeError, match="handler declares no scope"):
        router.get("/open")(handler)


def test_every_route_but_the_probes_needs_a_scope() -> None:
    assert {path for _, path, scopes in ROUTES if not scopes} == PROBES
    assert len(GUARDED) >= 20
    assert all(isinstance(route, StrictRoute) for router in ROUTERS for route in router.routes)


@pytest.mark.parametrize("path", [*sorted(PROBES), *DOCUMENTATION])
def test_probe_and_documentation_are_open(closed: httpx2.Client, path: str) -> None:
    assert closed.get(path).status_code == 200


@pytest.mark.parametrize(("method", "path", "scopes"), GUARDED)
def test_route_without_a_key_is_401(closed: httpx2.Client, method: str, path: str, scopes: tuple[Scope, ...]) -> None:
    answer = call(closed, method, path, {})
    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
    assert answer.headers["www-authenticate"] == 'Bearer realm="notellm"'
    assert "Authorization: Bearer" in answer.json()["detail"]
    wrong = call(closed, method, path, bearer("nlm_aaaaaaaaaa_" + 43 * "a"))
    assert wrong.status_code == 401
    assert wrong.headers["www-authenticate"] == 'Bearer realm="notellm", error="invalid_token"'


@pytest.mark.parametrize(("method", "path", "scopes"), [route for route in GUARDED if set(route[2]) != set(Scope)])
def test_route_under_a_key_without_its_scope_is_403_and_names_it(
    closed: httpx2.Client,
    keys: dict[frozenset[Scope], dict[str, str]],
    method: str,
    path: str,
    scopes: tuple[Scope, ...],
) -> None:
    answer = call(closed, method, path, keys[frozenset(Scope) - frozenset(scopes)])
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")
    assert all(scope in answer.json()["detail"] for scope in scopes)
    assert f'error="insufficient_scope", scope="{" ".join(scopes)}"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("method", "path", "scope"), [(method, path, scope) for method, path, scopes in GUARDED for scope in scopes]
)
def test_route_under_a_key_with_its_scope_alone_is_let_in(
    closed: httpx2.Client,
    keys: dict[frozenset[Scope], dict[str, str]],
    method: str,
    path: str,
    scope: Scope,
) -> None:
    assert call(closed, method, path, keys[frozenset([scope])]).status_code not in (401, 403, 500)


def test_request_without_a_key_is_refused_before_its_body(closed: httpx2.Client) -> None:
    answer = closed.post("/similar", content=b"{broken", headers={"content-type": "text/plain"})
    assert answer.status_code == 401


def test_refused_requests_are_counted_by_reason(
    closed: httpx2.Client, keys: dict[frozenset[Scope], dict[str, str]]
) -> None:
    def count(reason: str) -> float:
        text = closed.get("/metrics", headers=bearer(BOOTSTRAP_KEY)).text
        lines = [
            line for line in text.splitlines() if line.startswith(f'notellm_access_refused_total{{reason="{reason}"')
        ]
        return float(lines[0].split()[1]) if lines else 0.0

    refusals = {
        "no_key": {},
        "malformed_key": bearer("something"),
        "unknown_key": bearer("nlm_aaaaaaaaaa_" + 43 * "a"),
        "scope": keys[frozenset([Scope.METRICS])],
    }
    before = {reason: count(reason) for reason in refusals}
    for headers in refusals.values():
        closed.get("/keys", headers=headers)
    assert {reason: count(reason) - before[reason] for reason in refusals} == dict.fromkeys(refusals, 1.0)


@pytest.mark.parametrize(
    ("name", "valid"),
    [("default", True), ("7-films", True), ("a" * 40, True), ("a" * 41, False), ("", False), ("-a", False)]
    + [(name, False) for name in ("Films", "a.b", "a:b", "a\n", "é", "{a}", "..")],
)
def test_tenant_name_is_of_lower_case_letters(name: str, valid: bool) -> None:
    assert (TENANT.fullmatch(name) is not None) is valid
