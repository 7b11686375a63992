"""The documentation for people: it needs nothing of the internet."""

from __future__ import annotations

import re

import httpx2
import pytest

TYPES = {"js": "text/javascript", "css": "text/css", "png": "image/png"}


def test_the_root_leads_to_the_documentation(client: httpx2.Client) -> None:
    answer = client.get("/", headers={"host": "somewhere.invalid"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


def test_the_documentation_names_no_other_host(client: httpx2.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert re.findall(r"""(?:src|href|url)\s*[=:]\s*["'](?:https?:)?//[^"']*""", page.text) == []
    assert '"validatorUrl": null' in page.text  # else the page asks another host what it thinks of the API


def test_every_asset_of_the_documentation_is_served(client: httpx2.Client) -> None:
    page = client.get("/docs")
    assets = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert {asset.rsplit(".")[-1] for asset in assets} == set(TYPES)
    for asset in assets:
        answer = client.get(str(page.url.join(asset)))
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(TYPES[asset.rsplit(".")[-1]])
    (api,) = re.findall(r"""url:\s*["']([^"']+)""", page.text)
    assert client.get(str(page.url.join(api))).json()["openapi"].startswith("3.")


@pytest.mark.parametrize("path", ["/redoc", "/docs/nothing.js", "/docs/..%2f__init__.py"])
def test_unknown_documentation_path_is_404(client: httpx2.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_each_address_that_needs_a_key_documents_how_it_refuses(client: httpx2.Client) -> None:
    operations = [
        (f"{method} {path}", operation)
        for path, methods in client.get("/openapi.json").json()["paths"].items()
        for method, operation in methods.items()
    ]
    guarded = [
        (name, operation["responses"])
        for name, operation in operations
        if operation["security"] and {} not in operation["security"]
    ]
    assert guarded
    refusals = {"400", "401", "403", "409", "422", "429", "503"}
    assert [name for name, responses in guarded if not refusals <= responses.keys()] == []


def test_description_suits_generated_clients(client: httpx2.Client) -> None:
    described = client.get("/openapi.json").json()
    operations = [operation for methods in described["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert {"post_notes", "similar", "read_user_events"} <= set(names)
    schemas = described["components"]["schemas"]
    assert set(schemas["LimitsOut"]["required"]) == set(client.get("/limits").json())
    for name in ("k", "diversity", "strategy"):  # a scenario may bind them
        assert "default" not in schemas["SimilarIn"]["properties"][name]
    assert "default" not in schemas["KeyPatch"]["properties"]["quota"]
    created = described["paths"]["/notes"]["post"]["responses"]["201"]["headers"]
    assert {"ETag", "Location", "Idempotent-Replayed"} <= created.keys()
    refused = described["paths"]["/notes"]["post"]["responses"]["429"]["headers"]
    assert refused["Retry-After"] == {"$ref": "#/components/headers/Retry-After"}
    assert refused.keys() == {"RateLimit", "RateLimit-Policy", "Retry-After"}


@pytest.mark.parametrize("path", ["/", "/docs", "/docs/favicon.png"], ids=["root", "page", "asset"])
def test_documentation_refuses_a_query_parameter(client: httpx2.Client, path: str) -> None:
    answer = client.get(path, params={"theme": "dark"}, follow_redirects=False)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/theme")
