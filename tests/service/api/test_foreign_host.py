"""A service without keys answers to IP addresses only: a web page may have its own name resolved to this machine."""

from __future__ import annotations

import contextlib

import httpx2
import pytest
from pydantic import ValidationError

from service.access.gate import Gate
from service.access.principal import ANONYMOUS, BOOTSTRAP
from service.errors import Forbidden
from service.interfaces import Clock
from service.settings import Settings
from service.telemetry import Telemetry
from tests.service.api.conftest import Serve

FOREIGN = ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "1.2.3", "[::1")
OWN = (
    "",
    "localhost",
    "LOCALHOST:8000",
    "localhost.",
    "app.localhost:8000",
    "127.0.0.1:1",
    "[::1]:8000",
    "10.1.2.3:80",
)


def gate(*hosts: str) -> Gate:
    return Gate(None, Clock(), Telemetry(), hosts)


@pytest.mark.parametrize("host", FOREIGN)
def test_name_of_another_machine_is_allowed_to_callers_with_a_key_alone(host: str) -> None:
    assert not gate().allows_host(ANONYMOUS, host)
    assert gate().allows_host(BOOTSTRAP, host)


@pytest.mark.parametrize("host", OWN)
def test_address_or_localhost_is_allowed_to_all(host: str) -> None:
    assert gate().allows_host(ANONYMOUS, host)


@pytest.mark.parametrize("host", ["notes.example:8443", "https://notes.example", "*.example"])
def test_setting_that_names_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match="must be host names"):
        Settings.model_validate({"allowed_hosts": host})


def test_names_that_the_settings_have_are_allowed() -> None:
    assert gate("Api", "notes.example").allows_host(ANONYMOUS, "api:8000")
    assert not gate("api", "notes.example").allows_host(ANONYMOUS, "evil.example")
    assert gate("api.").allows_host(ANONYMOUS, "api")
    assert gate("*").allows_host(ANONYMOUS, "evil.example")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/notes/sample-en-001/similar"),
        ("GET", "/notes/sample-en-001"),
        ("DELETE", "/notes/sample-en-001"),
        ("GET", "/notes/export"),
        ("POST", "/keys"),
    ],
)
def test_request_without_a_key_to_a_foreign_host_is_403(client: httpx2.Client, method: str, path: str) -> None:
    for _ in range(2):  # the second request may take the short path
        answer = client.request(method, path, headers={"Host": "evil.example"})
        assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (403, "forbidden")
        assert "evil.example" not in answer.text
    assert client.get("/notes/sample-en-001").status_code == 200


@pytest.mark.parametrize("host", ["localhost:8000", "[::1]"])
def test_request_to_an_address_is_answered(client: httpx2.Client, host: str) -> None:
    assert client.get("/notes/sample-en-001/similar", headers={"Host": host}).status_code == 200


def test_names_of_the_setting_are_answered_and_no_others(serve: Serve) -> None:
    with serve(allowed_hosts="notes.example") as url, httpx2.Client(base_url=url) as client:
        assert client.put("/notes/a", json={"title": "soup"}).status_code == 201
        for path in ("/notes/a", "/notes/a/similar", "/notes/a/similar"):  # the last one is answered from memory
            statuses = [
                client.get(path, headers={"Host": host}).status_code for host in ("notes.example:8000", FOREIGN[0])
            ]
            assert statuses == [200, 403]


@pytest.mark.parametrize(
    ("origin", "site", "allowed"),
    [
        (None, None, True),  # not a browser
        ("http://127.0.0.1:8000", None, True),
        ("https://127.0.0.1:8000", "same-origin", True),
        ("https://proxied.example", "same-origin", True),
        ("https://listed.example", "cross-site", True),
        ("http://127.0.0.1:8001", None, False),
        ("http://127.0.0.1:8001", "same-site", False),
        ("https://evil.example", None, False),
        ("null", None, False),
        ("null", "cross-site", False),
        (None, "cross-site", False),
    ],
)
def test_change_without_a_key_is_allowed_to_pages_of_the_service_and_of_listed_origins(
    origin: str | None, site: str | None, allowed: bool
) -> None:
    gate = Gate(None, Clock(), Telemetry(), origins=["https://listed.example"])
    gate.check_origin(BOOTSTRAP, "127.0.0.1:8000", origin, site)
    with contextlib.nullcontext() if allowed else pytest.raises(Forbidden):
        gate.check_origin(ANONYMOUS, "127.0.0.1:8000", origin, site)


def test_page_of_another_origin_changes_nothing_of_a_service_without_keys(client: httpx2.Client) -> None:
    foreign = [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}]
    for headers in foreign:
        for method, path in (("POST", "/verify?repair=true"), ("DELETE", "/notes/sample-en-001")):
            answer = client.request(method, path, headers=headers)
            assert (answer.status_code, "NOTELLM_CORS_ORIGINS" in answer.json()["detail"]) == (403, True)
        assert client.get("/notes/sample-en-001", headers=headers).status_code == 200
        assert client.post("/similar", json={"title": "soup"}, headers=headers).status_code == 200
    own = {"Origin": str(client.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert client.post("/verify", headers=own).status_code == 200


def test_readyz_tells_a_foreign_host_nothing_of_the_notes(client: httpx2.Client) -> None:
    told, hidden = client.get("/readyz"), client.get("/readyz", headers={"Host": "evil.example"})
    assert told.json()["notes"] > 0
    assert (hidden.status_code, hidden.json()["notes"], hidden.json()["log_position"]) == (200, None, None)


def test_readyz_tells_a_foreign_host_nothing_of_how_far_indexes_are(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.tenants.Tenants.ready", False)
    told, hidden = client.get("/readyz"), client.get("/readyz", headers={"Host": "evil.example"})
    assert [answer.status_code for answer in (told, hidden)] == [503, 503]
    assert told.json()["checks"]["index"]["detail"] == "1 of 1 tenants follow the log"
    assert not any(character.isdigit() for character in hidden.json()["checks"]["index"]["detail"])
