"""The edge of the service: the admin port, and web pages of other origins."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import structlog

from service.access.principal import ADMIN_SCOPES
from service.api.app import CORS_HEADERS, CORS_METHODS
from service.api.strict_route import CONDITIONS
from tests.service.api.conftest import Serve
from tests.service.api.test_access import BOOTSTRAP_KEY, GUARDED, PROBES, bearer, call

PAGE = "https://example.org"


@pytest.fixture(scope="module")
def ports(serve: Serve) -> Iterator[tuple[str, str]]:
    """Addresses of the public and of the admin port of one service."""
    with socket.create_server(("127.0.0.1", 0)) as admin:
        port = admin.getsockname()[1]
        with serve(bootstrap_key=BOOTSTRAP_KEY, admin_port=port, more_listeners=[admin]) as url:
            yield url, f"http://127.0.0.1:{port}"


ADMIN = [(method, path) for method, path, scopes in GUARDED if set(scopes) <= ADMIN_SCOPES]


def test_admin_routes_are_those_of_operators() -> None:
    assert {path for _, path in ADMIN} == {
        *("/metrics", "/verify", "/audit", "/keys", "/keys/{prefix}", "/keys/{prefix}/rotate"),
        *("/tenants", "/tenants/{name}", "/notes/import"),
    }


@pytest.mark.parametrize(("method", "path"), ADMIN)
def test_admin_route_is_404_on_the_public_port(ports: tuple[str, str], method: str, path: str) -> None:
    public, admin = ports
    with httpx2.Client(base_url=public, timeout=60) as client:
        answer = call(client, method, path, bearer(BOOTSTRAP_KEY))
        assert (answer.status_code, answer.json()["type"]) == (404, "about:blank")
        assert call(client, method, path, {}).status_code == 404
    with httpx2.Client(base_url=admin, timeout=60) as client:
        assert call(client, method, path, {}).status_code == 401


def test_other_routes_are_on_both_ports(ports: tuple[str, str]) -> None:
    for url in ports:
        for path in ("/limits", *PROBES):
            assert httpx2.get(url + path, headers=bearer(BOOTSTRAP_KEY)).status_code == 200


@pytest.fixture(scope="module")
def open_to_pages(serve: Serve) -> Iterator[str]:
    with serve(bootstrap_key=BOOTSTRAP_KEY, cors_origins=(PAGE,)) as url:
        yield url


def test_page_may_read_that_the_service_failed(open_to_pages: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("as a mistake in the code would")

    monkeypatch.setattr("service.recommender.Recommender.add", fail)
    headers = {"Origin": PAGE, **bearer(BOOTSTRAP_KEY)}
    with structlog.testing.capture_logs() as lines:  # to print it with all variables would take a minute
        answer = httpx2.post(f"{open_to_pages}/notes", json={"id": "a", "title": "soup"}, headers=headers, timeout=60)
    assert "request_failed" in [line["event"] for line in lines]
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, PAGE)
    assert answer.json()["instance"] == answer.headers["x-request-id"]


def preflight(url: str, origin: str, method: str = "POST", headers: str = "Authorization") -> httpx2.Response:
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return httpx2.request("OPTIONS", f"{url}/similar", headers={"Origin": origin, **asked})


def test_page_of_a_listed_origin_may_call(open_to_pages: str) -> None:
    for method in CORS_METHODS:
        answer = preflight(open_to_pages, PAGE, method, ", ".join(CORS_HEADERS))
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    refused = httpx2.post(f"{open_to_pages}/similar", json={"title": "x"}, headers={"Origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
    answer = httpx2.get(f"{open_to_pages}/limits", headers={"Origin": PAGE} | bearer(BOOTSTRAP_KEY))
    assert "RateLimit" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers


def test_page_of_another_origin_may_not(open_to_pages: str) -> None:
    answer = preflight(open_to_pages, "https://elsewhere.example")
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


def test_no_page_may_call_by_default(url: str) -> None:
    assert "access-control-allow-origin" not in preflight(url, PAGE).headers
    assert "access-control-allow-origin" not in httpx2.get(f"{url}/limits", headers={"Origin": PAGE}).headers


def test_pages_may_send_what_makes_a_request_conditional() -> None:
    assert {"if-match", "if-none-match"} <= {header.lower() for header in CORS_HEADERS} & set(CONDITIONS)
